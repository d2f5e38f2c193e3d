"""``sanrobust status``: how far runs are and who measures them."""

from __future__ import annotations

from pathlib import Path

import click

from sanrobust.cli.group import Command
from sanrobust.cli.options import PATH


@click.command(cls=Command)
@click.argument("out", type=PATH, default=Path("results"), metavar="[OUT]")
def status(out: Path) -> None:
    """Say how far the runs in OUT are, how fast, and who is measuring them.

    OUT is a folder of results, by default results. It is read and nothing is written.
    """
    from sanrobust.files import printable
    from sanrobust.status import status_lines
    for line in status_lines(out):
        click.echo(printable(line))
