"""From the records of many runs to the tables of one folder; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust import metrics
from sanrobust.errors import OutputError, UnknownNameError
from sanrobust.records import Run, find_runs
from sanrobust.tables import Table, pgd_table, rotation_table, to_text, with_paper, write_table
from sanrobust.zoo import catalog

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, object]

DEMO_NOTE = ("Embedded demonstration: small networks on scikit-learn's 8x8 digits shown at 32 "
             "pixels; not comparable with ImageNet figures.")
FILE_NAMES = {"rotate": "rotation", "pgd": "pgd"}
_TABLES = {"rotate": rotation_table, "pgd": pgd_table}
_DOUBT = 0.99


@dataclass(frozen=True, eq=False)
class Summary:
    """The table of an experiment and where it was written.

    Attributes:
        table: the numbers, unformatted.
        files: the files written.
        remarks: what a reader should know besides, a sentence each.
    """

    table: Table
    files: tuple[Path, ...]
    remarks: tuple[str, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """The rows of the table."""
        return self.table.rows

    @property
    def text(self) -> str:
        """The table as people read it on a screen."""
        return to_text(self.table)


def rebuild(out: Path, experiment: str, *, paper: bool = False) -> Summary:
    """Write the tables of ``experiment`` from the records under ``out``.

    Of several runs with the same model, data and settings the newest complete one counts.

    Args:
        out: folder of the results.
        experiment: ``rotate`` or ``pgd``.
        paper: put the paper's values and the differences beside ours where it has them.

    Raises OutputError when there is no complete run or the files cannot be written.
    """
    runs = find_runs(out, experiment)
    complete = [run for run in runs if run.complete]
    if not complete:
        raise OutputError("a table must have a complete run", seen=f"{out} holds none",
                          hint=f"type sanrobust {experiment} --out {out}")
    rows = _newest(complete)
    note = DEMO_NOTE if any(row["data"] == "digits" for row in rows) else ""
    table = _TABLES[experiment](rows, note=note)
    if paper:
        table = with_paper(table)
    files = write_table(table, out, FILE_NAMES[experiment])
    remarks = (*_unfinished(runs), *_doubtful(table))
    return Summary(table, tuple(files), remarks)


def _newest(runs: Sequence[Run]) -> list[Row]:
    """Return the rows of all runs; a later run's row takes the place of an equal earlier one."""
    rows: dict[str, Row] = {}
    for run in runs:
        for row in _rows(run):
            rows[_identity(run, row)] = row
    return list(rows.values())


def _identity(run: Run, row: Row) -> str:
    settings = run.spec["settings"]
    assert isinstance(settings, dict)
    others = {name: value for name, value in settings.items() if name != "budgets"}
    parts = [run.spec["model"], run.spec["data"], run.spec["preprocessing"], others]
    return json.dumps([*parts, *(str(row.get(name)) for name in ("eps", "step", "iters"))])


def _rows(run: Run) -> Iterator[Row]:
    """Yield a run's rows: one for rotation, one per budget for attacks."""
    records = run.records()
    summaries: Sequence[Mapping[str, object]] = (
        [metrics.rotation_summary(records)] if run.experiment == "rotate"
        else metrics.pgd_summaries(records))
    for summary in summaries:
        yield {"model": run.spec["model"], "data": run.spec["data"], **summary,
               **_provenance(run)}


def _provenance(run: Run) -> Row:
    settings = run.spec["settings"]
    assert isinstance(settings, dict)
    shown = {name: value for name, value in settings.items() if name not in ("budgets", "views")}
    return {**shown, "weights": run.spec["weights"], "run_id": run.folder.name}


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        if not run.complete:
            yield (f"not in the table: {run.folder.name} is {run.header.get('status')}; "
                   "the command that started it goes on with it")


def _doubtful(table: Table) -> Iterator[str]:
    """Say where a clean accuracy does not fit the reported one: preprocessing or label order?"""
    column = "none_top1" if table.layout == "rotation" else "clean_top1"
    for _, row in table.rows.drop_duplicates(["model", "data"]).iterrows():
        reported = _reported(str(row["model"]), str(row["data"]))
        if not int(row["n"]):
            continue
        hits, images = round(float(row[column]) * int(row["n"]) / 100), int(row["n"])
        low, high = metrics.wilson(hits, images, _DOUBT)
        if reported is not None and not low <= reported <= high:
            yield (f"{row['model']} reaches {row[column]:.1f} % on clean {row['data']} where "
                   f"{reported:.1f} % is reported: check preprocessing and the order of labels")


def _reported(model: str, data: str) -> float | None:
    try:
        entry = catalog.find(model)
    except UnknownNameError:
        return None
    return entry.top1 if entry.data == data else None
