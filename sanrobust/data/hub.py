"""Hugging Face datasets, named or saved on disk, read through the optional package ``datasets``.

Their image column and their label column are found by the types of their features.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sanrobust.data.imageset import FileImages, ImageRef, require_fit_ids
from sanrobust.data.places import HUB
from sanrobust.errors import DataError, DownloadError, UsageError, first_line, shown_value
from sanrobust.files import open_regular

TEST_SPLITS = ("test", "validation", "val", "valid")
IDS = ("id", "image_id", "file_name", "filename", "file", "path", "__key__")
"""Columns of text that name the images, where one of them does."""


def open_hub(word: str, *, name: str) -> FileImages:
    """Open ``hf:NAME`` or ``hf:NAME:SPLIT``; without one it is the test or validation split.

    Raises DownloadError where it cannot be had, and as `open_table`.
    """
    library = _library()
    dataset, split = _named(word)
    try:
        chosen = split or _test_split(library.get_dataset_split_names(dataset), word)
        table = library.load_dataset(dataset, split=chosen)
    except UsageError:
        raise
    # Whatever the library meets on its way to a dataset, it raises in types of its own.
    except Exception as error:
        raise DownloadError("a dataset of Hugging Face must be there and load",
                            seen=f"{word} does not ({type(error).__name__}: {first_line(error)})",
                            hint="check name, split and connection, or save it elsewhere with "
                                 "save_to_disk and give that folder to --data") from error
    return open_table(table, name=name, where=word)


def open_saved_table(folder: str, *, name: str) -> FileImages:
    """Open a folder that ``save_to_disk`` wrote; raises DataError."""
    library = _library()
    try:
        table = library.load_from_disk(folder)
    except Exception as error:
        raise DataError("a saved dataset must read back",
                        seen=f"{folder} does not ({first_line(error)})",
                        hint="save it anew with save_to_disk") from error
    if isinstance(table, Mapping):
        split = _test_split(list(table), folder)
        return open_table(table[split], name=name, where=f"{folder} ({split})")
    return open_table(table, name=name, where=folder)


def open_table(table: Any, *, name: str, where: str) -> FileImages:
    """Return a dataset of the library as a set of images.

    Its ids are the names in a column of `IDS`, else places. Raises DataError where it has not one
    column of images and one of labels.
    """
    library = _library()
    if not isinstance(table, library.Dataset):
        raise UsageError("a dataset of Hugging Face must be one split, with a length",
                         seen=f"{where} is a {type(table).__name__}",
                         hint="give one of its splits, loaded without streaming")
    features = table.features
    column = _image_column(library, features, where)
    label = _label_column(library, features, where)
    table = table.with_format(None)
    labels = _labels(list(table[label]), where, label)
    classes = getattr(features[label], "names", None)
    ids = _ids(table, features)
    require_fit_ids(ids)
    rows = _Rows(table.cast_column(column, library.Image(decode=False)), column,
                 {each: place for place, each in enumerate(ids)})
    refs = tuple(ImageRef(each, index) for each, index in zip(ids, labels, strict=True))
    if not refs:
        raise DataError("a dataset must hold images", seen=f"{where} is empty",
                        hint="name another split")
    return FileImages(name, Path("."), refs, classes and len(classes),
                      classes=tuple(classes) if classes else None, contents=rows)


class _Rows:
    """The encoded images in a column, by their ids."""

    def __init__(self, table: Any, column: str, places: Mapping[str, int]) -> None:
        self._table, self._column, self._places = table, column, places
        self._digests: dict[str, str] = {}

    def digests(self, paths: Sequence[str]) -> Iterator[str]:
        """Yield the SHA-256 of each image's bytes; raises DataError for one that has none."""
        for path in paths:
            if path not in self._digests:
                self._digests[path] = self._digest(path)
            yield self._digests[path]

    def _digest(self, path: str) -> str:
        try:
            with self.open(path) as stream:
                return hashlib.sha256(stream.read()).hexdigest()
        except OSError as error:
            raise DataError("every image of a dataset must be readable",
                            seen=f"{path} is not ({error.strerror or error})",
                            hint="load the dataset anew") from error

    def differs(self, path: str) -> bool:
        """Whether an image is not what its digest was taken of, or is gone."""
        known = self._digests.get(path)
        try:
            return known is not None and self._digest(path) != known
        except DataError:
            return True

    def open(self, path: str) -> BinaryIO:
        """Open an image to read and seek; raises OSError."""
        cell = self._table[self._places[path]][self._column]
        if cell is None:
            raise OSError("there is none in its row")
        if cell["bytes"] is not None:
            return io.BytesIO(cell["bytes"])
        return io.BufferedReader(open_regular(str(cell["path"])))


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UsageError("datasets of Hugging Face must be read with the package datasets",
                         seen=f"it cannot be loaded ({error})",
                         hint="type pip install 'sanrobust[hf]'") from error
    return datasets


