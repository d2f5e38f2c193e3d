"""Our networks by timm's names, made and trained a step as timm's script does."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.optim import create_optimizer_v2

import sanrobust.timm  # noqa: F401
from sanrobust.errors import UsageError
from sanrobust.zoo.build import build
from sanrobust.zoo.families.catalog import networks
from sanrobust.zoo.forms import imagenet_config, small_config


def test_every_network_that_timm_has_not_is_registered() -> None:
    names = {arch.replace("-", "_") for arch in networks()}
    assert names <= set(timm.list_models())
    assert {f"{name}_small" for name in names} <= set(timm.list_models())
    assert type(timm.create_model("resnet26")).__module__.startswith("timm.")


@pytest.mark.parametrize("name, config", [
    ("san10_pair", imagenet_config("san10-pair", 7)),
    ("san15_patch_small", small_config("san15-patch", 7)),
    ("sasa26", imagenet_config("sasa26", 7))])
def test_a_model_of_timm_is_ours(name: str, config: object) -> None:
    made = timm.create_model(name, num_classes=7, in_chans=3, drop_rate=0.0)
    own = build(config)  # type: ignore[arg-type]
    assert [(key, value.shape) for key, value in made.state_dict().items()] == [
        (key, value.shape) for key, value in own.state_dict().items()]


def test_timms_script_trains_a_step_of_it() -> None:
    torch.manual_seed(0)
    model = timm.create_model("san10_pair_small", num_classes=10)
    config = resolve_data_config({}, model=model)
    assert config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1.0
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05)
    images, labels = torch.rand(4, *config["input_size"]), torch.arange(4)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("given", [{"in_chans": 1}, {"drop_rate": 0.5}, {"features_only": True}])
def test_what_a_network_cannot_be_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"without {next(iter(given))}"):
        timm.create_model("san10_pair", **given)


def test_small_forms_have_no_published_weights() -> None:
    with pytest.raises(UsageError, match="sanrobust.create_model"):
        timm.create_model("san10_pair_small", pretrained=True)
