"""Images that a run made and saved, as they lie in a folder: one file each, an index, their source.

``index.csv`` has a row for each file: its name, image and budget, what the model that it was made
for says of it, and its SHA-256. ``source.json`` holds the specification of the run, and a hash of
the index and of itself. What is not as it was written is refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sanrobust.csvfiles import CsvKind, read_bytes, shown
from sanrobust.data.pixels import SUFFIXES
from sanrobust.errors import DataError, shown_value
from sanrobust.files import write_text
from sanrobust.harmless import unguarded
from sanrobust.preprocessing import LARGEST_SIDE
from sanrobust.spec import digest_of

FOLDER, INDEX, SOURCE = "adversarial", "index.csv", "source.json"
NEEDED = ("file", "image", "label", "sha256")
"""Columns that every index has; others are those of the experiment's records."""
FILE_NAME = re.compile(rf"([0-9a-f]{{32}}-[1-9][0-9]{{0,5}})\.({'|'.join(SUFFIXES)})")
_FORM = 2
_UNGUARDED = 1
"""The form in which a name may look like a formula of a spreadsheet."""
_SEAL = "sha256"
_DIGEST = re.compile("[0-9a-f]{64}")
_INDEX_KIND = CsvKind("index of saved images", ("file", "image"), "sanrobust replay")
_SOURCE_KIND = CsvKind("source of saved images", ("", ""), "sanrobust replay")
_AGAIN = "restore the folder, or make the images anew with --save-adversarial --fresh"
_WHOLE, _NUMBER = re.compile(r"-?[0-9]{1,9}"), re.compile(r"[0-9.eE+-]{1,40}")

Budget = tuple[float | None, float | None, int | None]


