"""``sanrobust table``: rebuild tables from records."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from sanrobust.cli.group import Command
from sanrobust.cli.options import PATH, which_runs
from sanrobust.experiments.catalog import EXPERIMENTS


@click.command(cls=Command)
@click.argument("experiment", type=click.Choice((*EXPERIMENTS.names(), "all")), default="all")
@click.option("--experiment", "experiments", type=click.Choice(EXPERIMENTS.names()), multiple=True,
              help="Only tables of this experiment, as the argument says too; repeatable.")
@click.option("--out", type=PATH, default=Path("results"), show_default=True, metavar="FOLDER",
              help="Folder of records and tables.")
@which_runs
@click.option("--paper/--no-paper", default=False,
              help="Add the paper's values and the differences, where a trained network of the "
                   "paper was measured on ImageNet (--data imagenet, or --data-name imagenet).")
@click.option("--paper-only", is_flag=True,
              help="Write the paper's own tables to OUT/paper instead.")
def table(experiment: str, experiments: tuple[str, ...], out: Path, models: tuple[str, ...],
          data: tuple[str, ...], runs: tuple[str, ...], paper: bool, paper_only: bool) -> None:
    """Rebuild the tables in OUT from the records of the complete runs.

    What is left out is named: runs not asked for, unfinished, damaged, or measured anew later.
    """
    from sanrobust.cli.report import print_each, say
    from sanrobust.runs import find_runs, strange_runs
    from sanrobust.summary import Selection, rebuild, require_known
    from sanrobust.tables import write_paper_tables
    if paper_only:
        say("wrote " + ", ".join(str(path) for path in write_paper_tables(out / "paper")))
        return
    wanted = experiments + (() if experiment == "all" else (experiment,)) or EXPERIMENTS.names()
    there = [name for name in wanted if not find_runs(out, name).empty] or wanted[:1]
    chosen = Selection(runs=runs, models=models, data=data)
    require_known(out, there, chosen)
    for name in wanted:
        files = EXPERIMENTS.get(name).files
        if name not in there and (out / f"{files}.csv").exists():
            say(f"{name}: no runs under {out}; {files}.* there is left as it is")
    for remark in strange_runs(out):
        say(remark)
    print_each({name: partial(rebuild, out, name, chosen=chosen, paper=paper) for name in there})
