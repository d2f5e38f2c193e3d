"""From the records of runs to one table and its files; loads no torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust import metrics
from sanrobust.errors import (FailedImagesError, OutputError, SanrobustError, UnknownNameError,
                              UsageError, shown_value)
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.processes import uninterrupted
from sanrobust.registry import did_you_mean
from sanrobust.runs import Run, find_runs, identity, near, select, tables_locked
from sanrobust.tables import Table, make_table, to_text, with_paper, write_table
from sanrobust.zoo import catalog

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, object]

DEMO_NOTE = ("Embedded demonstration: small networks on scikit-learn's 8x8 digits shown at 32 "
             "pixels; not comparable with ImageNet figures.")
_DOUBT = 0.99
_NAMED, _LISTED = 5, 12


@dataclass(frozen=True, eq=False)
class Summary:
    """The table of an experiment and where it was written.

    Attributes:
        table: the numbers, unformatted.
        files: the files written.
        remarks: what a reader should know besides, a sentence each.
        problem: why the table, though true, is not all that was asked for; None when it is.
        runs: those whose rows it has.
    """

    table: Table
    files: tuple[Path, ...]
    remarks: tuple[str, ...]
    problem: SanrobustError | None = None
    runs: tuple[Run, ...] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """The rows of the table."""
        return self.table.rows

    @property
    def text(self) -> str:
        """The table as people read it on a screen."""
        return to_text(self.table)


@dataclass(frozen=True)
class Selection:
    """Which runs a table shows; what is empty leaves none out.

    Attributes:
        runs: names of their folders, or how those begin or end.
        models: full names, or architectures alone.
        data: names of datasets.
    """

    runs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


def summarise(runs: Sequence[Run], out: Path, *, max_failed: float = 1.0) -> Summary:
    """Write the table of these runs alone, in their order.

    Args:
        runs: complete runs of one experiment, at least one.
        out: folder of the files, which replace those of an earlier table.
        max_failed: part of a run's images that may fail before the summary has a problem.

    Raises OutputError when records do not read back or the files cannot be written.
    """
    with tables_locked(out):
        rows = [row for run in runs for row in _rows(run)]
        table = _table(EXPERIMENTS.get(runs[0].experiment), rows)
        files = _write(table, out)
    return Summary(table, tuple(files), (*_others(runs, out), *_doubtful(table)),
                   _too_many_failed(table, max_failed), tuple(runs))


@dataclass(frozen=True)
class Unfinished:
    """What a process has to say that measured its part while others were not ready.

    Attributes:
        lines: what is missing, and who prints the table.
        problem: why a part of what was asked for was not measured; None when all was.
    """

    lines: tuple[str, ...]
    problem: SanrobustError | None


def summarise_parts(runs: Sequence[Run], out: Path, *, max_failed: float,
                    problem: SanrobustError | None) -> Summary | Unfinished:
    """Do as `summarise` if every run is complete, else say which are not; ``problem`` goes first.
    """
    lines = [f"no table yet: {unfinished(each)}" for each in runs if not each.complete]
    if lines:
        return Unfinished((*lines, "the part that ends last writes the table; sanrobust table "
                           f"--out {shlex.quote(str(out))} does so at any time"), problem)
    summary = summarise(runs, out, max_failed=max_failed)
    return replace(summary, problem=problem) if problem else summary


def rebuild(out: Path, experiment: str, *, chosen: Selection = Selection(),
            paper: bool = False) -> Summary:
    """Write the table of the complete runs under ``out``; the newest of several equal ones counts.

    Args:
        out: folder of the results.
        experiment: name of what was measured.
        chosen: which runs to show.
        paper: put the paper's values and the differences beside ours where it has them.

    A run that does not read back is left out, and is the summary's problem. Raises OutputError
    when no complete run can be shown or the files cannot be written, UsageError for a choice that
    fits no run.
    """
    with tables_locked(out):
        made = _rebuilt(out, experiment, chosen, paper=paper)
        return replace(made, files=tuple(_write(made.table, out)))


def gather(out: Path, experiment: str, *, chosen: Selection = Selection()) -> Summary:
    """Do as `rebuild`, with the paper's values where they fit, and write nothing."""
    with tables_locked(out):
        made = _rebuilt(out, experiment, chosen, paper=False)
    with suppress(UsageError):  # that none fits
        return replace(made, table=with_paper(made.table))
    return made


