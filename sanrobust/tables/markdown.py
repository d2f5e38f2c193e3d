"""Tables as Markdown: the paper's layout first, then every interval."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sanrobust.metrics import VIEWS
from sanrobust.tables.caption import caption
from sanrobust.tables.entries import Entry, budgets, entries
from sanrobust.tables.grid import (VIEW_TITLES, Cell, Grid, Line, budget_text, grid, printed,
                                   stubs_of)
from sanrobust.tables.table import PGD_RATES, Table

DASH = "–"
_PGD_HEADINGS = ("s. rate", "s. rate, any iterate", "top-1", "top-1, failed attack = clean")
_SPECIAL = re.compile(r"([\\`*_|<>\[\]#~$])")


def escape(text: str) -> str:
    """Return ``text`` such that Markdown prints it as it is, in a cell or in a paragraph."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def to_markdown(table: Table) -> str:
    """Render a table as Markdown (GitHub's pipe tables): caption, numbers, intervals.

    The second table is left out when the rows have no intervals. For attacks it also has the
    other definitions of success and accuracy, which the paper does not print.
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
             _pipes(headings, lines, len(layout.stubs))]
    if any(name.endswith("_low") for name in table.columns):
        parts += [f"{table.intervals[0].upper()}{table.intervals[1:]}:",
                  _intervals(table, layout)]
    return "\n\n".join(parts) + "\n"


def _pipes(headings: Sequence[str], lines: Sequence[Sequence[str]], stubs: int) -> str:
    rule = [":--"] * stubs + ["--:"] * (len(headings) - stubs)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *lines))


def _row(line: Line) -> list[str]:
    label, *others = map(escape, line.stubs)
    if line.role == "ours":
        label += " (ours)"
    elif line.role == "beside":
        label = f"↳ {label}"
    return [label, *others, *map(_cell, line.cells)]


def _cell(cell: Cell) -> str:
    value = printed(cell.value, signed=cell.signed)
    if not value:
        return DASH
    text = f"**{value}**" if cell.bold else value
    if cell.drop is None:
        return text
    return f"{text} ({printed(cell.drop, signed=cell.signed) or DASH})"


def _intervals(table: Table, layout: Grid) -> str:
    attack = table.layout == "pgd"
    headings, lines = _pgd_intervals(table) if attack else _rotation_intervals(table)
    stubs = layout.stubs
    rows = [[*map(escape, stubs_of(entry, stubs)), *cells] for entry, cells in lines]
    if attack and "Attack" in stubs:
        headings[0] = "Budget"
    # An attack's budget stands beside the stubs, aligned as they are.
    return _pipes([*stubs, *headings], rows, len(stubs) + attack)


def _rotation_intervals(table: Table) -> tuple[list[str], list[tuple[Entry, list[str]]]]:
    names = [(view, measure) for view in VIEWS for measure in ("top1", "top5")]
    headings = [f"{VIEW_TITLES[view]}: {measure[:3]}-{measure[3:]}" for view, measure in names]
    return headings, [(entry, [_interval(entry, f"{view}_{measure}") for view, measure in names])
                      for entry in entries(table)]


def _pgd_intervals(table: Table) -> tuple[list[str], list[tuple[Entry, list[str]]]]:
    """List every budget of every model with all definitions of success and accuracy."""
    lines = []
    for entry in entries(table):
        for number, budget in enumerate(budgets(table)):
            keys = ["clean_top1", *(f"{number}:{name}" for name in PGD_RATES)]
            if any(key in entry.values for key in keys[1:]):
                title, detail = budget_text(budget)
                words = [title.removeprefix("attack").strip(), detail]
                attack = ", ".join(word for word in words if word)
                rates = [_rate(entry, key) for key in keys]
                lines.append((entry, [escape(attack) or DASH, *rates]))
    return ["Attack", "clean top-1", *_PGD_HEADINGS], lines


def _rate(entry: Entry, key: str) -> str:
    rate = printed(entry.values.get(key, math.nan))
    return f"{rate} {_interval(entry, key)}" if rate else DASH


def _interval(entry: Entry, key: str) -> str:
    low, high = (printed(entry.values.get(f"{key}_{bound}", math.nan)) for bound in ("low", "high"))
    return f"[{low}, {high}]" if low and high else DASH
