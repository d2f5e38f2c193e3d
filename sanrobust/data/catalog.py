"""The datasets known by name: ours, and those that installed packages add; loads no torch.

A package adds one by an entry point of the group ``sanrobust.datasets`` that names a `Dataset`.
"""

from __future__ import annotations

import os
from pathlib import Path

from sanrobust.data.dataset import Dataset
from sanrobust.data.digits import DIGITS
from sanrobust.data.public import CIFAR10, FASHION_MNIST, IMAGENET, IMAGENETTE
from sanrobust.errors import DataError, UnknownNameError, shown_value
from sanrobust.registry import Registry, closest

ENTRIES: tuple[Dataset, ...] = (
    DIGITS,
    CIFAR10,
    FASHION_MNIST,
    IMAGENETTE,
    IMAGENET,
)

DATASETS: Registry[Dataset] = Registry("dataset", listing="the known datasets",
                                       group="sanrobust.datasets", of=Dataset)
for _entry in ENTRIES:
    DATASETS.add(_entry.name, _entry)


def resolve(word: str) -> Dataset | Path:
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
