"""torchvision's and timm's networks for a file of weights: built as for the published ones."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from sanrobust.errors import CheckpointError
from sanrobust.zoo import libraries
from sanrobust.zoo.digest import state_digest
from sanrobust.zoo.external import create_external
from sanrobust.zoo.libraries import published_tag
from zoo_files import ban_network


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    ban_network(monkeypatch)


def as_torchvision_loads(arch: str, tag: str, path: Path, monkeypatch: pytest.MonkeyPatch
                         ) -> nn.Module:
    """Build a network by torchvision alone, from a file in the place of its download."""
    from torchvision.models import _api
    with monkeypatch.context() as patched:
        patched.setattr(_api.WeightsEnum, "get_state_dict",
                        lambda self, *each, **settings: torch.load(path))
        network: nn.Module = torchvision.models.get_model(arch, weights=tag)
    return network.eval()


def published(arch: str, path: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    network = torchvision.models.get_model(arch, weights=None, **settings)
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(("arch", "tag", "file", "settings"), [
    ("googlenet", "IMAGENET1K_V1", "googlenet-1378be20.pth", {"init_weights": False}),
    ("inception_v3", "IMAGENET1K_V1", "inception_v3_google-0cc3c7bd.pth",
     {"init_weights": False}),
    ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1", "vit_b_16_swag-9ac1b537.pth", {"image_size": 384}),
    ("regnet_y_400mf", "IMAGENET1K_V2", "regnet_y_400mf-e6988f5f.pth", {}),
    ("densenet121", "IMAGENET1K_V1", "densenet121-a639ec97.pth", {}),
])
def test_a_published_file_gives_the_network_that_torchvision_makes_of_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, tag: str, file: str,
        settings: dict[str, Any]) -> None:
    path = published(arch, tmp_path / file, **settings)
    expected = as_torchvision_loads(arch, tag, path, monkeypatch)
    model = create_external(f"torchvision/{arch}", checkpoint=path)
    weights = torchvision.models.get_model_weights(arch)[tag]
    assert model.preprocessing.img_size == weights.transforms().crop_size[0]
    assert model.assumed == ""
    side = model.preprocessing.img_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(pixels), expected(model.normalize(pixels)))


def test_names_of_old_files_are_changed_as_torchvision_does(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    old = {key.replace("denselayer1.norm1", "denselayer1.norm.1"): value
           for key, value in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "a.pth")
    model = create_external("torchvision/densenet121", checkpoint=tmp_path / "a.pth")
    assert model.weights_digest == state_digest(state)


def test_a_file_without_a_known_name_is_told_what_was_assumed(tmp_path: Path) -> None:
    path = published("googlenet", tmp_path / "mine.pth", init_weights=False, num_classes=3)
    model = create_external("torchvision/googlenet", checkpoint=path)
    assert model.num_classes == 3 and model.network.transform_input is True
    assert "mine.pth says nothing of its preprocessing: assumed 224 pixels" in model.assumed
    assert "as for torchvision's GoogLeNet_Weights.IMAGENET1K_V1" in model.assumed
    assert "transform_input=True" in model.assumed
    typed = create_external("torchvision/googlenet.IMAGENET1K_V1", checkpoint=path)
    assert typed.assumed == ""


def test_heads_that_torchvision_drops_may_be_missing_from_the_file(tmp_path: Path) -> None:
    network = torchvision.models.googlenet(init_weights=False, aux_logits=False, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    model = create_external("torchvision/googlenet", checkpoint=tmp_path / "mine.pth")
    assert model.num_classes == 3
    assert model.weights_digest == state_digest(network.state_dict())


def test_the_published_weights_whose_network_a_file_fits_are_found(tmp_path: Path) -> None:
    path = published("vit_b_16", tmp_path / "mine.pth", image_size=384, num_classes=3)
    model = create_external("torchvision/vit_b_16", checkpoint=path)
    assert (model.preprocessing.img_size, model.num_classes) == (384, 3)
    assert "IMAGENET1K_SWAG_E2E_V1" in model.assumed


def test_other_threads_keep_torchvisions_download_while_a_network_is_built() -> None:
    from torchvision.models._api import WeightsEnum
    before = WeightsEnum.get_state_dict, nn.Module.load_state_dict
    weights = torchvision.models.AlexNet_Weights.DEFAULT
    seen: list[str] = []

    def look() -> None:
        try:
            weights.get_state_dict()
        except OSError as error:  # the network is banned here
            seen.append(str(error))
        seen.append(str(nn.Linear(1, 1).load_state_dict(nn.Linear(1, 1).state_dict())))

    with libraries._download_replaced({}, lambda network, state: None):
        assert weights.get_state_dict() == {}
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert len(seen) == 2 and "All keys matched" in seen[1]
    assert (WeightsEnum.get_state_dict, nn.Module.load_state_dict) == before


def test_a_published_file_is_known_by_its_content_then_by_its_name(tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.pth"
    renamed.write_bytes(b"weights")
    start = hashlib.sha256(b"weights").hexdigest()[:8]
    addresses = {"A": "https://x/net-00000000.pth", "B": f"https://x/net-{start}.pth", "C": ""}
    assert published_tag(renamed, addresses) == "B"
    named = tmp_path / "net-00000000.pth"
    named.write_bytes(b"others")
    assert published_tag(named, addresses) == "A"
    assert published_tag(tmp_path / "copy-of-net-00000000.pth", addresses) == "A"
    assert published_tag(tmp_path / "mine.pth", addresses) is None


def test_a_timm_file_has_the_preprocessing_of_its_tag_or_says_whose_was_assumed(
        tmp_path: Path) -> None:
    for file in ("resnet18_a3_rsb-0a6a2d2e.pth", "mine.pth"):
        torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), tmp_path / file)
    address = timm.models.get_pretrained_cfg("resnet18.a3_in1k").url
    (tmp_path / "mine.pth").rename(tmp_path / Path(address).name)
    known = create_external("timm/resnet18", checkpoint=tmp_path / Path(address).name)
    assert (known.preprocessing.img_size, known.assumed) == (160, "")
    other = create_external("timm/resnet18", checkpoint=tmp_path / "resnet18_a3_rsb-0a6a2d2e.pth")
    assert "as for timm's resnet18.a1_in1k" in other.assumed
    typed = create_external("timm/resnet18.a3_in1k",
                            checkpoint=tmp_path / "resnet18_a3_rsb-0a6a2d2e.pth")
    assert (typed.preprocessing.img_size, typed.assumed) == (160, "")


@pytest.mark.parametrize(("name", "mode"), [
    ("convnext_tiny.fb_in22k_ft_in1k_384", "squash"), ("resnet18.a1_in1k", "center"),
    ("coat_lite_medium_384.in1k", "squash"),
])
def test_a_timm_models_crop_mode_is_its_own(name: str, mode: str) -> None:
    external = libraries.timm_models(f"timm/{name}", name, None)[0]
    # For real: what old versions of timm build computes with values.
    assert external.wanted(external.build(None, False)).preprocessing.crop_mode == mode


def test_every_published_timm_model_of_square_images_can_be_prepared_for() -> None:
    from sanrobust.zoo.config import from_config
    refused = []
    for name in timm.list_models(pretrained=True):
        config = timm.models.get_pretrained_cfg(name).to_dict()
        if config["input_size"][1] == config["input_size"][2]:
            prepared = from_config(name, config)
            assert prepared.resize_size == int(config["input_size"][1] / config["crop_pct"])
        else:
            refused.append(name)
    assert len(refused) < 10


def test_a_file_of_another_torchvision_model_is_refused_by_the_name_asked_for(
        tmp_path: Path) -> None:
    path = published("squeezenet1_0", tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="must fit torchvision/vit_b_16.*check that the file "
                       "holds weights of torchvision/vit_b_16"):
        create_external("torchvision/vit_b_16", checkpoint=path)
