"""What a dataset known by name is: one value, readable without torch, numpy or Pillow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sanrobust.data.imageset import ImageSet

Split = Literal["test", "train"]


@dataclass(frozen=True)
class Request:
    """Where to look for a named dataset, which part of it to open, and whether to fetch it."""

    root: Path | None
    split: Split
    download: bool


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset before any of it is read, and how it is opened.

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
        open: returns the images of a split, in a fixed order, with ids that never change. It loads
            what it needs when it is called, and raises DataError for what is missing or damaged.
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
    open: Callable[[Request], ImageSet]
    class_names: tuple[str, ...] | None = None
