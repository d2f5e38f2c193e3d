"""Models from torchvision, timm and the user's own code, without any network."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from sanrobust.errors import (
    CheckpointError, DownloadError, ModelError, UnknownNameError, UsageError,
)
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo import external
from sanrobust.zoo.digest import state_digest
from sanrobust.zoo.config import from_config, from_transforms
from sanrobust.zoo.external import create_external, is_external
from zoo_files import ban_network

FACTORY = '''
import torch
from torch import nn


def make(pretrained=False):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    network.asked = pretrained
    network.pretrained_cfg = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3),
                              "std": (0.1, 0.2, 0.3), "crop_pct": 0.5,
                              "interpolation": "bicubic"}
    return network


def with_classes(num_classes=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


def with_settings(**settings):
    return with_classes(**settings)


ready = with_classes(4)
needs = lambda depth: None
number = 3


def wrong():
    return 3


def broken():
    raise FileNotFoundError("labels.txt")


def hostile():
    torch.load("hostile.pth", weights_only=False)
'''


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ban_network(monkeypatch)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a module of factories into the current folder and return its name."""
    name = f"factories_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    return name


def save_random(network: nn.Module, path: Path) -> Path:
    torch.save({"state_dict": {f"module.{key}": value for key, value in
                               network.state_dict().items()}}, path)
    return path


@pytest.mark.parametrize(("name", "outside"), [
    ("timm/resnet18", True), ("torchvision/resnet18", True), ("mine:make", True),
    ("san10-pair", False), ("san10-pair.in1k", False),
])
def test_tells_models_from_elsewhere_by_their_spelling(name: str, outside: bool) -> None:
    assert is_external(name) is outside


@pytest.mark.parametrize(("name", "interpolation", "resize_size"), [
    ("torchvision/resnet18", "bilinear", 256), ("timm/resnet18", "bicubic", 235),
    ("timm/resnet18.tv_in1k", "bilinear", 256), ("torchvision/resnet18.IMAGENET1K_V1",
                                                 "bilinear", 256),
])
def test_loads_a_local_checkpoint_with_the_models_preprocessing(
        tmp_path: Path, name: str, interpolation: str, resize_size: int) -> None:
    network = torchvision.models.resnet18(weights=None)
    path = save_random(network, tmp_path / "a.pth")
    model = create_external(name, checkpoint=path)
    assert model.weights_digest == state_digest(network.state_dict())
    assert (model.num_classes, model.name, model.source) == (1000, f"{name}.a", str(path))
    assert (model.preprocessing.interpolation, model.preprocessing.resize_size) == (
        interpolation, resize_size)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18"])
def test_takes_the_number_of_classes_from_the_checkpoint(tmp_path: Path, name: str) -> None:
    path = save_random(torchvision.models.resnet18(num_classes=7), tmp_path / "a.pth")
    assert create_external(name, checkpoint=path).num_classes == 7


def test_a_number_of_classes_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    path = save_random(torchvision.models.resnet18(num_classes=7), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="has 7 classes where the model has 9"):
        create_external("timm/resnet18", checkpoint=path, num_classes=9)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = save_random(torchvision.models.resnet18(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="must fit torchvision/resnet34.*names are missing"):
        create_external("torchvision/resnet34", checkpoint=path)


def test_overrides_replace_the_models_preprocessing(tmp_path: Path) -> None:
    path = save_random(torchvision.models.resnet18(num_classes=2), tmp_path / "a.pth")
    model = create_external("timm/resnet18", checkpoint=path,
                            overrides={"img_size": 64, "crop_pct": 1.0})
    assert (model.preprocessing.img_size, model.preprocessing.crop_pct) == (64, 1.0)
    assert model.preprocessing.interpolation == "bicubic"


@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_the_preprocessing_of_every_torchvision_weight_is_exact(name: str) -> None:
    for weights in torchvision.models.get_model_weights(name):
        transforms = weights.transforms()
        found = from_config(name, from_transforms(transforms))
        assert [found.img_size] == transforms.crop_size
        assert [found.resize_size] == transforms.resize_size


def test_a_model_that_cannot_be_fetched_says_what_to_do() -> None:
    with pytest.raises(DownloadError, match="resnet18 must be fetched once.*--checkpoint FILE"):
        create_external("torchvision/resnet18")


def test_a_failing_hub_is_a_download_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **settings: object) -> None:
        # timm's own path to the hub retries for most of a minute before it ends like this
        raise RuntimeError("no weights") from ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(DownloadError, match="timm/resnet18 must be fetched once"):
        create_external("timm/resnet18")


def test_a_defect_is_not_taken_for_a_network_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*args: object, **settings: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(timm, "create_model", defective)
    with pytest.raises(KeyError):
        create_external("timm/resnet18")


