"""The 5,000 images of ImageNet's validation set on which RobustBench compares models.

Croce et al. 2021, RobustBench: a standardized adversarial robustness benchmark, arXiv:2010.09670.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING

from sanrobust.data.dataset import Dataset, Request
from sanrobust.data.public import IMAGENET, open_imagenet
from sanrobust.errors import DataError

if TYPE_CHECKING:
    from sanrobust.data.imageset import FileImages

IMAGES = 5000
IDS_SHA256 = "2f1fd0aa050d2393d0d1ff5aa3da5cf25831254f1cb59266e3162a1e2c61adc8"
"""Of the ids ``class/file`` in order of their names, one a line, as RobustBench lists them."""
_FILE = re.compile(r"n[0-9]{8}/ILSVRC2012_val_([0-9]{8})\.JPEG")


def numbers() -> frozenset[int]:
    """Return the numbers of the images among ImageNet's 50,000, from the list in ``lists``."""
    file = resources.files(__package__).joinpath("lists/imagenet-robustbench.txt")
    text = file.read_text("utf-8")
    return frozenset(int(word) for line in text.splitlines() if not line.startswith("#")
                     for word in line.split())


def listed(ids: Iterable[str]) -> list[int]:
    """Return the places of RobustBench's images among ids of ImageNet's validation images."""
    wanted = numbers()
    return [place for place, each in enumerate(ids)
            if (file := _FILE.fullmatch(each)) and int(file[1]) in wanted]


def open_robustbench(request: Request) -> FileImages:
    """Return RobustBench's images from ``root/val`` of ImageNet; of the training split, all.

    Raises DataError where they are not all there in ImageNet's class folders, and as
    `open_imagenet`.
    """
    images = open_imagenet(request)
    if request.split == "train":
        return images
    ids = [ref.id for ref in images.refs]
    places = listed(ids)
    found = "\n".join(sorted(ids[place] for place in places))
    if hashlib.sha256(found.encode()).hexdigest() != IDS_SHA256:
        raise DataError(f"{IMAGENET_ROBUSTBENCH.name} must find its {IMAGES} images by their "
                        "folders and names", seen=f"{len(places)} of them have both under "
                        f"{images.folder}", hint="give --data-root an ImageNet with "
                        "val/n01440764/ILSVRC2012_val_00000293.JPEG and so on")
    return replace(images.take(places), name=IMAGENET_ROBUSTBENCH.name)


IMAGENET_ROBUSTBENCH = Dataset(
    name="imagenet-robustbench",
    description="RobustBench's 5000 of ImageNet's validation images",
    num_classes=1000, classes="imagenet", tag="in1k",
    train_images=IMAGENET.train_images, test_images=IMAGES, embedded=False, downloadable=False,
    licence=IMAGENET.licence,
    source="Croce et al. 2021, arXiv:2010.09670; the list is that of github.com/RobustBench/"
           "robustbench, commit 78fcc9e",
    open=open_robustbench,
)
