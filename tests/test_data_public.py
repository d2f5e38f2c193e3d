"""Public datasets in torchvision's layout, from small made-up copies."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from torchvision import datasets as tv

from sanrobust.data.datasets import open_dataset
from sanrobust.data.public import (
    IMAGENETTE_CLASSES,
    Request,
    open_cifar10,
    open_fashion_mnist,
    open_imagenet,
    open_imagenette,
)
from sanrobust.errors import DataError, DownloadError, UsageError
from image_files import class_tree, write_lines


def _request(root: Path | None, *, train: bool = False, download: bool = False) -> Request:
    return Request(root=root, split="train" if train else "test", download=download)


def _fashion_mnist(root: Path, *, images: int = 3, labels: int = 3) -> None:
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, offset in (("train", 0), ("t10k", 1)):
        pixels = np.arange(images * 784, dtype=np.uint64).reshape(-1) % 251 + offset
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, images, 28, 28) + pixels.astype(np.uint8).tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, labels) + bytes(range(offset, offset + labels)))


def _cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> npt.NDArray[np.uint8]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072)).astype(np.uint8)

    def put(name: str, value: object) -> list[str]:
        content = pickle.dumps(value)
        (folder / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    batch = put("test_batch", {"data": pixels, "labels": [3, 8]})
    meta = put("batches.meta", {"label_names": [f"class {index}" for index in range(10)]})
    monkeypatch.setattr(tv.CIFAR10, "test_list", [batch])
    monkeypatch.setattr(tv.CIFAR10, "train_list", [])
    monkeypatch.setattr(tv.CIFAR10, "meta", {"filename": meta[0], "key": "label_names",
                                             "md5": meta[1]})
    return pixels


def test_fashion_mnist_is_greyscale_with_ids_per_split(tmp_path: Path) -> None:
    _fashion_mnist(tmp_path)
    images = open_fashion_mnist(_request(tmp_path))
    assert [(ref.id, ref.label) for ref in images.refs] == [
        ("fashion-mnist/test/00000", 1), ("fashion-mnist/test/00001", 2),
        ("fashion-mnist/test/00002", 3)]
    assert np.asarray(images.load(0))[0, :3, 0].tolist() == [1, 2, 3]
    trained = open_fashion_mnist(_request(tmp_path, train=True))
    assert trained.refs[0].id == "fashion-mnist/train/00000" and trained.refs[0].label == 0


def test_cifar10_keeps_colours_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = _cifar10(tmp_path, monkeypatch)
    images = open_cifar10(_request(tmp_path))
    assert [(ref.id, ref.label) for ref in images.refs] == [
        ("cifar10/test/00000", 3), ("cifar10/test/00001", 8)]
    expected = pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(images.load(1)), expected)


def test_damaged_fashion_mnist_is_a_data_error(tmp_path: Path) -> None:
    _fashion_mnist(tmp_path, images=3, labels=2)
    with pytest.raises(DataError, match="must lie complete"):
        open_fashion_mnist(_request(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist", "imagenette", "imagenet"])
def test_a_public_dataset_without_a_folder_says_what_to_pass(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} must have a folder.*pass --data-root FOLDER"):
        open_dataset(name, root=None)


@pytest.mark.parametrize("name, hint", [
    ("cifar10", "--download"), ("fashion-mnist", "--download"), ("imagenette", "--download"),
    ("imagenet", "holds val/ with its class folders")])
def test_missing_data_say_what_to_pass(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(DataError, match=f"does not hold it.*{hint}"):
        open_dataset(name, root=tmp_path)


def test_damaged_imagenet_archives_are_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"cut short")
    with pytest.raises(DataError, match="must lie complete"):
        open_imagenet(_request(tmp_path))


def test_imagenette_is_labelled_with_imagenets_indices(tmp_path: Path) -> None:
    class_tree(tmp_path / "imagenette2" / "val", {wnid: ["1.JPEG"] for wnid in IMAGENETTE_CLASSES})
    images = open_imagenette(_request(tmp_path))
    assert [ref.label for ref in images.refs] == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert images.name == "imagenette" and images.num_classes == 1000


def test_imagenettes_mapping_lists_torchvisions_folders_in_order() -> None:
    assert tuple(IMAGENETTE_CLASSES) == tuple(sorted(tv.Imagenette._WNID_TO_CLASS))


def test_imagenet_reads_val_for_test_and_train_for_train(tmp_path: Path) -> None:
    names = [f"n{index:08d}" for index in range(1000)]
    for part in ("val", "train"):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / f"{part}.JPEG").touch()
    images = open_imagenet(_request(tmp_path))
    assert (images.refs[999].id, images.refs[999].label) == ("n00000999/val.JPEG", 999)
    assert images.num_classes == 1000
    assert open_imagenet(_request(tmp_path, train=True)).refs[5].id == "n00000005/train.JPEG"


def test_imagenet_with_a_class_too_few_is_refused(tmp_path: Path) -> None:
    class_tree(tmp_path / "val", {"n01440764": ["1.JPEG"]})
    with pytest.raises(DataError, match="must have 1000 class folders, but .*val has 1: "):
        open_imagenet(_request(tmp_path))


def test_imagenet_cannot_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="register at image-net.org"):
        open_imagenet(_request(tmp_path, download=True))


def test_a_failed_download_is_one_sentence(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Error downloading\ntrain-images")

    monkeypatch.setattr(tv.FashionMNIST, "download", fail)
    with pytest.raises(DownloadError, match=r"failed \(Error downloading train-images\)"):
        open_fashion_mnist(_request(tmp_path, download=True))


def test_what_torchvision_prints_while_downloading_stays_out_of_stdout(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    def fetch(*_: object) -> None:
        print("Downloading")
        _fashion_mnist(tmp_path)

    monkeypatch.setattr(tv.FashionMNIST, "download", fetch)
    assert len(open_fashion_mnist(_request(tmp_path, download=True)).refs) == 3
    captured = capsys.readouterr()
    assert captured.out == "" and "Downloading" in captured.err


@pytest.mark.parametrize("option", ["labels", "class_map"])
def test_label_files_do_not_go_with_a_named_dataset(tmp_path: Path, option: str) -> None:
    given = {option: write_lines(tmp_path / "x.csv", ["file,class_index"])}
    with pytest.raises(UsageError, match="must go with a folder of images"):
        open_dataset("digits", root=None, labels=given.get("labels"),
                     class_map=given.get("class_map"))
