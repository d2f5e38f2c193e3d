"""The images of a training: what is learnt from, what is held out, and the classes of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sanrobust.data.catalog import resolve
from sanrobust.data.classes import fit_classes
from sanrobust.data.dataset import Dataset
from sanrobust.data.datasets import open_dataset
from sanrobust.data.imageset import ImageSet
from sanrobust.data.lost import all_broken
from sanrobust.errors import DataError, UsageError
from sanrobust.training.loop import Sets


@dataclass(frozen=True)
class Source:
    """Where the images of a training come from.

    Attributes:
        data: registered dataset with a training split, or an ImageFolder.
        held_out: ImageFolder of unseen images; None for the dataset's own test split.
        val_fraction: part of the training images of each class that is held out instead.
        val_per_class: or how many of each class (Zhao et al. 2020 held out 50).
        data_root: where registered datasets lie.
        seed: of the draw of images held out.
    """

    data: str
    held_out: Path | None = None
    val_fraction: float | None = None
    val_per_class: int | None = None
    data_root: Path | None = None
    seed: int = 0


def open_sets(source: Source) -> tuple[Sets, int]:
    """Open the training images and, labelled alike, the held-out ones; count the classes.

    Raises UsageError where nothing is held out, and DataError for images that cannot be trained
    on or classes that differ.
    """
    splits = [source.held_out, source.val_fraction, source.val_per_class]
    if sum(each is not None for each in splits) > 1:
        raise UsageError("images must be held out in one way", seen="two are given",
                         hint="leave in one of --held-out, --val-fraction and --val-per-class")
    if not any(each is not None for each in splits) and not _has_test_split(source.data):
        raise UsageError("a folder to train on must come with images held out",
                         seen="neither --held-out nor --val-fraction is given",
                         hint="type --held-out FOLDER, or --val-fraction 0.1 to hold out a tenth")
    train = open_dataset(source.data, root=source.data_root, split="train")
    classes = _classes(train)
    if source.val_fraction is not None or source.val_per_class is not None:
        train, test = _halved(train, source)
    elif source.held_out is not None:
        test = open_dataset(str(source.held_out), root=None)
    else:
        test = open_dataset(source.data, root=source.data_root)
    test = fit_classes(test, names=train.classes, num_classes=classes,
                       model=f"the training set {train.name}",
                       advice="name the folders as in training, or give others to --held-out")
    return Sets(train, test), classes


def check_sets(sets: Sets, batch_size: int) -> None:
    """Raise DataError where training could not learn, or would be measured on what it learnt."""
    train, test = sets.train, sets.test
    if train.refs == test.refs and train.digest == test.digest:
        raise DataError("training and held-out images must differ",
                        seen=f"{train.name} is given for both",
                        hint="give --data a set with two splits, or another --held-out folder")
    if batch_size > len(train.refs):
        raise DataError("a batch must fit into the training split",
                        seen=f"it has {len(train.refs)} images, a batch {batch_size}",
                        hint="lower --batch-size")
    for images, option in ((train, "--data"), (test, "--held-out")):
        reason = all_broken(images)
        if reason is not None:
            raise DataError(f"{images.name} must hold images that can be decoded", seen=reason,
                            hint=f"mend the images or name others with {option}")


def _has_test_split(data: str) -> bool:
    return isinstance(resolve(data), Dataset)


def _classes(train: ImageSet) -> int:
    classes = train.num_classes
    if classes is None:
        raise DataError("training must have images of every class",
                        seen=f"{train.name} has folders named by numbers and lacks some between "
                             "0 and the largest", hint="rename the folders, from 0 on or in words")
    if classes < 2:
        raise DataError("training must have two classes or more",
                        seen=f"{train.name} has {classes}",
                        hint="give --data a folder with one subfolder per class")
    return classes


def _halved(images: ImageSet, source: Source) -> tuple[ImageSet, ImageSet]:
    """Hold out some images of each class, drawn by the seed."""
    labels = np.array([ref.label for ref in images.refs])
    held: list[int] = []
    for label in sorted(set(labels.tolist())):
        own = np.flatnonzero(labels == label)
        count = (round(len(own) * source.val_fraction) if source.val_fraction is not None
                 else source.val_per_class or 0)
        if not 0 < count < len(own):
            raise DataError("images of every class must be held out, and some be left",
                            seen=f"class {label} has {len(own)} images, of which {count} would be",
                            hint="change --val-fraction or --val-per-class")
        drawn = np.random.default_rng([source.seed, label]).permutation(len(own))[:count]
        held += own[drawn].tolist()
    out = set(held)
    return (images.take([index for index in range(len(labels)) if index not in out]),
            images.take(sorted(held)))
