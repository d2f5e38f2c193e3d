"""The datasets known by name, ours and those that installed packages add, and what else ``--data``
takes; loads no torch.

A package adds one by an entry point of the group ``sanrobust.datasets`` that names a `Dataset`.
"""

from __future__ import annotations

import os
from pathlib import Path

from sanrobust.data.dataset import Dataset
from sanrobust.data.digits import DIGITS
from sanrobust.data.places import FILES, Place, place_of
from sanrobust.data.public import CIFAR10, FASHION_MNIST, IMAGENET, IMAGENETTE
from sanrobust.data.robustbench import IMAGENET_ROBUSTBENCH
from sanrobust.errors import DataError, UnknownNameError, shown_value
from sanrobust.registry import Registry, closest

ENTRIES: tuple[Dataset, ...] = (
    DIGITS,
    CIFAR10,
    FASHION_MNIST,
    IMAGENETTE,
    IMAGENET,
    IMAGENET_ROBUSTBENCH,
)

DATASETS: Registry[Dataset] = Registry("dataset", listing="the known datasets",
                                       group="sanrobust.datasets", of=Dataset)
for _entry in ENTRIES:
    DATASETS.add(_entry.name, _entry)


def resolve(word: str) -> Dataset | Place | Path:
    """Read the word given as ``--data``: a known dataset, another place, else an existing folder.

    A known name wins over a folder of that name (``./digits`` means the folder). Raises
    UnknownNameError with the closest name, and DataError when the word can only be a path and
    nothing that can be read is there.
    """
    if word in DATASETS:
        return DATASETS.get(word)
    place = place_of(word)
    if place is not None:
        return place
    path = Path(os.path.expanduser(word))
    if word and os.path.isdir(path):  # False too for a name that no disk can hold
        return path
    if word and os.path.exists(path):
        raise DataError(f"a file of images must end in {', '.join(FILES)}",
                        seen=f"{word} does not", hint="unpack it if it is an archive of another "
                        "kind, and give the folder to --data")
    if os.sep in word:
        raise DataError("the folder or file of images must exist",
                        seen=f"there is no folder or file {word}",
                        hint="check the path given to --data")
    match = closest(word, DATASETS.names())
    suggestion = f"did you mean {match}? " if match else ""
    raise UnknownNameError(
        "the dataset must be a known name or an existing folder or file",
        seen=f"{shown_value(word)} is neither",
        hint=f"{suggestion}give one of {', '.join(DATASETS.names())}, or a folder of images",
    )
