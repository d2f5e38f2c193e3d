"""Tables as Markdown: the paper's layout first, then every interval."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from sanrobust.experiments.layout import Entry, Layout, Measure
from sanrobust.tables.caption import caption
from sanrobust.tables.entries import entries, parts
from sanrobust.tables.grid import Cell, Grid, Line, grid, has_values, printed, stubs_of
from sanrobust.tables.lines import pipes
from sanrobust.tables.table import Table

DASH = "–"
_SPECIAL = re.compile(r"([\\`*_|<>\[\]#~$])")


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
        parts += [f"{table.intervals[0].upper()}{table.intervals[1:]}:",
                  _intervals(table, layout)]
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


def _intervals(table: Table, layout: Grid) -> str:
    in_lines = bool(table.layout.details)
    headings, lines = _part_lines(table, layout) if in_lines else _wide_lines(table, layout)
    rows = [[*map(escape, stubs_of(entry, layout.stubs)), *cells] for entry, cells in lines]
    # A part stands beside the stubs, aligned as they are.
    return pipes([*layout.stubs, *headings], rows, len(layout.stubs) + in_lines)


def _wide_lines(table: Table, layout: Grid) -> tuple[list[str], list[tuple[Entry, list[str]]]]:
    measures = [(head, measure) for head in layout.heads for measure in head.measures
                if f"{measure.key.rpartition(':')[2]}_low" in table.columns]
    headings = [f"{head.title}: {measure.label}" for head, measure in measures]
    return headings, [(entry, [_interval(entry, measure) for _, measure in measures])
                      for entry in entries(table)]


def _part_lines(table: Table, layout: Grid) -> tuple[list[str], list[tuple[Entry, list[str]]]]:
    """List every part of every model with all measures of the layout's details."""
    own, lines, members = table.layout, [], entries(table)
    places = range(len(parts(table)))
    details = [measure for measure in own.details
               if has_values(measure, [_key(own, measure, place) for place in places], members)]
    for entry in members:
        for number, part in enumerate(parts(table)):
            those = [replace(measure, key=_key(own, measure, number)) for measure in details]
            if any(each.key in entry.values for each in those
                   if each.key.startswith(f"{number}:")):
                words = escape(own.part_words(part)) or DASH
                lines.append((entry, [words, *(_rate(entry, each) for each in those)]))
    noun = own.part_noun if own.variant_noun in ("", *layout.stubs) else own.variant_noun
    return [noun, *(measure.label for measure in details)], lines


def _key(layout: Layout, measure: Measure, place: int) -> str:
    return measure.key if layout.is_shared(measure.key) else f"{place}:{measure.key}"


def _rate(entry: Entry, measure: Measure) -> str:
    rate = printed(entry.values.get(measure.key, math.nan), decimals=measure.decimals)
    return f"{rate} {_interval(entry, measure)}" if rate else DASH


def _interval(entry: Entry, measure: Measure) -> str:
    low, high = (printed(entry.values.get(f"{measure.key}_{bound}", math.nan),
                         decimals=measure.decimals) for bound in ("low", "high"))
    return f"[{low}, {high}]" if low and high else DASH


def _listings(table: Table) -> list[str]:
    """Return the further tables of the layout, each behind its title."""
    texts = []
    for listing in table.layout.listings(entries(table)):
        lines = [[escape(cell) for cell in line] for line in listing.lines]
        headings = [escape(heading) for heading in listing.headings]
        texts += [escape(listing.title), pipes(headings, lines, listing.stubs)]
    return texts
