"""What a run prints: what it is about to do, its progress, its table."""

from __future__ import annotations

from collections.abc import Callable

import click

from sanrobust import allocator
from sanrobust.choices import DataChoice, HowToRun, ModelChoice
from sanrobust.cli.progress import progress
from sanrobust.progress import Reporter
from sanrobust.summary import Summary

Runner = Callable[[ModelChoice, DataChoice, HowToRun, Reporter], Summary]


def show(runner: Runner, models: ModelChoice, data: DataChoice, how: HowToRun) -> None:
    """Run an experiment and print its table."""
    allocator.tune()
    summary = runner(models, data, how, Reporter(say=say, progress=progress()))
    print_summary(summary)


def say(text: str) -> None:
    """Print a line about the run to standard error; standard output is for the table."""
    click.echo(text, err=True)


def print_summary(summary: Summary) -> None:
    """Print a table to standard output and where its files are to standard error."""
    click.echo(f"\n{summary.text}\n")
    for line in summary.remarks:
        say(line)
    say("wrote " + ", ".join(str(path) for path in summary.files))
