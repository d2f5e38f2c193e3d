"""``sanrobust report`` and ``leaderboard``: results as pages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sanrobust.cli.group import Command
from sanrobust.cli.options import PATH, which_runs
from sanrobust.errors import number_of
from sanrobust.options import Whole

if TYPE_CHECKING:
    from sanrobust.reporting.page import Page


@click.command(cls=Command)
@click.argument("out", type=PATH, default=Path("results"), metavar="[OUT]")
@click.option("--to", type=PATH, metavar="FOLDER",
              help="Folder of the page and its figures. [default: report in OUT]")
@which_runs
@click.option("--images", type=Whole(0, 12), default=3, show_default=True, metavar="N",
              help="Attacked images shown of each run that has --save-adversarial's.")
@click.option("--attention/--no-attention", default=True, show_default=True,
              help="Draw where attention models look whose weights are on this machine.")
def report(out: Path, to: Path | None, models: tuple[str, ...], data: tuple[str, ...],
           runs: tuple[str, ...], images: int, attention: bool) -> None:
    """Write one HTML page of the complete runs in OUT.

    OUT is a folder of results, by default results. The page needs nothing beside it: tables that
    sort and filter, intervals, curves, attacked images, where every number comes from. Writes
    OUT/report/index.html, the tables as CSV and the figures as PNG and PDF.
    """
    from sanrobust.reporting.report import report as reported
    made = reported(out, to=to, runs=runs, models=models, data=data, images=images,
                    attention=attention)
    _print(made)


@click.command(cls=Command)
@click.argument("folders", nargs=-1, type=PATH, metavar="[OUT]...")
@click.option("--to", type=PATH, default=Path("leaderboard"), show_default=True, metavar="FOLDER",
              help="Folder of the page and of a JSON for each model.")
def leaderboard(folders: tuple[Path, ...], to: Path) -> None:
    """Rank the models of several folders of results where they were measured alike.

    OUT is a folder of results, by default results, or one of JSON that an earlier leaderboard
    wrote. Models that were measured on other images or with other settings stand apart, with what
    differs. Writes FOLDER/index.html and a JSON for each model.
    """
    from sanrobust.reporting.leaderboard import leaderboard as ranked
    _print(ranked(folders or (Path("results"),), to=to))


def _print(made: Page) -> None:
    """Print where a page is to standard output; raise its problem, if it has one."""
    from sanrobust.cli.report import say
    for line in made.remarks:
        say(line)
    kinds = Counter(path.suffix for path in made.files if path != made.page)
    say(f"wrote {number_of(kinds.total(), 'file')} beside the page, in {made.page.parent}: "
        + ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))
    click.echo(str(made.page))
    if made.problem is not None:
        raise made.problem
