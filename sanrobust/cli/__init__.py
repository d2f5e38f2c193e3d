"""The command ``sanrobust``: each subcommand parses, makes one library call and prints."""

from __future__ import annotations

import os
import sys
from importlib import metadata

import click

from sanrobust.attacks.catalog import ATTACKS
from sanrobust.cli.bench import bench
from sanrobust.cli.check import check
from sanrobust.cli.compare import compare
from sanrobust.cli.complexity import complexity
from sanrobust.cli.experiments import commands
from sanrobust.cli.group import ErrorGroup
from sanrobust.cli.info import info
from sanrobust.cli.pages import leaderboard, report
from sanrobust.cli.show import show
from sanrobust.cli.status import status
from sanrobust.cli.streams import open_streams
from sanrobust.cli.study import study
from sanrobust.cli.table import table
from sanrobust.cli.train import train
from sanrobust.cli.zoo import zoo
from sanrobust.data.catalog import DATASETS
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.files import printable
from sanrobust.zoo.families.catalog import FAMILIES, unpublished


class Main(ErrorGroup):
    """The command itself, which names the packages whose additions cannot be had."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write them below the help."""
        for problem in _left_out():
            formatter.write_paragraph()
            formatter.write_text(printable(problem))


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"],
                                         "max_content_width": 100})
@click.version_option(metadata.version("sanrobust"), prog_name="sanrobust")
def main() -> None:
    """Measure how robust image classifiers are.

    Without --data and --model the paper's nine networks are measured on the embedded digits.
    """
    open_streams()
    _let_threads_sleep()
    for problem in _left_out():
        click.echo(printable(f"note: {problem}"), err=True)


def _left_out() -> tuple[str, ...]:
    """Say what of other packages cannot be had."""
    registries = (EXPERIMENTS, ATTACKS, DATASETS, FAMILIES)
    return (*(problem for registry in registries for problem in registry.left_out()),
            *unpublished())


def _let_threads_sleep() -> None:
    """Let a thread that waits for another give up its processor, unless the user has chosen.

    Otherwise threads wait in a loop, and beside other work two of them take up to ten times as
    long as one. The OpenMP library reads this once, when torch loads it.
    """
    if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")


for command in (*commands(), check, table, compare, report, leaderboard, status, train, study,
                bench, complexity, show, zoo, info):
    main.add_command(command)
