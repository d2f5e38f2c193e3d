"""The paper's wide layout of a table, before it becomes text in any format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sanrobust import paper
from sanrobust.experiments.layout import Entry, Head, Layout, Measure
from sanrobust.tables.entries import entries, parts
from sanrobust.tables.table import Table, network

_METHOD, _DATA = "Method", "Data"
_LARGE = 1e6
Role = Literal["single", "ours", "beside"]


@dataclass(frozen=True)
class Cell:
    """One printed number; ``drop`` goes into brackets, nan prints as a dash.

    ``low`` and ``high`` bound its interval, nan where it has none.
    """

    value: float
    drop: float | None = None
    bold: bool = False
    signed: bool = False
    decimals: int = 1
    low: float = math.nan
    high: float = math.nan

    def printed(self) -> str:
        """Return its number as it is printed; nan gives an empty string."""
        return printed(self.value, signed=self.signed, decimals=self.decimals)

    def printed_drop(self, unknown: str) -> str | None:
        """Return its drop as it is printed, None where it has none."""
        return None if self.drop is None else printed(
            self.drop, signed=self.signed, decimals=self.decimals) or unknown

    def printed_interval(self) -> str:
        """Return its interval as it is printed, empty where it has none."""
        low, high = (printed(bound, decimals=self.decimals) for bound in (self.low, self.high))
        return f"[{low}, {high}]" if low and high else ""


@dataclass(frozen=True)
class Line:
    """One printed row: its stubs, the first of which names it, and its numbers.

    A line that stands ``beside`` the one above it names other numbers of the same model.
    """

    stubs: tuple[str, ...]
    role: Role
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """Headings and groups of lines; a rule stands between two groups."""

    stubs: tuple[str, ...]
    heads: tuple[Head, ...]
    groups: tuple[tuple[Line, ...], ...]


def printed(value: float, *, signed: bool = False, decimals: int = 1) -> str:
    """Return a number with its decimals and no negative zero; nan gives an empty string.

    From a million on, as a likelihood can be whose logits explode, it has an exponent.
    """
    if math.isnan(value):
        return ""
    rounded = float(f"{value:.{decimals}f}") + 0.0
    form = "e" if abs(rounded) >= _LARGE else "f"
    return f"{rounded:{'+' if signed else ''}.{decimals}{form}}"


def grid(table: Table) -> Grid:
    """Arrange a table as the paper prints it: one line per model, grouped, the best in bold."""
    members = entries(table)
    stubs = stub_names(members, table.layout)
    heads = tuple(_with_values(table.layout.heads(parts(table)), members))
    measures = [measure for head in heads for measure in head.measures]
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in members:
        groups.setdefault((entry.data, _group(entry.model)), []).append(entry)
    return Grid(stubs, heads, tuple(tuple(_lines(group, measures, stubs))
                                    for group in groups.values()))


def _with_values(heads: Sequence[Head], members: Sequence[Entry]) -> Iterator[Head]:
    """Yield the headings without rare measures that no line has, and those left with any."""
    for head in heads:
        measures = tuple(each for each in head.measures if has_values(each, [each.key], members))
        if measures:
            yield replace(head, measures=measures)


def has_values(measure: Measure, keys: Sequence[str], members: Sequence[Entry]) -> bool:
    """Return whether a measure is to be printed that stands in its lines under one of ``keys``."""
    return not measure.rare or any(key in entry.values or key in entry.reference
                                   for entry in members for key in keys)


def stub_names(members: Sequence[Entry], layout: Layout) -> tuple[str, ...]:
    """Return the headings of what names a line: method, and data and variant where there are
    several."""
    variants = len({entry.variant for entry in members}) > 1
    return (_METHOD, *([_DATA] if len({entry.data for entry in members}) > 1 else []),
            *([layout.variant_noun] if variants else []))


def stubs_of(entry: Entry, names: Sequence[str]) -> tuple[str, ...]:
    """Return what stands under each of the headings ``names``."""
    told = {_METHOD: entry.label, _DATA: entry.data}
    return tuple(told.get(name, entry.variant) for name in names)


def _group(model: str) -> int:
    """Return the place of a model's group; models outside the paper share the last one."""
    found = [place for place, group in enumerate(paper.GROUPS) if network(model) in group]
    return found[0] if found else len(paper.GROUPS)


def _lines(group: Sequence[Entry], measures: Sequence[Measure],
           stubs: Sequence[str]) -> list[Line]:
    lines = []
    for entry in group:
        rivals = [other for other in group if other.comparable == entry.comparable]
        cells = tuple(_cell(entry.values, measure, _best(rivals, measure))
                      for measure in measures)
        lines.append(Line(stubs_of(entry, stubs), "ours" if entry.reference else "single", cells))
        lines.extend(_beside(entry, measures, len(stubs)))
    return lines


def _best(rivals: Sequence[Entry], measure: Measure) -> str | None:
    """Return a column's best value as printed, so that equal print is equal rank, or None."""
    digits = measure.decimals
    known = [float(printed(entry.values[measure.key], decimals=digits)) for entry in rivals
             if measure.key in entry.values]
    return printed(measure.best(known), decimals=digits) if len(known) > 1 else None


def _cell(values: Mapping[str, float], measure: Measure, best: str | None) -> Cell:
    key, digits = measure.key, measure.decimals
    value = values.get(key, math.nan)
    return Cell(value, values.get(f"{key}_drop"), decimals=digits,
                bold=best is not None and printed(value, decimals=digits) == best,
                low=values.get(f"{key}_low", math.nan), high=values.get(f"{key}_high", math.nan))


def _beside(entry: Entry, measures: Sequence[Measure], stubs: int) -> list[Line]:
    """Return the lines below an entry's own: its rates over all images, the paper's numbers."""
    blank = ("",) * (stubs - 1)
    lines = []
    if entry.overall:
        cells = tuple(_cell(entry.overall, measure, None) for measure in measures)
        lines.append(Line((f"over all {entry.images} images", *blank), "beside", cells))
    if entry.reference:
        theirs = tuple(_cell(entry.reference, measure, None) for measure in measures)
        # Of the drops no difference is printed: it follows from those of the accuracies.
        change = tuple(Cell(entry.values.get(measure.key, math.nan)
                            - entry.reference.get(measure.key, math.nan), signed=True,
                            decimals=measure.decimals)
                       for measure in measures)
        lines += [Line(("paper", *blank), "beside", theirs),
                  Line(("difference", *blank), "beside", change)]
    return lines
