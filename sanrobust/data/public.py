"""The public datasets, stored and downloaded as torchvision does."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sanrobust.data.dataset import Dataset, Request
from sanrobust.errors import DataError, DownloadError

if TYPE_CHECKING:
    from sanrobust.data.imageset import ArrayImages, FileImages

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


def open_cifar10(request: Request) -> ArrayImages:
    """Return CIFAR-10, 32x32 RGB, from ``root/cifar-10-batches-py``."""
    from torchvision import datasets as source

    return _open_arrays(CIFAR10, source.CIFAR10, request)


def open_fashion_mnist(request: Request) -> ArrayImages:
    """Return Fashion-MNIST, 28x28 greyscale, from ``root/FashionMNIST/raw``."""
    from torchvision import datasets as source

    return _open_arrays(FASHION_MNIST, source.FashionMNIST, request)


def open_imagenette(request: Request) -> FileImages:
    """Return full-size Imagenette from ``root/imagenette2``, labelled with ImageNet's indices.

    The ten classes numbered 0..9 are what the class folder itself gives, opened as a folder.
    """
    from torchvision.datasets import Imagenette

    from sanrobust.data.classes import IMAGENET_CLASSES, imagenet_names
    from sanrobust.data.folders import mapped_folders

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
    from sanrobust.data.classes import IMAGENET_CLASSES
    from sanrobust.data.folders import mapped_folders

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


def _open_arrays(info: Dataset, kind: Callable[..., object], request: Request) -> ArrayImages:
    import numpy as np

    from sanrobust.data.imageset import ArrayImages, ImageRef

    name = info.name
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


CIFAR10 = Dataset(
    name="cifar10",
    description="60000 photographs, 32x32 colour",
    num_classes=10, classes="cifar10", tag="cifar10",
    train_images=50000, test_images=10000, embedded=False, downloadable=True,
    licence="none stated",
    source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
    class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse",
                 "ship", "truck"),
    open=open_cifar10,
)
FASHION_MNIST = Dataset(
    name="fashion-mnist",
    description="70000 articles of clothing, 28x28 greyscale",
    num_classes=10, classes="fashion-mnist", tag=None,
    train_images=60000, test_images=10000, embedded=False, downloadable=True,
    licence="MIT",
    source="Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
    class_names=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                 "Sneaker", "Bag", "Ankle boot"),
    open=open_fashion_mnist,
)
IMAGENETTE = Dataset(
    name="imagenette",
    description="ten easy ImageNet classes, full-size photographs",
    num_classes=10, classes="imagenet", tag="in1k",
    train_images=9469, test_images=3925, embedded=False, downloadable=True,
    licence="Apache 2.0 for the selection; ImageNet terms for the images",
    source="Howard 2019, github.com/fastai/imagenette, version 2",
    open=open_imagenette,
)
IMAGENET = Dataset(
    name="imagenet",
    description="ILSVRC 2012, 1000 classes of photographs; test is its val",
    num_classes=1000, classes="imagenet", tag="in1k",
    train_images=1281167, test_images=50000, embedded=False, downloadable=False,
    licence="non-commercial research, after registration at image-net.org",
    source="Russakovsky et al. 2015, arXiv:1409.0575",
    open=open_imagenet,
)