def stem(image: str, number: int) -> str:
    """Return the name without suffix of the file of an image's ``number``-th row, from 1 on.

    It is of letters and digits whatever the image is called.
    """
    named = hashlib.sha256(image.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{named[:32]}-{number}"


@dataclass(frozen=True)
class Source:
    """The run that made the images.

    Attributes:
        spec: its specification.
        num_classes: logits of its model, of which labels and targets are indices.
        classes: their names; None when unknown.
        index_sha256: of the index.
        form: of the index.
    """

    spec: Mapping[str, Any]
    num_classes: int
    classes: tuple[str, ...] | None
    index_sha256: str
    form: int = _FORM

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return int(self.spec["preprocessing"]["img_size"])

    def write(self, folder: Path) -> None:
        """Write it into the folder of the images; raises OutputError."""
        facts = {"form": _FORM, "spec": self.spec, "num_classes": self.num_classes,
                 "classes": self.classes and list(self.classes), "index_sha256": self.index_sha256}
        sealed = {**facts, _SEAL: digest_of(facts)}
        write_text(folder / SOURCE, json.dumps(sealed, indent=2) + "\n")


def read_source(folder: Path) -> Source:
    """Read the source of the images in a folder; raises DataError where it is not as written."""
    path = folder / SOURCE
    try:
        facts = json.loads(read_bytes(path, _SOURCE_KIND).decode("utf-8"))
        if not isinstance(facts, dict) or facts.pop(_SEAL, None) != digest_of(facts):
            raise ValueError("it was changed after it was written")
        if facts["form"] not in (_UNGUARDED, _FORM):
            raise ValueError(f"it is of another version's form, {shown_value(facts['form'])}")
        _require_facts(facts)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("the source of saved images must be as it was written",
                        seen=f"{path} is not ({type(error).__name__}: {error})"[:300],
                        hint=_AGAIN) from error
    classes = facts["classes"]
    return Source(facts["spec"], facts["num_classes"], None if classes is None else tuple(classes),
                  facts["index_sha256"], facts["form"])


def _require_facts(facts: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError for facts of another kind."""
    spec, classes = facts["spec"], facts["classes"]
    texts = [spec[name] for name in ("experiment", "model", "weights", "data", "data_digest")]
    side, count, images = spec["preprocessing"]["img_size"], facts["num_classes"], spec["images"]
    if not all(isinstance(text, str) for text in (*texts, facts["index_sha256"])) \
            or not isinstance(spec["settings"], dict):
        raise ValueError("a fact in it is of another kind")
    for number, most in ((side, LARGEST_SIDE), (count, 1 << 30), (images, 1 << 40)):
        if type(number) is not int or not 1 <= number <= most:
            raise ValueError(f"{shown_value(number)} is no number that it can hold")
    if classes is not None and (len(classes) != count
                                or not all(isinstance(each, str) for each in classes)):
        raise ValueError("its classes are not as many as it says")


@dataclass(frozen=True, slots=True)
class Saved:
    """One file: an image as a model saw it under one budget.

    Attributes:
        file: its name.
        sha256: of its content.
        image, label: which image of which class it was made of.
        target: class it was to be taken for; None when it was led away from its label.
        budget: eps, step and iters, None for what there was not.
        clean_pred, adv_pred: what the model that it was made for said before and after; None
            where that was not recorded.
    """

    file: str
    sha256: str
    image: str
    label: int
    target: int | None
    budget: Budget
    clean_pred: int | None
    adv_pred: int | None

    def line(self) -> str:
        """Return all that it says, as one line of a digest."""
        return "\t".join(map(str, (self.image, self.label, self.target, self.budget,
                                   self.clean_pred, self.adv_pred, self.sha256)))

    def relabelled(self, places: Mapping[int, int]) -> Saved:
        """Return it with other class indices; what the new model does not know is -1."""
        def new(index: int | None) -> int | None:
            return None if index is None else places.get(index, -1)
        return replace(self, label=places[self.label], target=new(self.target),
                       clean_pred=new(self.clean_pred), adv_pred=new(self.adv_pred))


def read_index(folder: Path, source: Source) -> list[tuple[Saved, ...]]:
    """Return the files of each image, one per budget, in the order of the index.

    Raises DataError where the index is not as it was written, leads out of the folder, or names a
    file twice.
    """
    path = folder / INDEX
    content = read_bytes(path, _INDEX_KIND)
    if hashlib.sha256(content).hexdigest() != source.index_sha256:
        raise _wrong(path, "it was changed after it was written")
    images: dict[str, list[Saved]] = {}
    try:
        for row in _rows(path, content, source.form):
            images.setdefault(row.image, []).append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise _wrong(path, f"it is no CSV in UTF-8 ({error})") from error
    found = [row.file for rows in images.values() for row in rows]
    if len(set(found)) < len(found):
        raise _wrong(path, "two of its rows name one file")
    return [tuple(rows) for rows in images.values()]


def require_same_budgets(folder: Path, images: Sequence[Sequence[Saved]]) -> None:
    """Raise DataError where the images have not all the same budgets, each once, and one label."""
    budgets = [row.budget for rows in images[:1] for row in rows]
    if not budgets:
        raise _wrong(folder / INDEX, "it names no file")
    for rows in images:
        own = [row.budget for row in rows]
        if own != budgets or len(set(own)) < len(own) or len({row.label for row in rows}) > 1:
            raise _wrong(folder / INDEX, f"{shown(rows[0].image)} has not one file in each budget, "
                         "or has two labels")


def _rows(path: Path, content: bytes, form: int) -> Iterator[Saved]:
    stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", newline="")
    reader = csv.DictReader(stream, restval="", strict=True)
    lacking = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if lacking:
        raise _wrong(path, f"its first line lacks {', '.join(lacking)}")
    for cells in reader:
        try:
            name = cells["image"]
            yield _saved({**cells, "image": name if form == _UNGUARDED else unguarded(name)})
        except (ValueError, TypeError) as error:
            raise _wrong(path, f"line {reader.line_num}: {error}") from error


def _saved(cells: Mapping[str, str]) -> Saved:
    """Read one row; raises ValueError for what cannot stand in it."""
    if not FILE_NAME.fullmatch(cells["file"]):
        raise ValueError(f"{shown(cells['file'])} is no name of a saved image in the folder")
    if not _DIGEST.fullmatch(cells["sha256"]):
        raise ValueError(f"{shown(cells['sha256'])} is no SHA-256")
    label = _whole(cells["label"])
    if label is None or not cells["image"]:
        raise ValueError("an image or its label is missing")
    target, clean, adversarial = (_whole(cells.get(name, ""))
                                  for name in ("target", "clean_pred", "adv_pred"))
    budget = (_number(cells.get("eps", "")), _number(cells.get("step", "")),
              _whole(cells.get("iters", "")))
    return Saved(cells["file"], cells["sha256"], cells["image"], label, target, budget, clean,
                 adversarial)


def _whole(text: str) -> int | None:
    if text and not _WHOLE.fullmatch(text):
        raise ValueError(f"{shown_value(text)} is no whole number")
    return int(text) if text else None


def _number(text: str) -> float | None:
    if text and not _NUMBER.fullmatch(text):
        raise ValueError(f"{shown_value(text)} is no number")
    return float(text) if text else None


def _wrong(path: Path, seen: str) -> DataError:
    return DataError("the index of saved images must be as it was written",
                     seen=f"{path} is not ({seen})", hint=_AGAIN)
