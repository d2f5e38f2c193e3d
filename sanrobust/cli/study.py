"""``sanrobust study``: the design space, trained and measured with one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sanrobust.choices import LARGEST_RATE, MOST_PROCESSES
from sanrobust.cli.group import Command
from sanrobust.options import Number, Whole
from sanrobust.cli.options import PATH


@click.command(cls=Command)
@click.option("-m", "--model", "models", multiple=True, metavar="ARCH",
              help="Architecture, such as 'san10-pair(relation=dot)'; repeatable. "
                   "[default: the relations and positions of the paper's Tables 4 and 8]")
@click.option("--seeds", type=Whole(1), default=3, show_default=True, metavar="N",
              help="Training runs of each.")
@click.option("--data", default="digits", show_default=True, metavar="NAME",
              help="Registered dataset with a training split.")
@click.option("--data-root", type=PATH, envvar="SANROBUST_DATA_ROOT", metavar="FOLDER",
              help="Where registered datasets lie. [env: SANROBUST_DATA_ROOT]")
@click.option("--epochs", type=Whole(1), default=30, show_default=True)
@click.option("-b", "--batch-size", type=Whole(2), default=64, show_default=True,
              help="Images per step of training.")
@click.option("--lr", type=Number(0, LARGEST_RATE, "0.05", min_open=True), default=0.05,
              show_default=True)
@click.option("--shift", type=Whole(0), default=3, show_default=True,
              metavar="PIXELS", help="Largest random translation.")
@click.option("--processes", type=Whole(1, MOST_PROCESSES), default=1, show_default=True,
              metavar="N", help="Networks trained at a time, each on one thread.")
@click.option("--out", type=PATH, default=Path("results/design-space"), show_default=True,
              metavar="FOLDER", help="Folder of weights, records and tables.")
def study(**values: Any) -> None:
    """Train designs with several seeds, then measure rotation, flip and attack.

    Writes OUT/rotation_mean.* and OUT/pgd_mean.*, one row per design: means over the training
    runs with their intervals. OUT/rotation.* and OUT/pgd.* have every run. A study that was
    stopped goes on where it was.
    """
    from sanrobust import allocator
    from sanrobust.cli.progress import progress
    from sanrobust.cli.report import say
    from sanrobust.progress import Reporter
    from sanrobust.study import DESIGN_SPACE, Study, run_study
    from sanrobust.tables import to_text
    from sanrobust.training.recipes import Recipe
    recipe = Recipe(**{name: values.pop(name) for name in ("epochs", "batch_size", "lr", "shift")})
    models = values.pop("models") or DESIGN_SPACE
    allocator.tune()
    found = run_study(Study(models=models, recipe=recipe, **values),
                      Reporter(say=say, progress=progress()))
    for table in found.tables:
        click.echo(f"\n{to_text(table)}")
    say("wrote " + ", ".join(map(str, found.files)))
