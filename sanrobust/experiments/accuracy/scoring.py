"""Which classes and which labels count: a part of a model's classes, and several labels an image.

Importing this module loads no numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from sanrobust.csvfiles import CsvKind, parse, read_bytes, same_form
from sanrobust.errors import DataError, UsageError, shown_value

if TYPE_CHECKING:
    from sanrobust.data.imageset import ImageSet

PRESENT, FILE = "present", "file:"
_CLASSES = CsvKind("file of classes", ("class", "class"), f"--classes {FILE}PATH")
_REAL_LABELS = CsvKind("file of ReaL labels", ("image", "label"), "--real-labels")
_IN_ORDER = "ILSVRC2012_val_{:08d}"
_NUMBERED = re.compile("ILSVRC2012_val_[0-9]{8}")
_NAMES_SHOWN = 10


def checked_classes(wanted: object) -> str | tuple[str, ...]:
    """Return ``present`` or ``file:PATH`` as it is, else the names of a list, sorted.

    Args:
        wanted: text with commas, or names and indices.

    Raises UsageError for a list of fewer than two classes.
    """
    if isinstance(wanted, str):
        is_word = wanted == PRESENT or wanted.startswith(FILE)
        return wanted if is_word else _several(wanted.split(","), shown_value(wanted))
    names = wanted if isinstance(wanted, Sequence) else ()
    return _several([str(name) for name in names], shown_value(wanted))


def _several(names: Sequence[str], seen: str) -> tuple[str, ...]:
    chosen = sorted({name.strip() for name in names},
                    key=lambda name: (len(name) if name.isdecimal() else math.inf, name))
    if len(chosen) < 2 or "" in chosen:
        raise UsageError("--classes must name two classes or more", seen=f"it is {seen}",
                         hint=f"type for example --classes 0,3,8, or {FILE}PATH for a file that "
                              "has one in each line")
    return tuple(chosen)


@dataclass(frozen=True)
class ClassChoice:
    """The classes that count, the others of a model being as if it did not have them.

    Attributes:
        names: what they are called, by name or index; empty for those that an image is of.
        sha256: hash of the file that they stand in; empty without one.
    """

    names: tuple[str, ...]
    sha256: str = ""

    @classmethod
    def read(cls, wanted: str | Sequence[str | int]) -> ClassChoice:
        """Read what `checked_classes` returned; raises DataError or UsageError for its file."""
        if wanted == PRESENT:
            return cls(())
        if not isinstance(wanted, str):
            return cls(tuple(map(str, wanted)))
        path = Path(wanted.removeprefix(FILE))
        content = read_bytes(path, _CLASSES)
        lines = content.decode("utf-8-sig", "replace").splitlines()
        return cls(_several([line for line in lines if line.strip()], f"all in {path.name}"),
                   hashlib.sha256(content).hexdigest())

    def identity(self) -> str | list[str]:
        """Return what stands in a run's specification; a file enters by its hash."""
        return f"{FILE}sha256:{self.sha256}" if self.sha256 else list(self.names) or PRESENT

    def find(self, images: ImageSet, num_classes: int) -> list[int]:
        """Return the indices of the classes, ascending.

        Args:
            images: the set, with the labels of the model.
            num_classes: length of the model's logits.

        Raises UsageError for a name that is no class, and when fewer than two are left.
        """
        found = (_indices(self.names, images, num_classes) if self.names
                 else sorted({ref.label for ref in images.refs}))
        if len(found) < 2:
            raise UsageError("--classes must leave two classes or more",
                             seen=f"of {images.name} it leaves {len(found)}",
                             hint="name more, or leave it out")
        return found


def _indices(names: Sequence[str], images: ImageSet, num_classes: int) -> list[int]:
    """Return the indices of classes called by name or, where none is called so, by index."""
    places = {str(index): index for index in range(num_classes)}
    places |= {name: index for index, name in enumerate(images.classes or ())}
    unknown = [name for name in names if name not in places]
    if unknown:
        raise UsageError("--classes must name classes of the model",
                         seen=f"{shown_value(unknown[0])} is none of its {num_classes}",
                         hint=f"give names, or indices from 0 to {num_classes - 1}, or {FILE}PATH "
                              "for a file that has one in each line")
    return sorted({places[name] for name in names})


