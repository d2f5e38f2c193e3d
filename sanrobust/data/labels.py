"""The two label files a user may give: labels of a flat folder, and a map of class folders."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sanrobust.errors import DataError

LABEL_COLUMNS = ("file", "class_index")
CLASS_MAP_COLUMNS = ("folder", "class_index")
MAX_INDEX_DIGITS = 9


def read_labels(path: Path) -> dict[str, int]:
    """Read ``file,class_index`` rows, further columns ignored, into class index by file name.

    Raises DataError when the file cannot be read, lacks a column, names a file twice, or holds an
    index that is not a whole number of 0 or more.
    """
    return _read(path, LABEL_COLUMNS, what="labels file", option="--labels")


def read_class_map(path: Path) -> dict[str, int]:
    """Read ``folder,class_index`` rows into class index by folder name; raises as `read_labels`."""
    return _read(path, CLASS_MAP_COLUMNS, what="class map", option="--class-map")


def _read(path: Path, columns: tuple[str, str], *, what: str, option: str) -> dict[str, int]:
    key, value = columns
    rows = _rows(path, columns, what=what, option=option)
    names = [name for _, name, _ in rows]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DataError(f"the {what} must name each {key} once",
                        seen=f"{counted(repeated, 'name')} more than once in {path.name}",
                        hint="remove the extra rows")
    indices = {}
    for number, name, text in rows:
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_INDEX_DIGITS):
            raise DataError(f"every {value} must be a whole number of 0 or more",
                            seen=f"line {number} of {path.name} has {text!r} for {name}",
                            hint="write the class index as it counts in the model's logits")
        indices[name] = int(text)
    return indices


def _rows(path: Path, columns: tuple[str, str], *, what: str,
          option: str) -> list[tuple[int, str, str]]:
    """Return (line number, name, index text) of each row."""
    key, value = columns
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"the {what} must have the columns {key},{value}",
                                seen=f"the first line of {path.name} lacks {', '.join(missing)}",
                                hint="name the columns in the first line")
            return [(reader.line_num, (row[key] or "").strip(), (row[value] or "").strip())
                    for row in reader]
    except OSError as error:
        raise DataError(f"the {what} must be a readable file",
                        seen=f"{path} is not ({error.strerror})",
                        hint=f"check the path given to {option}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the {what} must be CSV text in UTF-8",
                        seen=f"{path.name} is not ({error})",
                        hint="save it as comma-separated UTF-8") from error


def counted(names: Sequence[str], noun: str) -> str:
    """Describe a list of offenders: how many, and which is the first."""
    if len(names) == 1:
        return f"1 {noun} is ({names[0]})"
    return f"{len(names)} {noun}s are (the first is {names[0]})"
