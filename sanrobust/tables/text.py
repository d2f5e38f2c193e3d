"""Tables as plain text in aligned columns, for a screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from sanrobust.tables.caption import caption
from sanrobust.tables.grid import Cell, Grid, Line, grid, printed
from sanrobust.tables.table import Table

_GAP = "  "
_WIDTH = 100


def to_text(table: Table) -> str:
    """Render a table for a screen of fixed-width letters: the paper's layout, then the caption.

    The best value of a group carries a star; a group ends with an empty line.
    """
    layout = grid(table)
    stubs = len(layout.stubs)
    groups = [[_row(layout, line) for line in group] for group in layout.groups]
    labels = [*layout.stubs, *(measure.label for head in layout.heads for measure in head.measures)]
    columns = zip(*[labels, *(row for group in groups for row in group)], strict=True)
    widths = _widened(layout, [max(map(len, column)) for column in columns])
    body = "\n\n".join("\n".join(_joined(row, widths, stubs) for row in group)
                       for group in groups)
    heads = [_spanning(layout, widths, [head.title for head in layout.heads])]
    if any(head.detail for head in layout.heads):
        heads.append(_spanning(layout, widths, [head.detail for head in layout.heads]))
    text = caption(table, layout).replace("Bold:", "Star:")
    return "\n".join([*heads, _joined(labels, widths, stubs), body, "",
                      textwrap.fill(text, _WIDTH)])


def _widened(layout: Grid, widths: Sequence[int]) -> list[int]:
    """Widen the first column under each heading that is longer than its columns."""
    result, place = list(widths), len(layout.stubs)
    for head in layout.heads:
        count = len(head.measures)
        inside = sum(result[place:place + count]) + len(_GAP) * (count - 1)
        result[place] += max(0, len(head.title) - inside, len(head.detail) - inside)
        place += count
    return result


def _spanning(layout: Grid, widths: Sequence[int], titles: Sequence[str]) -> str:
    place = len(layout.stubs)
    cells = [" " * width for width in widths[:place]]
    for head, title in zip(layout.heads, titles, strict=True):
        count = len(head.measures)
        inside = sum(widths[place:place + count]) + len(_GAP) * (count - 1)
        cells.append(title.rjust(inside))
        place += count
    return _GAP.join(cells).rstrip()


def _joined(cells: Sequence[str], widths: Sequence[int], stubs: int) -> str:
    aligned = [cell.ljust(width) if place < stubs else cell.rjust(width)
               for place, (cell, width) in enumerate(zip(cells, widths, strict=True))]
    return _GAP.join(aligned).rstrip()


def _row(layout: Grid, line: Line) -> list[str]:
    label = line.label if line.role in ("single", "ours") else f"  {line.role}"
    return [*[label, line.data][:len(layout.stubs)], *map(_cell, line.cells)]


def _cell(cell: Cell) -> str:
    value = printed(cell.value, signed=cell.signed) or "-"
    drop = "" if cell.drop is None else f"({printed(cell.drop, signed=cell.signed) or '-'})"
    return f"{'*' if cell.bold else ''}{value}{drop}"