def _named(word: str) -> tuple[str, str | None]:
    """Split ``hf:NAME:SPLIT``; raises UsageError for a word without a name."""
    rest = word.removeprefix(HUB)
    name, colon, split = rest.rpartition(":")
    if not colon or os.sep in split:
        name, split = rest, ""
    if not name:
        raise UsageError("a dataset of Hugging Face must have a name", seen=f"it is {word}",
                         hint="type for example --data hf:uoft-cs/cifar10:test")
    return os.path.expanduser(name), split or None


def _test_split(splits: Sequence[str], where: str) -> str:
    found = [split for split in TEST_SPLITS if split in splits]
    if found or len(splits) == 1:
        return found[0] if found else splits[0]
    raise UsageError("a dataset must have a test or validation split, or one alone",
                     seen=f"{where} has {', '.join(splits)}",
                     hint="name one as in --data hf:NAME:train, or save it alone with "
                          "save_to_disk")


def _image_column(library: Any, features: Mapping[str, Any], where: str) -> str:
    images = [each for each, kind in features.items() if isinstance(kind, library.Image)]
    if len(images) == 1:
        return images[0]
    raise DataError("a dataset must have one column of images",
                    seen=f"{where} has {', '.join(images) or 'none'} among "
                         f"{', '.join(features)}"[:300],
                    hint="cast or remove columns with the package datasets, save it with "
                         "save_to_disk and give that folder to --data")


def _label_column(library: Any, features: Mapping[str, Any], where: str) -> str:
    named = [each for each, kind in features.items() if isinstance(kind, library.ClassLabel)]
    whole = [each for each, kind in features.items() if isinstance(kind, library.Value)
             and "int" in str(kind.dtype)]
    for found in (named, [each for each in named if each in ("label", "labels")], whole,
                  [each for each in whole if each in ("label", "labels")]):
        if len(found) == 1:
            return found[0]
    raise DataError("a dataset must have one column of labels",
                    seen=f"{where} has {', '.join(named or whole) or 'none'} among "
                         f"{', '.join(features)}"[:300],
                    hint="rename it to label, of the type ClassLabel or a whole number")


def _labels(values: Sequence[Any], where: str, column: str) -> list[int]:
    wrong = [value for value in values if type(value) is not int or value < 0]
    if wrong:
        raise DataError("every label must be a whole number of 0 or more",
                        seen=f"{column} of {where} has {shown_value(wrong[0])}",
                        hint="name a split that has labels, or remove these rows")
    return list(values)


def _ids(table: Any, features: Mapping[str, Any]) -> list[str]:
    """Return the names of a column that names each image, else places."""
    for column in IDS:
        if getattr(features.get(column), "dtype", None) in ("string", "large_string"):
            names = list(table[column])
            if None not in names and len(set(names)) == len(names):
                return names
    return [str(place) for place in range(len(table))]
