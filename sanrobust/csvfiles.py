"""The one reader of the CSV files that a user writes: a name and a whole number in each row.

Labels, class maps and targets are such files. Names of images and folders are found whatever
Unicode form or slash they are written with.
"""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sanrobust.errors import DataError, shortened, shown_value
from sanrobust.files import open_regular
from sanrobust.harmless import bare

MAX_INDEX_DIGITS = 9
MOST_BYTES = 1 << 29
"""Largest file that is read: ten million rows, which take ten times as much in memory."""
LONGEST_LINE = 1 << 20
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class CsvKind:
    """What a file is to its user.

    Attributes:
        what: its name in a sentence, such as ``labels file``.
        columns: the column of names and that of whole numbers.
        option: the option that took the path.
    """

    what: str
    columns: tuple[str, str]
    option: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its last line in the file, the plain name and the whole number."""

    line: int
    name: str
    index: int


def read_bytes(path: Path, kind: CsvKind) -> bytes:
    """Return the file's bytes; raises DataError for one that is missing, or no regular file."""
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size > MOST_BYTES:
                raise _unreadable(path, kind, f"has more than {MOST_BYTES >> 20} MB")
            return stream.readall()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, kind, f"cannot be opened ({reason})") from error


def parse(content: bytes, path: Path, kind: CsvKind) -> list[Row]:
    """Read rows of the columns of ``kind`` from UTF-8 text; further columns are ignored.

    Raises DataError for other text, missing or repeated columns, a name that is empty, and an
    index that is not a whole number of 0 or more.
    """
    reader = csv.reader(_lines(content), strict=True)
    try:
        places = _places([column.strip() for column in next(reader, [])], path, kind)
        return [_row(cells, reader.line_num, places, path, kind) for cells in reader if cells]
    except UnicodeDecodeError as error:
        raise _no_csv(path, kind, f"is not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        seen = f"cannot be read after line {reader.line_num} ({error})"
        raise _no_csv(path, kind, seen) from error


def _lines(content: bytes) -> Iterator[str]:
    """Yield the lines one by one, so that a large file is in memory once."""
    stream = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
    while line := stream.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise csv.Error(f"a line has more than {LONGEST_LINE} characters")
        yield line


def read_rows(path: Path, kind: CsvKind) -> list[Row]:
    """Return the rows of a file; raises as `read_bytes` and `parse`."""
    return parse(read_bytes(path, kind), path, kind)


def by_name(rows: Iterable[Row], path: Path, kind: CsvKind, *,
            meant: Callable[[str], str] = lambda name: name) -> dict[str, int]:
    """Return the index of each name after ``meant`` has told what every name stands for.

    Raises DataError when two rows stand for the same thing, whatever their indices.
    """
    lines: dict[str, int] = {}
    indices: dict[str, int] = {}
    for row in rows:
        name = meant(row.name)
        if name in lines:
            raise DataError(f"the {kind.what} must name each {kind.columns[0]} once",
                            seen=f"lines {lines[name]} and {row.line} of {path.name} both name "
                                 f"{shown(name)}", hint="remove the extra rows")
        lines[name], indices[name] = row.line, row.index
    return indices


class Names:
    """Names that exist, found also in another Unicode form and with backslashes."""

    def __init__(self, present: Iterable[str]) -> None:
        self._present = frozenset(present)
        self._alike: dict[str, list[str]] = {}
        for name in self._present:
            self._alike.setdefault(same_form(name), []).append(name)

    def find(self, name: str) -> str | None:
        """Return the name that is meant: itself, else the only one that looks the same."""
        if name in self._present:
            return name
        alike = self._alike.get(same_form(name), [])
        return alike[0] if len(alike) == 1 else None


def same_form(name: str) -> str:
    """Return what names that look alike have in common: composed letters, plain slashes, and no
    apostrophe that our own tables put in front."""
    slashed = bare(name).replace("\\", "/")
    return plain(slashed if slashed.isascii() else unicodedata.normalize("NFC", slashed))


def plain(name: str) -> str:
    """Return a path without ``./`` and doubled slashes; an empty name stays empty."""
    if not name or not ("/." in name or "//" in name or name[0] == "." or name[-1] == "/"):
        return name  # nearly all of a million names
    return PurePosixPath(name).as_posix()


def counted(names: Sequence[str], noun: str) -> str:
    """Describe a list of offenders: how many, and which is the first."""
    if len(names) == 1:
        return f"1 {noun} is ({shown(names[0])})"
    return f"{len(names)} {noun}s are (the first is {shown(names[0])})"


def shown(name: str) -> str:
    """Return a name as it may be printed: short, and escaped where it has control characters."""
    return shortened(name if name.isprintable() else ascii(name))


def _places(header: list[str], path: Path, kind: CsvKind) -> tuple[int, int]:
    """Return where the two columns are."""
    key, value = kind.columns
    rule = f"the {kind.what} must have the columns {key},{value}"
    missing = [column for column in kind.columns if column not in header]
    if missing:
        marks = [word for mark, word in _OTHER_SEPARATORS.items() if mark in "".join(header)]
        separated = f", separated by commas instead of {marks[0]}" if marks else ""
        raise DataError(rule, seen=f"the first line of {path.name} lacks {', '.join(missing)}",
                        hint=f"name the columns in the first line{separated}")
    twice = [column for column in kind.columns if header.count(column) > 1]
    if twice:
        raise DataError(rule, seen=f"the first line of {path.name} has {twice[0]} twice",
                        hint="remove or rename one of them")
    return header.index(key), header.index(value)


def _row(cells: list[str], line: int, places: tuple[int, int], path: Path, kind: CsvKind) -> Row:
    name, text = (cells[place].strip() if place < len(cells) else "" for place in places)
    key, value = kind.columns
    if not name:
        raise DataError(f"every row of the {kind.what} must name one {key}",
                        seen=f"line {line} of {path.name} gives '' the {value} "
                             f"{shown_value(text)}",
                        hint="complete or remove the row")
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_INDEX_DIGITS):
        raise DataError(f"every {value} must be a whole number of 0 or more",
                        seen=f"line {line} of {path.name} has {shown_value(text)} for "
                             f"{shown(name)}",
                        hint="write the class index as it counts in the model's logits")
    return Row(line, plain(name), int(text))


def _no_csv(path: Path, kind: CsvKind, seen: str) -> DataError:
    return DataError(f"the {kind.what} must be CSV text in UTF-8", seen=f"{path.name} {seen}",
                     hint="save it as comma-separated UTF-8")


def _unreadable(path: Path, kind: CsvKind, seen: str) -> DataError:
    return DataError(f"the {kind.what} must be a readable file", seen=f"{path} {seen}",
                     hint=f"check the path given to {kind.option}")
