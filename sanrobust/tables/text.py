"""Tables as plain text in aligned columns, for a screen."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from sanrobust.experiments.layout import Head
from sanrobust.tables.caption import caption
from sanrobust.tables.grid import Cell, Grid, Line, grid
from sanrobust.tables.lines import GAP, aligned
from sanrobust.tables.table import Table

_WIDTH = 100


def to_text(table: Table, *, width: int | None = None) -> str:
    """Render a table for a screen of fixed-width letters: the paper's layout, then the caption.

    The best value of a group carries a star; a group ends with an empty line. A table too wide is
    cut between its headings into panels one below the other, each with the names of its lines.

    Args:
        table: what to render.
        width: letters in a line; None for those of the terminal, 100 where there is none.
    """
    letters = width or shutil.get_terminal_size((_WIDTH, 24)).columns
    layout = grid(table)
    text = caption(table, layout).replace("Bold:", "Star:")
    panels = [_panel(panel) for panel in _panels(layout, letters)]
    return "\n\n\n".join([*panels[:-1], f"{panels[-1]}\n\n{_filled(text, letters)}"])


def _filled(text: str, letters: int) -> str:
    return textwrap.fill(text, max(20, min(letters, _WIDTH)), break_on_hyphens=False)


def _panels(layout: Grid, letters: int) -> list[Grid]:
    """Cut a layout into as few panels as fit the width, each of at least one heading."""
    panels: list[list[int]] = []
    for number in range(len(layout.heads)):
        if panels and _width(_part(layout, [*panels[-1], number])) <= letters:
            panels[-1].append(number)
        else:
            panels.append([number])
    return [_part(layout, heads) for heads in panels]


def _part(layout: Grid, heads: Sequence[int]) -> Grid:
    """Return the layout with some of its headings and what stands below them."""
    starts = [0]
    for head in layout.heads:
        starts.append(starts[-1] + len(head.measures))
    kept = [cell for number in heads for cell in range(starts[number], starts[number + 1])]
    groups = tuple(tuple(replace(line, cells=tuple(line.cells[cell] for cell in kept))
                         for line in group) for group in layout.groups)
    return Grid(layout.stubs, tuple(layout.heads[number] for number in heads), groups)


def _width(layout: Grid) -> int:
    widths = _widths(layout)
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _panel(layout: Grid) -> str:
    widths, stubs = _widths(layout), len(layout.stubs)
    body = "\n\n".join("\n".join(aligned(_row(line), widths, stubs) for line in group)
                       for group in layout.groups)
    heads = [_spanning(layout, widths, [head.title for head in layout.heads])]
    if any(head.detail for head in layout.heads):
        heads.append(_spanning(layout, widths, [head.detail for head in layout.heads]))
    return "\n".join([*heads, aligned(_labels(layout), widths, stubs), body])


def _labels(layout: Grid) -> list[str]:
    return [*layout.stubs, *(measure.label for head in layout.heads for measure in head.measures)]


def _widths(layout: Grid) -> list[int]:
    """Return the width of each column; the first under a longer heading makes room for it."""
    lines = [_row(line) for group in layout.groups for line in group]
    widths = [max(map(len, column)) for column in zip(_labels(layout), *lines, strict=True)]
    place = len(layout.stubs)
    for head in layout.heads:
        inside = _inside(widths, place, head)
        widths[place] += max(0, len(head.title) - inside, len(head.detail) - inside)
        place += len(head.measures)
    return widths


def _inside(widths: Sequence[int], place: int, head: Head) -> int:
    count = len(head.measures)
    return sum(widths[place:place + count]) + len(GAP) * (count - 1)


def _spanning(layout: Grid, widths: Sequence[int], titles: Sequence[str]) -> str:
    place = len(layout.stubs)
    cells = [" " * width for width in widths[:place]]
    for head, title in zip(layout.heads, titles, strict=True):
        cells.append(title.rjust(_inside(widths, place, head)))
        place += len(head.measures)
    return GAP.join(cells).rstrip()


def _row(line: Line) -> list[str]:
    label, *others = line.stubs
    shown = f"  {label}" if line.role == "beside" else label
    return [shown, *others, *map(_cell, line.cells)]


def _cell(cell: Cell) -> str:
    drop = cell.printed_drop("-")
    value = f"{'*' if cell.bold else ''}{cell.printed() or '-'}"
    return value if drop is None else f"{value}({drop})"
