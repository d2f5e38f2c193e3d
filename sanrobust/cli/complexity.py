"""``sanrobust complexity``: parameters and FLOPs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sanrobust.cli.group import Command
from sanrobust.options import Whole
from sanrobust.cli.options import PATH
from sanrobust.complexity.settings import CONVENTIONS, IMG_SIZE, TABLES, Convention
from sanrobust.errors import UsageError
from sanrobust.preprocessing import LARGEST_SIDE

if TYPE_CHECKING:
    import pandas as pd

    from sanrobust.tables.sheet import Sheet

_ALL = "all"


@click.command(cls=Command)
@click.option("-m", "--model", "models", multiple=True, metavar="NAME",
              help="As in the other commands; an architecture alone is its form for ImageNet; "
                   "repeatable. [default: the paper's nine]")
@click.option("--table", "tables", multiple=True, type=click.Choice((*TABLES, _ALL)),
              metavar=f"{'|'.join(TABLES)}|{_ALL}",
              help="Print a table of the paper, ours beside the printed figures; repeatable.")
@click.option("--img-size", type=Whole(1, LARGEST_SIDE, example=224), metavar="PIXELS",
              help="Side of the image. [default: the model's own]")
@click.option("--convention", type=click.Choice(tuple(CONVENTIONS)), default="paper",
              show_default=True, help="What counts.")
@click.option("--stages", is_flag=True, help="Break each model down; the shares sum up.")
@click.option("--out", type=PATH, metavar="FOLDER",
              help="Also write OUT/complexity*.csv, .md and .tex, and OUT/architecture.* for "
                   "table 1.")
def complexity(models: tuple[str, ...], tables: tuple[str, ...], img_size: int | None,
               convention: Convention, stages: bool, out: Path | None) -> None:
    """Count parameters and FLOPs of models; no weights are needed or read.

    Convention paper counts what the paper's official code counts, the source of its figures; mac
    counts the multiply-adds of convolutions, linear layers and attention alone. FLOPs of other
    papers are often twice the latter.
    """
    from sanrobust.files import require_writable
    if out is not None:
        require_writable(out)
    if tables:
        _require_plain(models, img_size, convention, stages)
        _print_tables(tables, out)
    else:
        _print_models(models, img_size, convention, stages, out)


def _require_plain(models: tuple[str, ...], img_size: int | None, convention: Convention,
                   stages: bool) -> None:
    """The paper's tables are of its own models, images and convention."""
    given = {"--model": bool(models), "--img-size": img_size not in (None, IMG_SIZE),
             "--convention": convention != "paper", "--stages": stages}
    seen = [option for option, is_given in given.items() if is_given]
    if seen:
        raise UsageError(f"--table counts the paper's own models at {IMG_SIZE} pixels in "
                         "convention paper", seen=f"{' and '.join(seen)} is given too",
                         hint="leave out one or the other")


def _print_models(models: tuple[str, ...], img_size: int | None, convention: Convention,
                  stages: bool, out: Path | None) -> None:
    from sanrobust.complexity.models import count_model
    from sanrobust.complexity.report import models_rows, models_sheet
    from sanrobust.zoo.catalog import PAPER_ORDER
    counted = [count_model(name, img_size=img_size, convention=convention)
               for name in models or PAPER_ORDER]
    rows = models_rows(counted, convention, stages=stages)
    _print_sheet(rows, models_sheet(rows, convention), out, "complexity-models")


def _print_tables(tables: tuple[str, ...], out: Path | None) -> None:
    from sanrobust.complexity import report
    from sanrobust.complexity.tables import TEXT_ROWS, architecture, compared
    whole = _ALL in tables
    chosen = TABLES if whole else tuple(table for table in TABLES if table in tables)
    if "1" in chosen:
        layers = report.architecture_rows(architecture())
        _print_sheet(layers, report.architecture_sheet(layers), out, "architecture")
    figures = tuple(table for table in chosen if table != "1")
    if figures:
        rows = compared((*figures, *TEXT_ROWS) if whole else figures)
        name = "complexity" if whole else f"complexity-{'-'.join(figures)}"
        _print_sheet(rows, report.compared_sheet(rows), out, name)


def _print_sheet(rows: pd.DataFrame, sheet: Sheet, out: Path | None, name: str) -> None:
    from sanrobust.cli.report import say
    from sanrobust.complexity.report import write
    from sanrobust.tables.sheet import to_text
    click.echo(f"{to_text(sheet)}\n")
    if out is not None:
        say("wrote " + ", ".join(str(path) for path in write(rows, sheet, out, name)))
