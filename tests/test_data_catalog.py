"""The catalogue: names, folders, and words that are neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sanrobust.data.catalog import DATASETS, resolve
from sanrobust.data.dataset import Dataset
from sanrobust.data.places import Place
from sanrobust.errors import DataError, UnknownNameError


def test_the_catalogue_loads_neither_torch_nor_the_image_libraries() -> None:
    code = ("import sys, sanrobust.data.catalog; "
            "print([name for name in ('torch', 'torchvision', 'numpy', 'PIL') "
            "if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("info", DATASETS, ids=lambda info: info.name)
def test_every_entry_is_described(info: Dataset) -> None:
    assert info.description and info.licence and info.source
    assert info.classes in DATASETS
    assert info.test_images > 0 and info.train_images > info.test_images


def test_bare_model_names_take_the_weights_of_the_classes() -> None:
    tags = {info.name: info.tag for info in DATASETS}
    assert tags.items() >= {"digits": "digits", "cifar10": "cifar10", "fashion-mnist": None,
                            "imagenette": "in1k", "imagenet": "in1k"}.items()


def test_a_known_name_wins_over_a_folder_of_that_name(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("digits") is DATASETS.get("digits")
    assert resolve("./digits") == Path("digits")


def test_a_home_relative_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pictures").mkdir()
    assert resolve("~/pictures") == tmp_path / "pictures"


@pytest.mark.parametrize("word, told", [
    ("imagenete", "'imagenete' is neither: did you mean imagenette\\?"),
    ("Digits", "did you mean digits\\?"),
    ("", "'' is neither: give one of digits, cifar10"),
    ("qqq", "'qqq' is neither: give one of digits, cifar10"),
])
def test_a_word_that_is_neither_names_the_closest_dataset(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=told):
        resolve(word)


def test_a_path_that_does_not_exist_is_called_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder or file .*/absent"):
        resolve(str(tmp_path / "absent"))


def test_an_archive_of_another_kind_is_to_be_unpacked_first(tmp_path: Path) -> None:
    (tmp_path / "val.zip").write_bytes(b"zip")
    with pytest.raises(DataError, match="val.zip does not: unpack it"):
        resolve(str(tmp_path / "val.zip"))


def test_places_are_told_apart_by_what_lies_there(tmp_path: Path) -> None:
    for name in ("a.tar", "b.npz", "shards/x.tar", "saved/state.json", "val/c0/x.tar", "val/y.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("a.tar", "b.npz", "shards", "saved", "x-{0..3}.tar", "x-*.tar"):
        assert isinstance(resolve(str(tmp_path / name)), Place)
    assert isinstance(resolve("hf:a/b"), Place)
    assert resolve(str(tmp_path / "val")) == tmp_path / "val"