@pytest.mark.parametrize(("name", "meant"), [
    ("timm/resnt18", "resnet18"), ("torchvision/resnt18", "resnet18"),
    ("timm/resnet18.a1_in1", "a1_in1k"), ("torchvision/resnet50.IMAGENET1K_V3", "IMAGENET1K_V"),
])
def test_a_mistyped_name_is_answered_with_the_closest(name: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean {meant}"):
        create_external(name)


@pytest.mark.parametrize(("name", "said"), [
    ("torchvison/resnet18", "type torchvision/resnet18"), ("tim/a", "type timm/a"),
    ("/a", "use one of these forms"), ("C:/a", "use one of these forms"),
])
def test_an_unknown_collection_is_answered(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create_external(name)


def test_a_timm_model_without_published_weights_says_so() -> None:
    name = next(name for name in timm.list_models() if not timm.list_models(
        f"{name}.*", pretrained=True))
    with pytest.raises(CheckpointError, match="timm has none.*--checkpoint FILE"):
        create_external(f"timm/{name}")


@pytest.mark.parametrize(("config", "said"), [
    ({"input_size": (3, 224, 192)}, "224 x 192"), ({"input_size": (1, 28, 28)}, "1 channels"),
    ({"crop_mode": "fill"}, "crop mode is 'fill'"), ({"input_size": 224}, "it is 224"),
    ({"mean": (0.5, float("nan"), 0.5)}, "--mean must be"),
    ({"interpolation": "random"}, "interpolation is 'random'"),
])
def test_preprocessing_that_cannot_be_honoured_is_refused(config: dict[str, Any],
                                                          said: str) -> None:
    with pytest.raises(ModelError, match=said):
        from_config("timm/x", config)


def test_an_empty_table_means_imagenets_usual_preprocessing() -> None:
    assert from_config("x", {}) == Preprocessing()


def test_builds_from_a_factory_in_the_current_folder(module: str) -> None:
    model = create_external(f"{module}:make")
    assert model.num_classes == 5
    assert model.preprocessing == Preprocessing(16, 0.5, "bicubic", (0.5, 0.4, 0.3),
                                                (0.1, 0.2, 0.3))


def test_builds_from_a_factory_on_the_python_path(
        module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert create_external(f"{module}:with_classes").num_classes == 3


@pytest.mark.parametrize("with_file", [False, True])
def test_a_factory_is_asked_for_its_weights_unless_a_file_replaces_them(
        module: str, tmp_path: Path, with_file: bool) -> None:
    path = save_random(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), tmp_path / "a.pth")
    model = create_external(f"{module}:make", checkpoint=path if with_file else None)
    assert model.network.asked is not with_file


@pytest.mark.parametrize("attribute", ["with_classes", "with_settings"])
def test_a_factory_that_takes_the_number_of_classes_gets_it(module: str, attribute: str) -> None:
    assert create_external(f"{module}:{attribute}", num_classes=6).num_classes == 6


def test_a_finished_network_is_taken_as_it_is(module: str) -> None:
    assert create_external(f"{module}:ready").num_classes == 4


@pytest.mark.parametrize(("attribute", "kind", "said"), [
    ("maek", UnknownNameError, "did you mean make"), ("number", ModelError, "it is a int"),
    ("wrong", ModelError, "it returned a int"), ("needs", ModelError, "required argument: 'dep"),
])
def test_says_what_is_wrong_with_a_factory(module: str, attribute: str,
                                           kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        create_external(f"{module}:{attribute}")


def test_a_factory_without_num_classes_cannot_have_them_changed(module: str) -> None:
    with pytest.raises(ModelError, match="it has no such argument"):
        create_external(f"{module}:make", num_classes=6)


@pytest.mark.parametrize(("name", "said"), [
    ("no_such_module_here:make", "there is no no_such_module_here in "),
    (":make", "must be written package.module:callable"),
    (".relative:make", "must be written package.module:callable"),
])
def test_says_what_is_wrong_with_a_module(name: str, said: str) -> None:
    with pytest.raises((ModelError, UsageError), match=said):
        create_external(name)


def test_says_what_a_factorys_module_lacks(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}_lacking.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModelError, match="install no_such_dependency"):
        create_external(f"{module}_lacking:make")


def test_code_in_a_factorys_weights_is_not_run(module: str, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile(), 2))
    with pytest.raises(CheckpointError, match="want to run code"):
        create_external(f"{module}:hostile")
    assert not (tmp_path / "it ran").exists()
    assert external.FORCE_SAFE not in os.environ


def test_the_callers_safety_setting_comes_back(
        module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(external.FORCE_SAFE, "0")
    create_external(f"{module}:make")
    assert os.environ[external.FORCE_SAFE] == "0"


def test_building_neither_reads_nor_moves_the_global_generator(module: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = create_external(f"{module}:make")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert create_external(f"{module}:make").weights_digest == first.weights_digest
