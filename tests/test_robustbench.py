"""RobustBench's 5,000 images of ImageNet, found by their numbers and checked by folder and name."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from sanrobust.data import robustbench
from sanrobust.data.dataset import Request
from sanrobust.data.imageset import FileImages, ImageRef
from sanrobust.errors import DataError

REQUEST = Request(root=Path("/data"), split="test", download=False)


def image(number: int, wnid: str = "n01440764") -> ImageRef:
    return ImageRef(f"{wnid}/ILSVRC2012_val_{number:08d}.JPEG", 0)


def imagenet() -> FileImages:
    return FileImages("imagenet", Path("/data/val"),
                      tuple(image(number) for number in range(1, 50001)), 1000)


def test_the_list_has_5000_numbers_of_imagenets() -> None:
    numbers = robustbench.numbers()
    assert len(numbers) == 5000 and min(numbers) == 11 and max(numbers) == 49999
    assert {15253, 20685, 39611} <= numbers  # the first of RobustBench's own list


def test_its_images_are_chosen_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustbench, "open_imagenet", lambda request: imagenet())
    with pytest.raises(DataError, match="5000 of them have both|by their folders and names"):
        robustbench.open_robustbench(REQUEST)  # in the folders of other classes
    ids = sorted(image(number).id for number in robustbench.numbers())
    monkeypatch.setattr(robustbench, "IDS_SHA256",
                        hashlib.sha256("\n".join(ids).encode()).hexdigest())
    images = robustbench.open_robustbench(REQUEST)
    assert images.name == "imagenet-robustbench" and len(images.refs) == 5000
    assert [ref.id for ref in images.refs] == ids
    assert robustbench.open_robustbench(replace(REQUEST, split="train")).name == "imagenet"


def test_one_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = imagenet()
    lacking = whole.take([place for place in range(50000) if place != 10])
    monkeypatch.setattr(robustbench, "open_imagenet", lambda request: lacking)
    with pytest.raises(DataError, match="4999 of them"):
        robustbench.open_robustbench(REQUEST)
