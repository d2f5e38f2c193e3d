"""``sanrobust report``: the results of a folder as one page."""

from __future__ import annotations

from pathlib import Path

import click

from sanrobust.cli.group import Command
from sanrobust.cli.options import PATH
from sanrobust.options import Whole


@click.command(cls=Command)
@click.argument("out", type=PATH, default=Path("results"), metavar="[OUT]")
@click.option("--to", type=PATH, metavar="FOLDER",
              help="Folder of the page and its figures. [default: report in OUT]")
@click.option("-m", "--model", "models", multiple=True, metavar="NAME",
              help="Only runs of this model, by full name or architecture; repeatable.")
@click.option("--data", multiple=True, metavar="NAME",
              help="Only runs on the dataset that tables call so; repeatable.")
@click.option("--run", "runs", multiple=True, metavar="FOLDER",
              help="Only the run whose folder under OUT/runs begins so or has this digest; "
                   "repeatable.")
@click.option("--images", type=Whole(0, 12), default=3, show_default=True, metavar="N",
              help="Attacked images shown of each run that has --save-adversarial's.")
@click.option("--attention/--no-attention", default=True, show_default=True,
              help="Draw where attention models look whose weights are on this machine.")
def report(out: Path, to: Path | None, models: tuple[str, ...], data: tuple[str, ...],
           runs: tuple[str, ...], images: int, attention: bool) -> None:
    """Write one HTML page of the complete runs in OUT.

    OUT is a folder of results, by default results. The page needs nothing beside it: tables that
    sort and filter, intervals, curves, attacked images, where every number comes from. Writes
    OUT/report/index.html, the tables as CSV and the figures as PNG, PDF and SVG.
    """
    from sanrobust.cli.report import say
    from sanrobust.reporting.report import report as reported
    made = reported(out, to=to, runs=runs, models=models, data=data, images=images,
                    attention=attention)
    for line in made.remarks:
        say(line)
    say(f"wrote {len(made.files) - 1} files beside the page")
    click.echo(str(made.page))
    if made.problem is not None:
        raise made.problem