def _rebuilt(out: Path, experiment: str, chosen: Selection, *, paper: bool) -> Summary:
    found = find_runs(out, experiment)
    asked = select(found.runs, names=chosen.runs, models=chosen.models, data=chosen.data)
    if found.runs and not asked:
        problem = damage(found.damaged)
        if problem is not None:  # may have been what was asked for
            raise problem
        raise UsageError("a table must have a run that was asked for",
                         seen=f"no run of {experiment} under {out} is of all that was chosen",
                         hint="leave out --run, --model or --data")
    table_rows = _Rows()
    for run in asked:
        if run.complete:
            table_rows.add(run)
    damaged = (*found.damaged, *table_rows.damaged)
    if not table_rows.rows:
        raise damage(damaged) or _nothing_complete(asked, experiment, out)
    table = _table(EXPERIMENTS.get(experiment), list(table_rows.rows.values()))
    if paper:
        table = with_paper(table)
    remarks = (*_unmatched(found.runs, chosen, experiment), *_unchosen(found.runs, asked),
               *table_rows.superseded(), *_unfinished(asked),
               *(f"not in the table: {error}" for error in damaged), *_doubtful(table))
    return Summary(table, (), remarks, damage(damaged), table_rows.runs)


def _write(table: Table, out: Path) -> list[Path]:
    with uninterrupted():  # all files of a table or none
        return write_table(table, out)


@dataclass
class _Rows:
    """The rows of several runs; of rows that measured the same the last one added stands."""

    rows: dict[str, Row] = field(default_factory=dict)
    damaged: list[OutputError] = field(default_factory=list)
    _holders: dict[str, Run] = field(default_factory=dict)
    _replaced: dict[str, tuple[Run, Run]] = field(default_factory=dict)

    def add(self, run: Run) -> None:
        """Add a run's rows, or note why they cannot be had."""
        try:
            rows = list(_rows(run))
        except OutputError as error:
            self.damaged.append(error)
            return
        for row in rows:
            key = identity(run, row)
            if key in self._holders:
                self._replaced[self._holders[key].name] = self._holders[key], run
            self.rows.pop(key, None)
            self.rows[key], self._holders[key] = row, run

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs that have a row, each once."""
        return tuple({run.folder: run for run in self._holders.values()}.values())

    def superseded(self) -> Iterator[str]:
        """Say which runs lost rows to newer ones that measured the same."""
        for old, new in self._replaced.values():
            part = "part of " if old in self._holders.values() else ""
            yield (f"not in the table: {part}{old.name} (measured {old.measured}), because "
                   f"{new.name} measured the same later")


def _table(experiment: Experiment, rows: Sequence[Row]) -> Table:
    note = DEMO_NOTE if any(row["data"] == "digits" for row in rows) else ""
    return make_table(experiment, rows, note=note)


def _rows(run: Run) -> Iterator[Row]:
    """Yield a run's rows, one for each part."""
    experiment = EXPERIMENTS.get(run.experiment)
    for summary in experiment.summarise(run.records(experiment.records.read), run.settings):
        yield {"model": run.spec["model"], "data": run.spec["data"], **summary,
               **provenance(run, experiment)}


def provenance(run: Run, experiment: Experiment) -> Row:
    """Return everything that decides a run's numbers, and where they are."""
    spec = run.spec
    shown = {name: value for name, value in run.settings.items()
             if name not in experiment.told_by_rows}
    remarks = list(run.remarks())
    return {
        **shown, "data_digest": spec["data_digest"], "precision": spec.get("precision"),
        "preprocessing": json.dumps(spec["preprocessing"]), "code": spec.get("code"),
        "source": run.source,
        "remarks": json.dumps(remarks, ensure_ascii=False) if remarks else "",
        "weights": spec["weights"], "run_id": run.name,
    }


