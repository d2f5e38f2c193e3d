"""Tables as Markdown: the paper's layout first, then every interval."""

from __future__ import annotations

import re

from sanrobust.experiments.layout import Listing
from sanrobust.tables.caption import caption
from sanrobust.tables.details import DASH, intervals
from sanrobust.tables.entries import entries
from sanrobust.tables.grid import Cell, Line, grid
from sanrobust.tables.lines import pipes
from sanrobust.tables.table import Table

_SPECIAL = re.compile(r"([\\`*_|<>\[\]#~$&])")


def escape(text: str) -> str:
    """Return ``text`` such that Markdown prints it as it is, in a cell or in a paragraph."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def to_markdown(table: Table) -> str:
    """Render a table as Markdown (GitHub's pipe tables): caption, numbers, intervals, listings.

    The second table is left out when the rows have no intervals. With a layout that has details it
    has a line for each part, with measures that the first one does not print.
    """
    layout = grid(table)
    headings = [*layout.stubs, *(
        escape(f"{head.title}{f' ({head.detail})' if head.detail else ''}: {measure.label}")
        for head in layout.heads for measure in head.measures)]
    lines: list[list[str]] = []
    for group in layout.groups:
        # An empty row stands for the rule between two groups.
        lines += [[""] * len(headings)] if lines else []
        lines += [_row(line) for line in group]
    parts = [escape(caption(table, layout, weights=True)),
             pipes(headings, lines, len(layout.stubs))]
    if any(name.endswith("_low") for name in table.columns):
        shown = intervals(table, layout)
        # An interval in brackets is no link.
        parts += [shown.title, _pipes(shown, plain=shown.stubs)]
    return "\n\n".join([*parts, *_listings(table)]) + "\n"


def _row(line: Line) -> list[str]:
    label, *others = map(escape, line.stubs)
    if line.role == "ours":
        label += " (ours)"
    elif line.role == "beside":
        label = f"↳ {label}"
    return [label, *others, *map(_cell, line.cells)]


def _cell(cell: Cell) -> str:
    value, drop = cell.printed(), cell.printed_drop(DASH)
    if not value:
        return DASH
    text = f"**{value}**" if cell.bold else value
    return text if drop is None else f"{text} ({drop})"


def _listings(table: Table) -> list[str]:
    """Return the further tables of the layout, each behind its title."""
    return [text for listing in table.layout.listings(entries(table))
            for text in (escape(listing.title), _pipes(listing))]


def _pipes(listing: Listing, plain: int | None = None) -> str:
    """Render a listing; from column ``plain`` on its cells are numbers that stand as they are."""
    lines = [[*map(escape, line[:plain]), *line[len(line) if plain is None else plain:]]
             for line in listing.lines]
    return pipes([escape(heading) for heading in listing.headings], lines, listing.stubs)