def classes_in_words(identity: str) -> str:
    """Say which classes an identity stands for, behind their number; a list as JSON."""
    if identity == PRESENT:
        return "that an image is of"
    if identity.startswith(FILE):
        return f"of a file ({digest_in_words(identity.removeprefix(FILE))})"
    names = json.loads(identity)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"


def checked_file(path: object) -> Path | None:
    """Return the path of a file of labels, if there is one; raises UsageError for what is none."""
    if path is None:
        return None
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise UsageError("real_labels must be a file", seen=f"it is {shown_value(path)}",
                         hint="give a path such as --real-labels real.json")
    return Path(path)


def digest_in_words(digest: str) -> str:
    """Return the beginning of a SHA-256, by which a reader may know a file."""
    return f"SHA-256 {digest.removeprefix('sha256:')[:12]}"


@dataclass(frozen=True)
class LabelSets:
    """Several labels for each image (ReaL: Beyer et al. 2020, "Are we done with ImageNet?").

    Attributes:
        table: labels by image: its id in the form of `same_form`, or the name of its file without
            the ending.
        in_order: whether it is the latter, because the file is a list in the order of ImageNet's
            validation images.
        sha256: hash of the file's bytes.
    """

    table: Mapping[str, frozenset[int]]
    in_order: bool
    sha256: str

    def of(self, image: str) -> frozenset[int]:
        """Return the labels of an image, none where the file has none for it."""
        return self.table.get(_number(image) if self.in_order else same_form(image), frozenset())

    def check(self, ids: Sequence[str], num_classes: int) -> None:
        """Raise DataError where images have no place in the list, or a label is no class."""
        odd = [image for image in ids if self.in_order and not _NUMBERED.fullmatch(_number(image))]
        if odd:
            raise DataError("a list of labels must go with images named as ImageNet's validation "
                            "images are", seen=f"one is {shown_value(odd[0])}",
                            hint="give a mapping from images to labels, as JSON or CSV")
        if self.table and not any(self.of(image) for image in ids):
            raise DataError("ReaL labels must be of images that are measured",
                            seen=f"the file's first name is {shown_value(next(iter(self.table)))}, "
                                 f"and the first image is {shown_value(ids[0])}",
                            hint="write the images' ids into the file, as records and messages "
                                 "show them")
        worst = max((label for image in ids for label in self.of(image)), default=0)
        if worst >= num_classes:
            raise DataError(f"ReaL labels must be classes from 0 to {num_classes - 1}",
                            seen=f"one is {worst}",
                            hint="mend the file, or name a model that has these classes")


def read_label_sets(path: Path) -> LabelSets:
    """Read several labels for each image.

    Args:
        path: a JSON list of lists in the order of ImageNet's validation images, which is the form
            of ``real.json``; a JSON mapping from image ids to lists; or a CSV with ``image,label``
            in as many rows as there are labels.

    Raises DataError when the file is none of them.
    """
    content = read_bytes(path, _REAL_LABELS)
    sha256 = hashlib.sha256(content).hexdigest()
    if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        found = _from_json(content, path)
    else:
        found = {}
        for row in parse(content, path, _REAL_LABELS):
            found.setdefault(row.name, []).append(row.index)
    if isinstance(found, list):
        return LabelSets({_IN_ORDER.format(number): _as_labels(each, path)
                          for number, each in enumerate(found, 1)}, True, sha256)
    return LabelSets({same_form(image): _as_labels(each, path)
                      for image, each in found.items()}, False, sha256)


def _number(image: str) -> str:
    return PurePosixPath(image).name.partition(".")[0]


def _from_json(content: bytes, path: Path) -> list[object] | dict[str, list[object]]:
    try:
        found: list[object] | dict[str, list[object]] = json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_each_once)
        return found
    except (ValueError, RecursionError) as error:
        raise _no_label_sets(path, f"does not read ({error})") from error


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs of a JSON object; raises ValueError for one whose key stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown_value(twice)} stands twice")
    return found


def _as_labels(found: object, path: Path) -> frozenset[int]:
    labels = found if isinstance(found, list) else [found]
    if not all(type(label) is int and label >= 0 for label in labels):
        raise _no_label_sets(path, f"has {shown_value(found)} for an image")
    return frozenset(labels)


def _no_label_sets(path: Path, seen: str) -> DataError:
    return DataError("ReaL labels must be lists of class indices", seen=f"{path.name} {seen}",
                     hint='give real.json, a mapping such as {"a.png": [3, 5]}, or CSV with the '
                          "columns image,label")
