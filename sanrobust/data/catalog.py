"""The datasets known by name: what a listing shows of them, readable without torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sanrobust.errors import DataError, UnknownNameError, shown_value
from sanrobust.registry import Registry, closest


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a dataset before any of it is read.

    Attributes:
        name: the word that ``--data`` takes.
        description: one line for a listing.
        num_classes: how many classes its images have.
        classes: name of the dataset whose class indices its labels are; ``imagenet`` for a set
            labelled with ImageNet's 0..999.
        tag: tag of the weights that a bare model name takes on it; None when there are
            none.
        train_images, test_images: how many images the splits hold.
        embedded: True when the images come with an installed package, so that no folder is needed.
        downloadable: True when ``--download`` can fetch it.
        licence: terms under which the images are given.
        source: who made the dataset, and where it is described.
        class_names: names of the classes by index; None for ImageNet's, which are those of the
            folders.
    """

    name: str
    description: str
    num_classes: int
    classes: str
    tag: str | None
    train_images: int
    test_images: int
    embedded: bool
    downloadable: bool
    licence: str
    source: str
    class_names: tuple[str, ...] | None = None


ENTRIES = (
    DatasetInfo(
        name="digits",
        description="1797 handwritten digits, 8x8 greyscale",
        num_classes=10, classes="digits", tag="digits",
        train_images=1346, test_images=451, embedded=True, downloadable=False,
        licence="CC BY 4.0",
        source="UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), "
               "as shipped with scikit-learn",
        class_names=tuple("0123456789"),
    ),
    DatasetInfo(
        name="cifar10",
        description="60000 photographs, 32x32 colour",
        num_classes=10, classes="cifar10", tag=None,
        train_images=50000, test_images=10000, embedded=False, downloadable=True,
        licence="none stated",
        source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images",
        class_names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse",
                     "ship", "truck"),
    ),
    DatasetInfo(
        name="fashion-mnist",
        description="70000 articles of clothing, 28x28 greyscale",
        num_classes=10, classes="fashion-mnist", tag=None,
        train_images=60000, test_images=10000, embedded=False, downloadable=True,
        licence="MIT",
        source="Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
        class_names=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                     "Sneaker", "Bag", "Ankle boot"),
    ),
    DatasetInfo(
        name="imagenette",
        description="ten easy ImageNet classes, full-size photographs",
        num_classes=10, classes="imagenet", tag="in1k",
        train_images=9469, test_images=3925, embedded=False, downloadable=True,
        licence="Apache 2.0 for the selection; ImageNet terms for the images",
        source="Howard 2019, github.com/fastai/imagenette, version 2",
    ),
    DatasetInfo(
        name="imagenet",
        description="ILSVRC 2012, 1000 classes of photographs; test is its val",
        num_classes=1000, classes="imagenet", tag="in1k",
        train_images=1281167, test_images=50000, embedded=False, downloadable=False,
        licence="non-commercial research, after registration at image-net.org",
        source="Russakovsky et al. 2015, arXiv:1409.0575",
    ),
)

DATASETS: Registry[DatasetInfo] = Registry("dataset", listing="the known datasets")
for _entry in ENTRIES:
    DATASETS.add(_entry.name, _entry)


def resolve(word: str) -> DatasetInfo | Path:
    """Read the word given as ``--data``: a known dataset, else an existing folder.

    A known name wins over a folder of that name (``./digits`` means the folder). Raises
    UnknownNameError with the closest name, and DataError when the word can only be a path and
    is not that of a folder.
    """
    if word in DATASETS:
        return DATASETS.get(word)
    path = Path(os.path.expanduser(word))
    if word and os.path.isdir(path):  # False too for a name that no disk can hold
        return path
    if word and os.path.exists(path):
        raise DataError("the dataset must be a folder of images", seen=f"{word} is a file",
                        hint="unpack it if it is an archive, and give the folder to --data")
    if os.sep in word:
        raise DataError("the folder of images must exist", seen=f"there is no folder {word}",
                        hint="check the path given to --data")
    match = closest(word, DATASETS.names())
    suggestion = f"did you mean {match}? " if match else ""
    raise UnknownNameError(
        "the dataset must be a known name or an existing folder",
        seen=f"{shown_value(word)} is neither",
        hint=f"{suggestion}give one of {', '.join(DATASETS.names())}, or a folder of images",
    )
