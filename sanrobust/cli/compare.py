"""``sanrobust compare``: models held against each other on the same images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from sanrobust.cli.group import Command
from sanrobust.cli.options import PATH
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.options import Number


@click.command(cls=Command)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--out", type=PATH, default=Path("results"), show_default=True, metavar="FOLDER",
              help="Folder of records and tables.")
@click.option("--experiment", "experiments", type=click.Choice(EXPERIMENTS.names()), multiple=True,
              help="Compare by this one; repeatable. [default: all that OUT has]")
@click.option("--data", multiple=True, metavar="NAME",
              help="Only runs on the dataset that tables call so; repeatable.")
@click.option("--all-pairs", is_flag=True, help="Hold each model against each, not only the first.")
@click.option("--everything", is_flag=True,
              help="Every rate that was recorded, such as each angle, not only those of the table.")
@click.option("--fail-under", type=Number(-100, 100, "-2"), metavar="POINTS",
              help="Exit with 1 where the first model of a pair has less advantage than this "
                   "in any row; -2 lets it be two points worse.")
def compare(models: tuple[str, ...], out: Path, experiments: tuple[str, ...],
            data: tuple[str, ...], all_pairs: bool, everything: bool,
            fail_under: float | None) -> None:
    """Compare models by the records in OUT: paired differences, intervals and tests.

    The first MODEL is held against each other one, on the images that both evaluated. A MODEL is a
    full name such as san10-pair.digits, its architecture alone, or the folder of a run; without
    any, all that were measured take part in the order of their names. Writes OUT/compare_*.csv, .md
    and .tex, which replace those of an earlier comparison.
    """
    from sanrobust.cli.report import print_each
    from sanrobust.comparing import compare as compared
    from sanrobust.errors import UsageError
    from sanrobust.runs import find_runs
    there = experiments or [name for name in EXPERIMENTS.names() if find_runs(out, name).runs]
    if not there:
        raise UsageError("a comparison must have runs", seen=f"there are none under {out}",
                         hint="measure models first, for example with sanrobust rotate")
    print_each({name: partial(compared, out, name, models, data=data, all_pairs=all_pairs,
                              everything=everything, fail_under=fail_under) for name in there},
               every=bool(experiments) or fail_under is not None)
