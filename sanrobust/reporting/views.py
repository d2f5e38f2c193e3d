"""Tables as a page shows them: texts, values to sort by, intervals to draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sanrobust.experiments.layout import Listing
from sanrobust.tables import Table
from sanrobust.tables.caption import caption, title
from sanrobust.tables.details import DASH, intervals
from sanrobust.tables.entries import entries
from sanrobust.tables.grid import Cell, Grid, Line, grid


@dataclass(frozen=True)
class Bar:
    """An interval and its value on a scale of 0 to 100."""

    low: float
    high: float
    value: float


@dataclass(frozen=True)
class Shown:
    """A cell.

    Attributes:
        text: what is printed.
        value: what it is sorted by, unrounded; None for its text.
        key: the measure that it is of; empty for none.
        drop, interval: printed beside and below it; may be empty.
        bold: whether it is the best of its group.
        bar: its interval as it is drawn; None where it has none on a scale of percent.
        bounds: its interval, unrounded; None where it has none.
    """

    text: str
    value: float | None = None
    key: str = ""
    drop: str = ""
    interval: str = ""
    bold: bool = False
    bar: Bar | None = None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """A line: its words, the first of which names it, and its numbers."""

    stubs: tuple[str, ...]
    cells: tuple[Shown, ...]
    beside: bool = False


@dataclass(frozen=True)
class Unit:
    """Rows that stay together however a table is sorted; ``first`` begins a group."""

    rows: tuple[Row, ...]
    first: bool = False


@dataclass(frozen=True)
class Heading:
    """A heading over several columns."""

    title: str
    detail: str
    span: int


@dataclass(frozen=True)
class TableView:
    """A table of a page.

    Attributes:
        name: unique on the page, of letters, digits and hyphens.
        title: its caption.
        notes: what stands below it.
        stubs: headings of its columns of words.
        headings: those over its columns of numbers; empty for none.
        columns: headings of its columns of numbers.
        units: its rows.
        bars: whether a cell has one.
    """

    name: str
    title: str
    notes: str
    stubs: tuple[str, ...]
    headings: tuple[Heading, ...]
    columns: tuple[str, ...]
    units: tuple[Unit, ...]

    @property
    def bars(self) -> bool:
        """Whether a cell has an interval that is drawn."""
        return any(cell.bar for unit in self.units for row in unit.rows for cell in row.cells)


def table_view(table: Table, name: str, *, bold: bool = True) -> TableView:
    """Return the first table of an experiment, as its other files have it, with its intervals.

    Args:
        table: what it shows.
        name: of the view.
        bold: mark the best of each group.
    """
    layout = grid(table) if bold else _unmarked(grid(table))
    heads = tuple(Heading(head.title, head.detail, len(head.measures)) for head in layout.heads)
    columns = tuple(measure.label for head in layout.heads for measure in head.measures)
    return TableView(name, f"{title(table)}.", caption(table, layout, weights=True),
                     layout.stubs, heads, columns, tuple(_units(table, layout)))


def _unmarked(layout: Grid) -> Grid:
    return replace(layout, groups=tuple(tuple(
        replace(line, cells=tuple(replace(cell, bold=False) for cell in line.cells))
        for line in group) for group in layout.groups))


def _units(table: Table, layout: Grid) -> Iterator[Unit]:
    keys = [measure.key for head in layout.heads for measure in head.measures]
    for group in layout.groups:
        rows: list[Row] = []
        first = True
        for line in group:
            if line.role != "beside" and rows:
                yield Unit(tuple(rows), first)
                rows, first = [], False
            rows.append(_row(table, line, keys))
        yield Unit(tuple(rows), first)


def _row(table: Table, line: Line, keys: Sequence[str]) -> Row:
    cells = tuple(_shown(table, cell, key) for cell, key in zip(line.cells, keys, strict=True))
    name, *others = line.stubs
    return Row((f"{name} (ours)" if line.role == "ours" else name, *others), cells,
               line.role == "beside")


def _shown(table: Table, cell: Cell, key: str) -> Shown:
    if math.isnan(cell.value):
        return Shown(DASH, key=key)
    is_rate = key.rpartition(":")[2] in table.layout.rates
    bar = Bar(*(round(each, 1) for each in (cell.low, cell.high, cell.value))) \
        if is_rate and not math.isnan(cell.low) else None
    drop = cell.printed_drop(DASH)
    return Shown(cell.printed(), cell.value, key, "" if drop is None else f"({drop})",
                 cell.printed_interval(), cell.bold, bar,
                 None if math.isnan(cell.low) else (cell.low, cell.high))


def listing_views(table: Table, name: str) -> Iterator[TableView]:
    """Yield the further tables of an experiment: its parts with all measures, its listings."""
    if table.layout.details and any(each.endswith("_low") for each in table.columns):
        noun = table.layout.part_noun.lower() or "part"
        shown = replace(intervals(table, grid(table)),
                        title=f"{name} by {noun}: all measures, with {table.intervals}")
        yield listing_view(shown, f"{name}-parts")
    for number, listing in enumerate(table.layout.listings(entries(table)), 1):
        yield listing_view(listing, f"{name}-more-{number}")


def listing_view(listing: Listing, name: str, notes: str = "") -> TableView:
    """Return a table of texts."""
    stubs = listing.stubs
    units = tuple(Unit((Row(line[:stubs], tuple(map(Shown, line[stubs:]))),))
                  for line in listing.lines)
    return TableView(name, f"{listing.title.rstrip('.:')}.", notes, listing.headings[:stubs], (),
                     listing.headings[stubs:], units)
