"""Tables that other commands left in a folder and that a page shows as they are."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from sanrobust.csvfiles import CsvKind, read_bytes
from sanrobust.errors import DataError, OutputError
from sanrobust.experiments.layout import Listing

VALIDITY = "check*.csv"
"""Where verdicts on the validity of attacks lie in a folder of results."""
FOR_PROGRAMS = "numbers"
"""The column that a page leaves out: what stands behind a verdict, for programs."""
MOST_ROWS = 500
_KIND = CsvKind("table of verdicts", ("", ""), "OUT")


def verdicts(out: Path) -> Iterator[Listing]:
    """Yield the tables of verdicts on attacks in a folder; raises OutputError for a damaged one."""
    for path in sorted(out.glob(VALIDITY)):
        try:
            text = read_bytes(path, _KIND).decode("utf-8-sig")
            rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
        except (DataError, UnicodeDecodeError, csv.Error) as error:
            raise _damaged(path, str(error)) from error
        if not rows or any(len(row) != len(rows[0]) for row in rows):
            raise _damaged(path, "its rows have not all as many cells as the first")
        shown = [place for place, name in enumerate(rows[0]) if name != FOR_PROGRAMS]
        rows = [tuple(row[place] for place in shown) for row in rows]
        more = len(rows) - 1 - MOST_ROWS
        title = path.name + (f", the first {MOST_ROWS} of {len(rows) - 1} rows" if more > 0 else "")
        yield Listing(title, rows[0], tuple(rows[1:MOST_ROWS + 1]), stubs=len(rows[0]))


def _damaged(path: Path, seen: str) -> OutputError:
    return OutputError("a table of verdicts must be a CSV", seen=f"{path} is none ({seen})",
                       hint="write it anew, or remove it")
