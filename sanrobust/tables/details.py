"""The second table of an experiment: every interval, and what the first one does not print."""

from __future__ import annotations

import math
from dataclasses import replace

from sanrobust.experiments.layout import Entry, Layout, Listing, Measure
from sanrobust.tables.entries import entries, parts
from sanrobust.tables.grid import Grid, has_values, printed, stubs_of
from sanrobust.tables.table import Table

DASH = "–"


def intervals(table: Table, layout: Grid) -> Listing:
    """Return the table of intervals, as texts.

    With a layout that has details it has a line for each part, with measures that the first table
    does not print; otherwise a line for each model.
    """
    in_lines = bool(table.layout.details)
    headings, lines = _part_lines(table, layout) if in_lines else _wide_lines(table, layout)
    rows = tuple((*stubs_of(entry, layout.stubs), *cells) for entry, cells in lines)
    # A part stands beside the stubs, aligned as they are.
    return Listing(f"{table.intervals[0].upper()}{table.intervals[1:]}:",
                   (*layout.stubs, *headings), rows, len(layout.stubs) + in_lines)


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
                words = own.in_words(part) or DASH
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
