"""One command as several processes of this machine, each of which measures its part."""

from __future__ import annotations

import os
import secrets
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sanrobust import allocator
from sanrobust.choices import DataConfig, ModelConfig, RunConfig
from sanrobust.errors import MachineError, SanrobustError
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.processes import become_worker, stops_held, workers_ended_on_error
from sanrobust.progress import Reporter
from sanrobust.run import measure_part, tabulate
from sanrobust.shards import Shard
from sanrobust.summary import Summary, Unfinished
from sanrobust.trouble import machine_error

PATIENCE_S = 30.0
"""How long processes that are told to stop may take to save what they have."""

Measured = tuple[tuple[Path, ...], dict[str, SanrobustError]]


def run_in_processes(processes: int, experiment: Experiment, settings: object, models: ModelConfig,
                     data: Sequence[DataConfig], how: RunConfig, reporter: Reporter
                     ) -> Summary | Unfinished:
    """Do as `sanrobust.run.run_part` in several processes, and return the table of them all.

    Where one fails the others save what they have, end, and its error is raised. Raises
    MachineError where one is ended from outside.
    """
    reporter.say(f"{processes} processes share the images")
    threads = how.threads or max(1, (os.cpu_count() or 1) // processes)
    launch = f"processes {secrets.token_hex(8)}"
    parts = [replace(how, threads=threads, shard=Shard(index, processes, local=index,
                                                       launch=launch))
             for index in range(processes)]
    with workers_ended_on_error(), _started([(experiment.name, settings, models, data, part)
                                             for part in parts]) as workers:
        measured = _follow(workers, reporter)
    folders = dict.fromkeys(folder for each, _ in measured for folder in each)
    failed = {name: error for _, errors in measured for name, error in errors.items()}
    return tabulate(tuple(folders), failed, how)


@dataclass
class _Worker:
    """A process and what it sends."""

    process: BaseProcess
    said: Connection


@contextmanager
def _started(tasks: Sequence[tuple[Any, ...]]) -> Iterator[list[_Worker]]:
    """Start a process for each task; at the end, tell those that still run to save and stop."""
    # A forked process would share the parent's threads, which do not survive a fork.
    context = get_context("spawn")
    workers: list[_Worker] = []
    try:
        with stops_held():  # which would end them with a traceback before they can ignore it
            for task in tasks:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(theirs, *task))
                process.start()
                theirs.close()
                workers.append(_Worker(process, ours))
        yield workers
    finally:
        _stop(workers)


def _stop(workers: Sequence[_Worker]) -> None:
    until = time.monotonic() + PATIENCE_S
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    for worker in workers:
        # One that waits for somebody to read what it says would never end.
        while worker.process.is_alive() and time.monotonic() < until:
            with suppress(EOFError, OSError):
                while worker.said.poll():
                    worker.said.recv_bytes()
            worker.process.join(0.05)
        worker.process.kill()
        worker.process.join()


def _follow(workers: Sequence[_Worker], reporter: Reporter) -> list[Measured]:
    """Pass on what processes say until all have measured their part; raises the first error."""
    together = _Together(reporter, len(workers))
    told: set[str] = set()
    measured: dict[int, Measured] = {}
    open_ends = {worker.said: number for number, worker in enumerate(workers)}
    try:
        while open_ends:
            for said in connection.wait(list(open_ends)):
                assert isinstance(said, Connection)
                kind, value = _heard(said)
                number = open_ends[said]
                if kind == "say" and value not in told:
                    told.add(value)
                    reporter.say(value)
                elif kind == "progress":
                    together.hear(number, *value)
                elif kind == "measured":
                    measured[number] = value
                    del open_ends[said]
                elif kind == "error":
                    raise value
    finally:
        together.end()
    return [measured[number] for number in sorted(measured)]


def _heard(said: Connection) -> tuple[str, Any]:
    try:
        kind, value = said.recv()
    except (EOFError, OSError):
        raise MachineError("the processes of a command must stay alive",
                           seen="one was ended from outside",
                           hint="type the same command again, with fewer --processes if memory "
                                "ran out; what was measured is saved") from None
    return str(kind), value


def _work(said: Connection, name: str, settings: object, models: ModelConfig,
          data: Sequence[DataConfig], how: RunConfig) -> None:
    """Be one of the processes: measure a part and send what is to be told."""
    become_worker()
    allocator.tune()
    reporter = Reporter(say=lambda text: said.send(("say", text)), progress=_Far(said))
    try:
        said.send(("measured", measure_part(EXPERIMENTS.get(name), settings, models, data, how,
                                            reporter)))
    except SanrobustError as error:
        said.send(("error", error))
    except Exception as error:
        problem = machine_error(error)
        if problem is None:
            traceback.print_exc()
            problem = MachineError("every process of a command must end without an exception",
                                   seen=f"one stopped with {type(error).__name__}",
                                   hint="report it with the lines printed above")
        said.send(("error", problem))


class _Far:
    """A progress that is shown by the process which started this one."""

    def __init__(self, said: Connection) -> None:
        self._said = said

    def begin(self, title: str, *, total: int, done: int) -> None:
        self._said.send(("progress", ("begin", title, total, done)))

    def advance(self, images: int) -> None:
        self._said.send(("progress", ("advance", "", images, 0)))

    def beat(self) -> None:
        """Say nothing: there are others."""

    def end(self) -> None:
        self._said.send(("progress", ("end", "", 0, 0)))


class _Together:
    """The progress of several processes as one: a run is shown once all of them have begun it.

    Args:
        reporter: who shows it.
        count: how many processes there are.
    """

    def __init__(self, reporter: Reporter, count: int) -> None:
        self._progress, self._count = reporter.progress, count
        self._titles: dict[int, str] = {}
        self._images: dict[str, dict[int, tuple[int, int]]] = {}
        self._at_work: set[int] = set()
        self._shown: str | None = None

    def hear(self, number: int, what: str, title: str, images: int, done: int) -> None:
        """Take in what one process said."""
        if what == "begin":
            self._begin(number, title, images, done)
        elif (run := self._titles.get(number)) is not None and what == "advance":
            total, before = self._images[run][number]
            self._images[run][number] = total, before + images
            if run == self._shown:
                self._progress.advance(images)
        elif run is not None:
            del self._titles[number]
            self._at_work.discard(number)
            if run == self._shown and not self._at_work:
                self.end()

    def _begin(self, number: int, title: str, images: int, done: int) -> None:
        run, _, rest = title.partition(", part ")
        if "," in rest:  # blocks of other parts, which these count themselves
            return
        self._titles[number] = run
        known = self._images.setdefault(run, {})
        known[number] = images, done
        if self._shown is None and len(known) == self._count:
            self._shown = run
            self._at_work = {each for each, its_run in self._titles.items() if its_run == run}
            totals, dones = zip(*known.values())
            self._progress.begin(run, total=sum(totals), done=sum(dones))

    def end(self) -> None:
        """Stop showing what is shown."""
        if self._shown is not None:
            self._shown = None
            self._progress.end()
