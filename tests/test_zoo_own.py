"""Networks of one's own: what was assumed of them, odd kinds of them, and what stays as it was."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import sanrobust
from conftest import Command
from sanrobust.errors import ModelError, UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.external import as_classifier, create_external
from sanrobust.zoo.resolve import create_model


class Net(nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.mean((2, 3)))
        return logits


def described(**config: Any) -> nn.Module:
    network = Net()
    vars(network)["default_cfg"] = config
    return network


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.LazyLinear(3)


class Extra(Net):
    def get_extra_state(self) -> object:
        return {"version": 2}

    def set_extra_state(self, state: object) -> None:
        pass


class Complex(Net):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.phase.real


class Casting(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.half())


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})
    return made


def raising() -> nn.Module:
    raise KeyError("depth")


def missing_file() -> nn.Module:
    raise FileNotFoundError(2, "No such file or directory", "labels.txt")


def switching() -> nn.Module:
    sys.path.insert(0, "somewhere")
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return Net()


@pytest.fixture
def made() -> Iterator[Callable[[object], str]]:
    """Make a value the factory ``made_by_tests:make`` and return that name."""
    module = ModuleType("made_by_tests")
    sys.modules[module.__name__] = module

    def enter(value: object) -> str:
        setattr(module, "make", value)
        return "made_by_tests:make"
    yield enter
    del sys.modules[module.__name__]


def test_a_network_that_says_nothing_is_told_what_was_assumed(
        made: Callable[[object], str]) -> None:
    assert create_external(made(Net)).assumed == (
        "made_by_tests:make says nothing of its preprocessing: assumed 224 pixels, crop 0.875, "
        "bilinear and ImageNet's mean and deviation; --img-size, --crop-pct, --interpolation, "
        "--mean and --std or --no-normalize change that")


def test_only_what_was_neither_said_nor_given_counts_as_assumed(
        made: Callable[[object], str]) -> None:
    name = made(lambda: described(input_size=(3, 8, 8), mean=(0.5, 0.5, 0.5), std=(1, 1, 1)))
    model = create_external(name, overrides={"crop_pct": 1.0})
    assert model.assumed == ("made_by_tests:make does not say all of its preprocessing: assumed "
                             "bilinear; --interpolation changes that")
    whole = create_external(name, overrides={"crop_pct": 1.0, "interpolation": "bicubic"})
    assert whole.assumed == ""
    assert whole.preprocessing == Preprocessing(8, 1.0, "bicubic", (0.5,) * 3, (1.0,) * 3)


WEIGHTS = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
OTHER = Preprocessing(224, 224 / 232, "bilinear")


@pytest.mark.parametrize(("attribute", "value"), [
    ("weights", WEIGHTS), ("transforms", WEIGHTS.transforms), ("transforms", WEIGHTS.transforms()),
    ("pretrained_cfg", timm.models.PretrainedCfg(crop_pct=224 / 232, interpolation="bilinear",
                                                 mean=OTHER.mean, std=OTHER.std)),
])
def test_what_libraries_write_into_a_network_is_read(made: Callable[[object], str],
                                                     attribute: str, value: object) -> None:
    network = Net()
    vars(network)[attribute] = value
    model = create_external(made(lambda: network))
    assert (model.preprocessing, model.assumed) == (OTHER, "")


def test_a_parts_word_is_taken_but_said(made: Callable[[object], str]) -> None:
    class Wrapper(Net):
        def __init__(self) -> None:
            super().__init__()
            self.model = described(input_size=(3, 16, 16))

    model = create_external(made(Wrapper))
    assert model.preprocessing.img_size == 16
    assert "assumed 16 pixels" in model.assumed and "as for its part 'model'" in model.assumed


def test_a_table_that_is_nonsense_is_a_sentence(made: Callable[[object], str]) -> None:
    for config in ({"input_size": "big"}, {"crop_pct": 0.0}, {"mean": (1, 2)}, {"std": "abc"}):
        with pytest.raises(ModelError, match="mend its default_cfg"):
            create_external(made(partial(described, **config)))


@pytest.mark.parametrize("make", [Extra, quantised, Complex, lambda: Net().half(),
                                  lambda: Net().double(), lambda: Net().bfloat16(),
                                  lambda: nn.DataParallel(Net()), lambda: torch.compile(Net()),
                                  lambda: torch.jit.script(Net())])
def test_odd_networks_are_measured(made: Callable[[object], str], tmp_path: Path,
                                   command: Command, make: Callable[[], nn.Module]) -> None:
    result = command("rotate", "-m", made(make), "--img-size", 8, "--data", _data(tmp_path),
                     "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


def _data(folder: Path) -> Path:
    from image_files import class_tree
    return class_tree(folder / "val", {f"c{place}": ["0.png"] for place in range(3)})


@pytest.mark.parametrize(("make", "said"), [
    (Lazy, "fc.weight has none yet"), (Casting, "float32 images"), (raising, "KeyError: 'depth'"),
    (missing_file, r"FileNotFoundError: .*labels.txt.*test_zoo_own.py, line \d+"),
    (lambda: Net().to("meta"), "has none yet"),
])
def test_networks_that_cannot_be_measured_are_a_sentence_without_wrong_advice(
        made: Callable[[object], str], make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        create_external(made(make))
    assert "--img-size" not in str(caught.value) and "--checkpoint" not in str(caught.value)


def test_another_precision_is_said_and_recorded(made: Callable[[object], str]) -> None:
    said: list[str] = []
    model = create_external(made(lambda: Net().half()), say=said.append)
    assert said == ["made_by_tests:make: its weights are taken in float32 instead of float16; "
                    "--precision says what is computed in"]
    assert model.source.endswith("in float32 instead of float16")


@pytest.mark.parametrize("compiled", [
    torch.jit.script, lambda net: torch.jit.freeze(torch.jit.script(net.eval())),
    lambda net: torch.jit.trace(net.eval(), torch.rand(2, 3, 8, 8))])
def test_a_torchscript_network_is_attacked_like_its_source(
        compiled: Callable[[nn.Module], nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Net()
    tables = [sanrobust.pgd(model, data=_data(tmp_path), preprocessing=Preprocessing(img_size=8),
                            out=tmp_path / out, budgets=[(8, 2, 4)]).table
              for model, out in ((network, "plain"), (compiled(network), "compiled"))]
    assert tables[0]["model"].tolist() == ["Net"]
    plain, after = [table.select_dtypes("number").to_csv(index=False) for table in tables]
    assert plain == after


def test_an_attack_on_a_network_without_gradients_is_a_sentence(
        made: Callable[[object], str], tmp_path: Path, command: Command) -> None:
    result = command("pgd", "-m", made(quantised), "--img-size", 8, "--data", _data(tmp_path),
                     "--out", tmp_path / "out")
    assert result.exit_code == 4 and "must have gradients for an attack" in result.output


def test_what_a_factory_sets_is_as_before(made: Callable[[object], str]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    before = list(sys.path), torch.get_rng_state().tolist(), random.getstate()
    numbers = np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    create_external(made(switching), overrides={"img_size": 8})
    assert (list(sys.path), torch.get_rng_state().tolist(), random.getstate()) == before
    assert np.random.get_state()[1].tolist() == numbers  # type: ignore[union-attr]
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_the_working_folder_is_on_the_path_only_while_a_model_is_made(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"here_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text("import torch\nmake = lambda: torch.nn.Flatten()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", ".")])
    before = list(sys.path)
    assert create_external(f"{name}:make", overrides={"img_size": 4}).num_classes == 48
    assert sys.path == before


def test_a_network_from_python_is_left_as_it_was() -> None:
    network = nn.Sequential(Net(), nn.Dropout(), nn.BatchNorm1d(3)).train()
    network[0].requires_grad_(False)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    model = as_classifier(network, preprocessing=Preprocessing(img_size=8))
    assert all(module.training for module in network.modules())
    assert [each.requires_grad for each in network.parameters()] == [False, False, True, True]
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
    assert (model.name, model.num_classes, model.assumed) == ("Sequential", 3, "")
    assert not model.network.training and model.network is not network


def test_a_network_from_python_may_be_named_and_says_what_it_wants() -> None:
    model = as_classifier(described(input_size=(3, 8, 8)), name="mine")
    assert (model.name, model.preprocessing.img_size) == ("mine", 8)
    assert model.assumed.startswith("mine does not say all of its preprocessing")
    assert as_classifier(model) is model


def test_a_network_that_normalises_by_itself_is_right_from_python(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = create_model("resnet26.digits")

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.inner(pixels)
            return logits

    plain = Preprocessing(32, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    model = as_classifier(Own(), preprocessing=plain)
    table = sanrobust.rotate(model, out=tmp_path, data=sanrobust_digits())
    assert table["none_top1"].tolist() == [100.0]


def sanrobust_digits() -> Any:
    from sanrobust.choices import DataConfig
    return DataConfig(num_samples=12)


def test_no_normalize_gives_pixels_as_they_are(command: Command, tmp_path: Path,
                                               made: Callable[[object], str]) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = create_model("resnet26.digits")

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.inner(pixels)
            return logits

    result = command("rotate", "-m", made(Own), "--num-samples", 12, "--img-size", 32,
                     "--crop-pct", 1, "--no-normalize", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert pd.read_csv(tmp_path / "rotation.csv")["none_top1"].tolist() == [100.0]


@pytest.mark.parametrize("model", ["resnet26", 3, None, SimpleNamespace()])
def test_what_is_no_network_is_a_typed_error(model: Any) -> None:
    with pytest.raises(UsageError, match="a name, a Classifier or a torch.nn.Module"):
        as_classifier(model)


@pytest.mark.parametrize(("settings", "said"), [
    ({"num_classes": "ten"}, "num_classes must be a whole number"),
    ({"num_classes": 0}, "num_classes must be a whole number"),
    ({"num_classes": True}, "num_classes must be a whole number"),
    ({"checkpoint": 3}, "checkpoint must be the path"),
    ({"overrides": {"image_size": 3}}, "did you mean img_size"),
    ({"overrides": {"img_size": "big"}}, "--img-size must be"),
])
def test_arguments_of_another_type_are_typed_errors(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create_model("resnet26.untrained-small", **settings)


def test_a_name_of_another_type_is_a_typed_error() -> None:
    with pytest.raises(UsageError, match="must be text"):
        create_model(Net())  # type: ignore[arg-type]


def test_an_image_too_small_for_a_network_loses_no_other_model(command: Command,
                                                               tmp_path: Path) -> None:
    result = command("rotate", "-m", "san10-pair.untrained-small", "-m", "resnet26.digits",
                     "--img-size", 8, "--num-samples", 4, "--out", tmp_path)
    assert result.exit_code == 4 and "--img-size" in result.output
    assert "resnet26.digits" in (tmp_path / "rotation.csv").read_text()


def test_classifiers_made_by_hand_have_code() -> None:
    model = Classifier(Net(), name="x", preprocessing=Preprocessing(img_size=8))
    assert model.code is not None and model.assumed == ""
