"""Where images lie that are neither a known dataset nor a folder of image files; loads no torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sanrobust.data.imageset import ImageSet

TAR = ".tar"
ARRAYS = (".npz", ".pt", ".pth", ".safetensors")
FILES = (TAR, *ARRAYS)
"""Suffixes of the files that ``--data`` takes."""
HUB = "hf:"
SAVED = ("state.json", "dataset_dict.json")
"""One of these lies in a folder that ``save_to_disk`` of the package datasets wrote."""


@dataclass(frozen=True)
class Place:
    """A place of images.

    Attributes:
        word: as it was given.
        name: what tables call it unless they are told.
        opened: opens it under a name; raises DataError for what cannot serve.
    """

    word: str
    name: str
    opened: Callable[[str], ImageSet]


def place_of(word: str) -> Place | None:
    """Return the place that a word names; None for a folder of image files, and for no place."""
    if word.startswith(HUB):
        return Place(word, word.removeprefix(HUB), lambda name: _hub(word, name))
    path = os.path.expanduser(word)
    own = os.path.basename(os.path.realpath(path)) if word else ""
    if os.path.isdir(path):
        if any(os.path.isfile(os.path.join(path, each)) for each in SAVED):
            return Place(word, own, lambda name: _saved(path, name))
        return Place(word, own, lambda name: _shards(path, name)) if _holds_shards(path) else None
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path):
        if suffix in ARRAYS:
            return Place(word, own, lambda name: _arrays(path, name))
        return Place(word, own, lambda name: _shards(path, name)) if suffix == TAR else None
    if suffix == TAR and (glob.has_magic(path) or "{" in path):
        return Place(word, os.path.basename(path), lambda name: _shards(path, name))
    return None


def _holds_shards(folder: str) -> bool:
    """Say whether a folder holds tar archives and no subfolder, which would be a class."""
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.is_dir(), entry.name.lower().endswith(TAR)) for entry in entries
                    if not entry.name.startswith(".")]
    except OSError:  # opening the folder will say why
        return False
    return any(tar for _, tar in seen) and not any(folder for folder, _ in seen)


def _shards(path: str, name: str) -> ImageSet:
    from sanrobust.data.shards import open_shards
    return open_shards(path, name=name)


def _arrays(path: str, name: str) -> ImageSet:
    from sanrobust.data.arrays import open_arrays
    return open_arrays(Path(path), name=name)


def _hub(word: str, name: str) -> ImageSet:
    from sanrobust.data.hub import open_hub
    return open_hub(word, name=name)


def _saved(path: str, name: str) -> ImageSet:
    from sanrobust.data.hub import open_saved_table
    return open_saved_table(path, name=name)
