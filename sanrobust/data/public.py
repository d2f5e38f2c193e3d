"""The public datasets, stored and downloaded as torchvision does."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from sanrobust.data.catalog import DATASETS
from sanrobust.data.classes import IMAGENET_CLASSES, imagenet_names
from sanrobust.data.folders import mapped_folders
from sanrobust.data.imageset import ArrayImages, FileImages, ImageRef
from sanrobust.errors import DataError, DownloadError

T = TypeVar("T")

# Imagenette's folders are WordNet ids, ImageNet's sorted position is the class index.
IMAGENETTE_CLASSES = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491, "n03028079": 497,
    "n03394916": 566, "n03417042": 569, "n03425413": 571, "n03445777": 574, "n03888257": 701,
}
# One of these must be there for torchvision to know which validation image is of which class.
IMAGENET_INDEX = ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz")
# What torchvision's readers raise on files that are missing, cut short or altered.
DAMAGE = (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AssertionError,
          pickle.UnpicklingError)


@dataclass(frozen=True)
class Request:
    """Where to look for a named dataset, which part of it to open, and whether to fetch it."""

    root: Path | None
    split: Literal["test", "train"]
    download: bool


def open_cifar10(request: Request) -> ArrayImages:
    """Return CIFAR-10, 32x32 RGB, from ``root/cifar-10-batches-py``."""
    from torchvision.datasets import CIFAR10

    return _open_arrays("cifar10", CIFAR10, request)


def open_fashion_mnist(request: Request) -> ArrayImages:
    """Return Fashion-MNIST, 28x28 greyscale, from ``root/FashionMNIST/raw``."""
    from torchvision.datasets import FashionMNIST

    return _open_arrays("fashion-mnist", FashionMNIST, request)


def open_imagenette(request: Request) -> FileImages:
    """Return full-size Imagenette from ``root/imagenette2``, labelled with ImageNet's indices.

    The ten classes numbered 0..9 are what the class folder itself gives, opened as a folder.
    """
    from torchvision.datasets import Imagenette

    root = _root("imagenette", request)
    folder = root / "imagenette2" / _folder_of(request)
    if request.download and not os.path.isdir(folder):
        _download("imagenette", lambda: Imagenette(str(root), "train", download=True))
    if not os.path.isdir(folder):
        raise _missing("imagenette", root, "add --download to fetch it, or correct --data-root")
    images = mapped_folders(folder, name="imagenette", indices=IMAGENETTE_CLASSES)
    return replace(images, num_classes=IMAGENET_CLASSES, classes=imagenet_names())


def open_imagenet(request: Request) -> FileImages:
    """Return ImageNet from the class folders of ``root/val`` or ``root/train``.

    Where the folder is missing but the official archives lie in ``root``, torchvision unpacks
    them first. Raises DataError unless there are exactly 1000 class folders, because a missing
    one would shift the indices of the others.
    """
    root = _root("imagenet", request)
    part = _folder_of(request)
    if request.download:
        raise DataError("imagenet must be fetched by hand", seen="--download was given",
                        hint="register at image-net.org, put the archives or the unpacked "
                             f"folder {part} into --data-root, and leave --download out")
    if not os.path.isdir(root / part):
        _unpack_imagenet(root, part)
    images = mapped_folders(root / part, name="imagenet")
    if images.num_classes != IMAGENET_CLASSES:
        raise DataError(f"imagenet must have {IMAGENET_CLASSES} class folders",
                        seen=f"{root / part} has {images.num_classes}",
                        hint="complete it, or give the folder to --data with --class-map FILE")
    return images


def _unpack_imagenet(root: Path, part: str) -> None:
    missing = _missing("imagenet", root, f"give --data-root the folder that holds {part}/ with "
                       "its class folders, or the official archives and the devkit")
    if not any(os.path.isfile(root / name) for name in IMAGENET_INDEX):
        raise missing
    from torchvision.datasets import ImageNet

    try:
        with redirect_stdout(sys.stderr):
            ImageNet(str(root), part)
    except DAMAGE as error:
        raise missing from error


def _open_arrays(name: str, kind: Callable[..., object], request: Request) -> ArrayImages:
    root = _root(name, request)
    is_train = request.split == "train"
    if request.download:
        _download(name, lambda: kind(str(root), train=is_train, download=True))
    try:
        source = kind(str(root), train=is_train, download=False)
        pixels = np.asarray(getattr(source, "data"), dtype=np.uint8)
        labels = [int(label) for label in getattr(source, "targets")]
        refs = tuple(ImageRef(f"{name}/{request.split}/{index:05d}", label)
                     for index, label in enumerate(labels))
        info = DATASETS.get(name)
        return ArrayImages(name, refs, info.num_classes, pixels, classes=info.class_names)
    except DAMAGE as error:
        raise _missing(name, root, "add --download to fetch it, or correct --data-root") from error


def _download(name: str, fetch: Callable[[], T]) -> T:
    try:
        # torchvision reports its progress on stdout, which belongs to our results.
        with redirect_stdout(sys.stderr):
            return fetch()
    except DAMAGE as error:
        detail = " ".join(str(error).split())[:200]
        raise DownloadError(f"the download of {name} must succeed", seen=f"it failed ({detail})",
                            hint="run again, or fetch it elsewhere and give its folder to "
                                 "--data-root without --download") from error


def _root(name: str, request: Request) -> Path:
    if request.root is None:
        raise DataError(f"{name} must have a folder", seen="--data-root is not given",
                        hint="pass --data-root FOLDER, where it lies or will be downloaded to")
    return Path(os.path.expanduser(request.root))


def _folder_of(request: Request) -> str:
    return "train" if request.split == "train" else "val"


def _missing(name: str, root: Path, hint: str) -> DataError:
    return DataError(f"{name} must lie complete in the folder given to --data-root",
                     seen=f"{root} does not hold it", hint=hint)
