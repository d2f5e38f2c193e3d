"""The two label files a user may give: labels of a flat folder, and a map of class folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sanrobust.csvfiles import CsvKind, Names, by_name, plain, read_rows
from sanrobust.errors import DataError, shown_value

LABELS = CsvKind("labels file", ("file", "class_index"), "--labels")
CLASS_MAP = CsvKind("class map", ("folder", "class_index"), "--class-map")


def read_labels(path: Path, *, present: Iterable[str]) -> dict[str, int]:
    """Read ``file,class_index`` rows, further columns ignored, into class index by file name.

    Args:
        path: the CSV.
        present: paths of the files in the folder of images, with slashes. A row may name one in
            another Unicode form, or with backslashes.

    Raises DataError when the file cannot be read, lacks a column, names a file twice, holds an
    index that is not a whole number of 0 or more, or names a file outside the folder.
    """
    names = Names(present)

    def meant(name: str) -> str:
        _require_inside(name, path)
        return names.find(name) or name

    return by_name(read_rows(path, LABELS), path, LABELS, meant=meant)


def read_class_map(path: Path, *, present: Iterable[str]) -> dict[str, int]:
    """Read ``folder,class_index`` rows into class index by folder name; raises as `read_labels`."""
    names = Names(present)
    return by_name(read_rows(path, CLASS_MAP), path, CLASS_MAP,
                   meant=lambda name: names.find(name) or name)


def _require_inside(name: str, labels: Path) -> None:
    """Refuse a name that climbs out of the folder; links in the folder may lead anywhere."""
    if name[0] not in "./\\" and ".." not in name:
        return
    path = name.replace("\\", "/")
    if path.startswith("/") or ".." in path.split("/") or plain(path) in ("", "."):
        raise DataError("file names of the labels file must lead to files inside the folder",
                        seen=f"{labels.name} names {shown_value(name)}",
                        hint="write them relative to the folder given to --data")
