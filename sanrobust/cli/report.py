"""What a run prints: what it is about to do, its progress, its table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import click

from sanrobust import allocator
from sanrobust.choices import DataConfig, ModelConfig, RunConfig
from sanrobust.cli.progress import progress
from sanrobust.cli.streams import nowhere_to_print
from sanrobust.errors import SanrobustError, UsageError
from sanrobust.experiments.base import Experiment
from sanrobust.files import printable
from sanrobust.progress import Reporter
from sanrobust.summary import Summary


def show(experiment: Experiment, settings: object, models: ModelConfig,
         data: Sequence[DataConfig], how: RunConfig, processes: int) -> None:
    """Run an experiment, or a part of it, and print its table once all parts are there."""
    from sanrobust.parallel import run_in_processes
    from sanrobust.run import run_part
    allocator.tune()
    reporter = Reporter(say=say, progress=progress())
    done = (run_part(experiment, settings, models, data, how, reporter) if processes == 1 else
            run_in_processes(processes, experiment, settings, models, data, how, reporter))
    if isinstance(done, Summary):
        print_summary(done)
        return
    for line in done.lines:
        say(line)
    if done.problem is not None:
        raise done.problem


def say(text: str) -> None:
    """Print a line about the run to standard error; standard output is for the table."""
    click.echo(printable(text), err=True)


class Printed(Protocol):
    """What a command prints: a table, its files, and what a reader should know besides.

    Attributes:
        text: the table as people read it on a screen.
        files: the files written.
        remarks: sentences that belong to it.
        problem: why it is not all that was asked for; None when it is.
    """

    @property
    def text(self) -> str: ...

    @property
    def files(self) -> tuple[Path, ...]: ...

    @property
    def remarks(self) -> tuple[str, ...]: ...

    @property
    def problem(self) -> SanrobustError | None: ...


def print_summary(summary: Printed) -> None:
    """Print a table to standard output and where its files are to standard error.

    Raises the summary's problem, if it has one, when all is printed.
    """
    _print_table(summary)
    for line in summary.remarks:
        say(line)
    say("wrote " + ", ".join(str(path) for path in summary.files))
    if summary.problem is not None:
        raise summary.problem


def _print_table(summary: Printed) -> None:
    try:
        click.echo(f"\n{summary.text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise nowhere_to_print(
            error, hint=f"read {summary.files[0]}, where it stands as well") from error


def print_each(makers: Mapping[str, Callable[[], Printed]], *, every: bool = False) -> None:
    """Make and print several summaries, by their experiment's name.

    One that cannot be shown hides no other: that nothing of it fits what was asked for is said
    where another does, unless every one must be shown; the first problem of any other kind is
    raised at the end.
    """
    unfit: dict[str, UsageError] = {}
    problems: list[SanrobustError] = []
    for name, make in makers.items():
        try:
            print_summary(make())
        except UsageError as error:
            unfit[name] = error
        except SanrobustError as error:
            problems.append(error)
    first = next(iter(unfit), None) if every or len(unfit) == len(makers) else None
    for name, reason in unfit.items():
        if name != first:
            say(f"{name}: no table, because {reason.seen}")
    if first is not None:
        raise unfit[first]
    for problem in problems:
        raise problem