def require_known(out: Path, experiments: Sequence[str], chosen: Selection) -> None:
    """Raise UsageError for a choice that fits no run of any of the experiments."""
    found = [find_runs(out, name) for name in experiments]
    runs = [run for each in found for run in each.runs]
    if any(each.damaged for each in found):
        return  # one of those may be meant, which the tables will name
    for option, value in _choices(chosen):
        if runs and not _fits(runs, option, value):
            there = {"--run": {run.name for run in runs},
                     "--model": {str(run.spec["model"]) for run in runs},
                     "--data": {str(run.spec["data"]) for run in runs}}[option]
            close = near(value, there) if option == "--model" else did_you_mean(value, there)
            raise UsageError(f"{option} must fit a run under {out}",
                             seen=f"none fits {shown_value(value)}",
                             hint=f"{close}there are {_some(sorted(there))}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def _choices(chosen: Selection) -> Iterator[tuple[str, str]]:
    named = {"--run": chosen.runs, "--model": chosen.models, "--data": chosen.data}
    return ((option, value) for option, values in named.items() for value in values)


def _fits(runs: Sequence[Run], option: str, value: str) -> tuple[Run, ...]:
    kind = {"--run": "names", "--model": "models", "--data": "data"}[option]
    return select(runs, **{kind: (value,)})


def _unmatched(runs: Sequence[Run], chosen: Selection, experiment: str) -> Iterator[str]:
    for option, value in _choices(chosen):
        if not _fits(runs, option, value):
            yield f"no run of {experiment} fits {option} {value}"


def _nothing_complete(asked: Sequence[Run], experiment: str, out: Path) -> OutputError:
    unfinished = list(_unfinished(asked))
    if unfinished:
        first = unfinished[0].removeprefix("not in the table: ")
        seen, _, hint = first.partition("; ")
        return OutputError("a table must have a complete run", seen=seen,
                           hint=hint or "wait for it")
    return OutputError("a table must have a complete run", seen=f"{out} holds none",
                       hint=f"type sanrobust {experiment} --out {shlex.quote(str(out))}")


def _others(runs: Sequence[Run], out: Path) -> Iterator[str]:
    """Say that a folder holds more than a command's own runs."""
    shown = {run.folder.resolve() for run in runs}
    others = [run for run in find_runs(out, runs[0].experiment).runs
              if run.complete and run.folder.resolve() not in shown]
    if others:
        yield (f"{len(others)} earlier {'run is' if len(others) == 1 else 'runs are'} not in this "
               f"table; sanrobust table --out {shlex.quote(str(out))} shows every complete run")


def _unchosen(runs: Sequence[Run], asked: Sequence[Run]) -> Iterator[str]:
    left_out = [run.name for run in runs if run not in asked]
    if left_out:
        yield f"not asked for: {', '.join(left_out)}"


def _unfinished(runs: Sequence[Run]) -> Iterator[str]:
    return (f"not in the table: {unfinished(run)}" for run in runs if not run.complete)


def unfinished(run: Run) -> str:
    """Say how far a run is, and how it goes on where nobody measures it."""
    try:
        done = f"{run.state.recorded} of {run.spec['images']} images"
    except OutputError as error:
        done = f"records that do not read back ({error.seen})"
    if run.is_being_written():
        return f"{run.name} is being measured now, {done} so far"
    last = run.starts[-1].facts if run.starts else run.header
    status = str(last.get("status", "running"))
    ended = {"running": "ended without a word (killed, or its disk was full)",
             "failed": "ended with an error",
             "done": "waits for its other parts"}.get(status, f"was {status}")
    reason = last.get("problem")
    return (f"{run.name} {ended} after {done}{f' ({reason})' if reason else ''}; {run.again()} "
            "to go on")


def damage(damaged: Sequence[OutputError]) -> SanrobustError | None:
    """Return the one error that tells of several runs that do not read back; None for none."""
    if len(damaged) < 2:
        return damaged[0] if damaged else None
    seen = "; ".join(error.seen for error in damaged[:_NAMED])
    more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
    return OutputError("every run must read back", seen=f"{len(damaged)} do not: {seen}{more}",
                       hint=damaged[0].hint)


def _too_many_failed(table: Table, max_failed: float) -> SanrobustError | None:
    for row in table.rows.to_dict(orient="records"):
        failed, images = int(row["failed"]), int(row["n"]) + int(row["failed"])
        if images and failed / images > max_failed:
            return FailedImagesError(
                f"at most {100 * max_failed:g} % of the images may fail",
                seen=f"{failed} of {images} did with {row['model']}",
                hint="see the reasons below the table and mend images or model, or pass "
                     "--max-failed with a larger part if so few survivors are what you want")
    return None


def _doubtful(table: Table) -> Iterator[str]:
    """Say where a clean accuracy does not fit the reported one: preprocessing or label order?"""
    column = table.layout.clean
    alike = [table.layout.as_reported({str(name): value for name, value in row.items()})
             for row in table.rows.to_dict(orient="records")]
    for _, row in table.rows[alike].drop_duplicates(["model", "data"]).iterrows():
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
