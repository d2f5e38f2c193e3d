"""Runs as they lie on disk: their header, whether they are whole, and which measured the same."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sanrobust.errors import OutputError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.records import (HEADER_NAME, RECORDS_FOLDER, RESTORE, RUNS_FOLDER, Said, State,
                               failed_images, ids_digest, is_whole, read_header, read_records,
                               starts_of, state_of)
from sanrobust.registry import did_you_mean
from sanrobust.spec import digest_of

if TYPE_CHECKING:
    import pandas as pd

COMPLETE = "complete"
ORDER = "order"
"""Key of a header under which stands the run's number in the order of first starts."""
TABLES_LOCK_NAME = "tables.lock"
TABLES_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """One run found on disk.

    Attributes:
        folder: where it lies.
        header: content of ``run.json``.
    """

    folder: Path
    header: Mapping[str, object]

    @property
    def name(self) -> str:
        """Name of its folder, by which it can be asked for."""
        return self.folder.name

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str(self.spec["experiment"])

    @property
    def spec(self) -> Mapping[str, object]:
        """The specification as written."""
        value = self.header["spec"]
        assert isinstance(value, dict)
        return value

    @property
    def settings(self) -> Mapping[str, object]:
        """The experiment's own settings."""
        value = self.spec.get("settings")
        return value if isinstance(value, dict) else {}

    @property
    def complete(self) -> bool:
        """Whether it is said, or seems, to have the records of every image; `records` makes sure.

        Who finished the last block may have been stopped before it could say so.
        """
        return self.header.get("status") == COMPLETE or is_whole(self.folder, self.header)

    @property
    def state(self) -> State:
        """How far it is; raises OutputError where its files do not read back."""
        return state_of(self.folder, self.header)

    @property
    def failed(self) -> int:
        """How many of its images are recorded as failed; raises OutputError as `state`."""
        return failed_images(self.folder, self.header)

    @property
    def starts(self) -> list[Said]:
        """What the processes that measure or measured it said of themselves last."""
        return starts_of(self.folder)

    @property
    def order(self) -> int:
        """Its number in the order of first starts; 0 for runs of earlier versions."""
        order = self.header.get(ORDER, 0)
        return order if isinstance(order, int) else 0

    @property
    def last_start(self) -> Mapping[str, object]:
        """How the run was computed when it was last started: device, versions, batch size."""
        starts = self.starts
        return starts[-1].facts if starts else self._first_facts

    @property
    def source(self) -> object:
        """From where its weights came."""
        return self._first_facts.get("weights_source")

    @property
    def _first_facts(self) -> Mapping[str, object]:
        # Earlier versions kept an entry for each start, and before that only those of the first.
        starts = self.header.get("starts")
        return starts[-1] if isinstance(starts, list) and starts else self.header

    @property
    def measured(self) -> str:
        """When its last record was written, as people read it."""
        updated = str(self.header.get("updated") or self.header.get("started") or "")
        return f"{updated[:16].replace('T', ' ')} UTC" if updated else "an unknown time"

    def again(self, *more: str) -> str:
        """Return what starts or goes on with all of this run, where it lies now."""
        command = self.header.get("command")
        if not isinstance(command, str) or not command:
            return "make the call again that made this run"
        words, out = _without_part(shlex.split(command)), str(self.folder.parents[1])
        if "--out" in words[:-1]:
            words[words.index("--out") + 1] = out
        else:
            words += ["--out", out]
        return f"type {shlex.join([*words, *more])}"

    def remarks(self) -> Iterator[str]:
        """Yield what a reader of its numbers must know besides, a sentence each."""
        for key in ("assumed", "left_out", "probe"):
            value = self.header.get(key)
            yield from [str(each) for each in value] if isinstance(value, list) else []

    def records(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Return all rows in the order in which they were measured.

        Args:
            columns: which columns to read, see `read_records`; None reads all.

        Raises OutputError on damage, and for a run said to be complete that lacks images or has
        others than its own.
        """
        try:
            table = read_records(self.folder, self.experiment, digest_of(self.spec),
                                 columns=columns)
        except OutputError as error:
            if error.hint != RESTORE:
                raise
            raise OutputError(error.rule, seen=error.seen, hint="restore the file, or delete it "
                              f"and {self.again()}, which measures its images") from error
        if self.complete:
            self._require_whole(set(table.column("image").unique().to_pylist()))
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def _require_whole(self, recorded: set[str]) -> None:
        wanted, digest = self.spec.get("images"), self.header.get("ids_digest")
        if len(recorded) == wanted and digest in (None, ids_digest(recorded)):
            return
        seen = (f"{self.folder} holds {len(recorded)} of {wanted}" if len(recorded) != wanted
                else f"{self.folder} holds some of other images")
        hint = f"{self.again()}, which measures the missing ones"
        raise OutputError("a complete run must hold the records of all its images", seen=seen,
                          hint=hint if isinstance(wanted, int) and len(recorded) < wanted
                          else self.again("--fresh"))

    def is_being_written(self) -> bool:
        """Return whether a process measures the run at this moment."""
        return any(each.alive for each in self.starts)


@dataclass(frozen=True)
class Found:
    """What lies under a folder of results.

    Attributes:
        runs: the runs whose header reads back, oldest first.
        damaged: what is wrong with each of the others.
    """

    runs: tuple[Run, ...]
    damaged: tuple[OutputError, ...]

    @property
    def empty(self) -> bool:
        """Whether there is nothing at all, whole or damaged."""
        return not (self.runs or self.damaged)


def find_runs(out: Path, experiment: str) -> Found:
    """Find the runs of ``experiment`` under ``out``; a damaged one hides no other."""
    runs, damaged = [], []
    for folder in _run_folders(out):
        try:
            run = open_run(folder)
        except OutputError as error:
            # Whose it was is told by the name of its folder, if by anything.
            if folder.name.startswith(f"{experiment}-") or "-" not in folder.name:
                damaged.append(error)
            continue
        if run.experiment == experiment:
            runs.append(run)
    return Found(tuple(sorted(runs, key=_age)), tuple(damaged))


def strange_runs(out: Path) -> Iterator[str]:
    """Say of each run of an experiment that is not here why it cannot be shown."""
    known = tuple(f"{name}-" for name in EXPERIMENTS.names())
    for folder in _run_folders(out):
        if not folder.name.startswith(known) and "-" in folder.name:
            try:
                open_run(folder)
            except OutputError as error:
                yield f"not in a table: {error}"


def all_runs(out: Path) -> Iterator[Run]:
    """Yield the runs of every experiment under ``out`` whose header reads back."""
    return iter(every_run(out).runs)


def every_run(out: Path) -> Found:
    """Find the runs of every experiment under ``out``, oldest first; none hides another."""
    runs, damaged = [], []
    for folder in _run_folders(out):
        try:
            runs.append(open_run(folder))
        except OutputError as error:
            damaged.append(error)
    return Found(tuple(sorted(runs, key=_age)), tuple(damaged))


def require_runs(out: Path) -> Found:
    """Return the runs of every experiment under ``out``; raises OutputError where none lies."""
    if not os.path.isdir(out):
        raise OutputError("a folder of results must be there", seen=f"there is no folder {out}",
                          hint="name another one, or measure into it with --out")
    found = every_run(out)
    if found.empty:
        raise OutputError("a folder of results must hold runs", seen=f"{out} holds none",
                          hint="name another one, or measure into it: sanrobust rotate --out "
                               f"{shlex.quote(str(out))}")
    return found


def _run_folders(out: Path) -> list[Path]:
    try:
        return sorted(path for path in (out / RUNS_FOLDER).iterdir()
                      if (path / HEADER_NAME).exists() or any(path.glob(f"{RECORDS_FOLDER}/*")))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError("the folder of results must be readable",
                          seen=f"{out} is not ({error.strerror})",
                          hint="name another one with --out") from error


def open_run(folder: Path) -> Run:
    """Return the run in ``folder``; raises OutputError when its header does not read back."""
    return Run(folder, read_header(folder / HEADER_NAME))


@contextmanager
def tables_locked(out: Path) -> Iterator[None]:
    """Keep other commands from making tables of ``out`` while the block reads runs and writes one.

    So the table of the command that ends last stands there, and it knows what others recorded.
    Raises OutputError when another one takes too long.
    """
    folder = out / RUNS_FOLDER
    if not folder.is_dir():
        yield
        return
    lock = FileLock(folder / TABLES_LOCK_NAME, timeout=TABLES_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError("one command at a time may write tables",
                          seen=f"another one has been writing those of {out} for "
                               f"{TABLES_SECONDS:g} s",
                          hint=f"when it has ended type sanrobust table --out "
                               f"{shlex.quote(str(out))}") from None
    except (OSError, NotImplementedError):  # no locks here; if no files either, writing will tell
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _without_part(words: Sequence[str]) -> list[str]:
    """Return the words of a command that measures every part."""
    return [word for before, word in zip(("", *words), words)
            if before != "--shard" and not re.fullmatch("--shard(=.*)?", word)]


def identity(run: Run, row: Mapping[str, object]) -> str:
    """Return what decides the numbers of a row: rows of equal identity measure the same.

    That is the whole specification, with the row's own part (the budget of an attack) in place of
    the run's list of them: they do not change each other's numbers.
    """
    experiment = EXPERIMENTS.get(run.experiment)
    settings = {name: value for name, value in run.settings.items()
                if name not in experiment.told_by_rows}
    part = [str(row.get(name)) for name in experiment.layout.parts]
    return json.dumps([{**run.spec, "settings": settings}, part], sort_keys=True)


def _age(run: Run) -> tuple[int, str, int, str]:
    attempt = run.name.rpartition(".")[2]
    return (run.order, str(run.header.get("started", "")),
            int(attempt) if attempt.isdecimal() else 0, run.name)


def select(runs: Sequence[Run], *, names: Sequence[str] = (), models: Sequence[str] = (),
           data: Sequence[str] = ()) -> tuple[Run, ...]:
    """Return the runs whose folder, model and data are among those named; none named means any.

    A folder may be named by its beginning or its digest, which later attempts share, a model as
    `models_meant` says.
    """
    there = {str(run.spec.get("model")) for run in runs}
    meant = {model for name in models for model in models_meant(name, there)}

    def wanted(run: Run) -> bool:
        digest = run.name.rpartition("-")[2]
        return (_any(names, lambda each: run.name.startswith(each)
                     or each in (digest, digest.partition(".")[0]))
                and (not models or str(run.spec.get("model")) in meant)
                and _any(data, lambda each: each == run.spec.get("data")))
    return tuple(run for run in runs if wanted(run))


def models_meant(name: str, models: Collection[str]) -> set[str]:
    """Return which of the models a name means: by full name, by architecture, or as tables print
    it, of which case is told apart only where that finds one."""
    spellings = {model: {model, *_architecture(model), *_printed(model)} for model in models}
    exact = {model for model, own in spellings.items() if name in own}
    return exact or {model for model, own in spellings.items()
                     if name.casefold() in map(str.casefold, own)}


def _architecture(model: str) -> Iterator[str]:
    """Yield all that a full name begins with up to a full stop."""
    return (model[:place] for place, letter in enumerate(model) if letter == ".")


def _printed(model: str) -> Iterator[str]:
    from sanrobust.tables.entries import label_of  # which loads pandas
    label, tag = label_of(model), model.partition(".")[2]
    yield label
    if tag and label != model:
        yield f"{label} ({tag})"


def near(name: str, models: Iterable[str]) -> str:
    """Do as `did_you_mean`, with every name that a model has."""
    known = [spelling for model in models
             for spelling in (*_printed(model), model, *_architecture(model))]
    return did_you_mean(name, known)


def _any(named: Sequence[str], test: Callable[[str], bool]) -> bool:
    return not named or any(map(test, named))
