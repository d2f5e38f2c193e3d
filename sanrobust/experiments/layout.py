"""How the rows of an experiment are printed, as values that every renderer reads.

A table has one row per run and *part*, such as the budget of an attack; an experiment without parts
has one row per run. People read one line per run: an `Entry`, with the numbers of all its parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Part = tuple[float | str, ...]
"""Values of the columns that tell a run's rows apart; inf stands for what a run does not have."""
Facts = Mapping[str, object]


@dataclass(frozen=True)
class Measure:
    """One printed column.

    Attributes:
        key: the value's name.
        label: its heading.
        best: which values are good.
        decimals: with which it is printed.
        rare: left out of a table in which no line has the value.
    """

    key: str
    label: str
    best: Callable[[Iterable[float]], float] = max
    decimals: int = 1
    rare: bool = False


@dataclass(frozen=True)
class Head:
    """A heading over several measures, with an optional second line."""

    title: str
    detail: str
    measures: tuple[Measure, ...]


@dataclass(frozen=True)
class Entry:
    """One model of the wide layout: all its numbers under one set of settings.

    Attributes:
        model, data: full names.
        variant: what was done to the images in a word or two, as for an attack; may be empty.
        label: how the model is printed, unique within its dataset and variant.
        facts: other columns of its rows (counts, settings, provenance).
        comparable: what entries agree in of which one can be called better.
        values: numbers by measure, with drops and interval bounds under their column's name; those
            of part number i are called ``i:NAME``.
        overall: rates over all images by measure, failed ones included; empty where none failed.
        reference: the published numbers by measure; empty where there are none.
        extra: the layout's extra columns, as the first of its rows has them.
    """

    model: str
    data: str
    variant: str
    label: str
    facts: Facts
    comparable: tuple[str, ...]
    values: Mapping[str, float]
    overall: Mapping[str, float]
    reference: Mapping[str, float]
    extra: Facts = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images were to be measured, those that failed included."""
        return sum(int(str(self.facts.get(name, 0))) for name in ("n", "failed"))


@dataclass(frozen=True)
class Listing:
    """A further table of a file in Markdown: what it shows, its headings and its lines.

    The first ``stubs`` columns are text, the others numbers, all as they are to be printed.
    """

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    stubs: int = 1


def _nothing(facts: Facts) -> str:
    del facts
    return ""


def _no_notes(entries: Sequence[Entry]) -> Iterator[str]:
    del entries
    return iter(())


def _no_listings(entries: Sequence[Entry]) -> Iterator[Listing]:
    del entries
    return iter(())


def _always(facts: Facts) -> bool:
    del facts
    return True


def _as_they_come(part: Part) -> tuple[float | str, ...]:
    return part


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The columns of an experiment's table and the words around them.

    Attributes:
        rates: columns in percent that have an interval, ``NAME_low`` and ``NAME_high``, and
            ``NAME_all`` where images failed.
        values: columns behind ``n``, in their order: rates, drops, parts.
        extra: columns behind ``failed`` that every row has.
        rare: columns that only some rows have; a file has each where the column that it names has
            anything but zeros.
        clean: the rate that is the accuracy on untouched images.
        heads: headings of the parts that a table has, given in their order.
        title: what the table shows, a phrase, from its lines.
        legend: one sentence that explains the measures, given the columns that have values.
        parts: columns that tell a run's rows apart.
        order: the place of a part among the others.
        shared: columns in which a run's rows agree; they are printed once.
        details: measures of the second table in Markdown, which has a line for each part; empty:
            those of the heads, in one line.
        part_noun: what a column of parts is called.
        part_words: a part in words; None where its columns' names and values say it.
        further: rates that neither the heads nor the details have, in words.
        variant: what was done to the images in a word or two, from the facts of a row.
        variant_noun: what a column of variants is called.
        done: one sentence that says what was done to the images; empty where it goes without
            saying.
        notes: sentences about the lines of a table that a reader must not miss.
        failed_as: how images that failed count in the rates over all images.
        excluded_as: which images are excluded, a phrase in front of their number.
        units: one sentence that names the units of the numbers.
        intervals: what the columns ``_low`` and ``_high`` bound.
        listings: further tables of the file in Markdown, from the lines.
        ranked: the measure by which a leaderboard ranks models; empty: ``clean``.
        as_reported: whether the clean accuracy of a row may be held against the one reported for
            its model, from the row's columns.
    """

    rates: tuple[str, ...]
    values: tuple[str, ...]
    clean: str
    heads: Callable[[Sequence[Part]], Sequence[Head]]
    title: Callable[[Sequence[Entry]], str]
    legend: Callable[[Container[str]], str]
    extra: tuple[str, ...] = ()
    rare: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    order: Callable[[Part], tuple[float | str, ...]] = _as_they_come
    shared: tuple[str, ...] = ()
    details: tuple[Measure, ...] = ()
    part_noun: str = ""
    part_words: Callable[[Part], str] | None = None
    further: Mapping[str, str] = field(default_factory=dict)
    variant: Callable[[Facts], str] = _nothing
    variant_noun: str = ""
    done: Callable[[Facts], str] = _nothing
    notes: Callable[[Sequence[Entry]], Iterator[str]] = _no_notes
    failed_as: str = "as wrong"
    excluded_as: str = ("Images without a target, because their label is the class aimed at, and "
                        "so in no rate")
    units: str = "All numbers in percent."
    intervals: str = "95 % Wilson intervals"
    listings: Callable[[Sequence[Entry]], Iterator[Listing]] = _no_listings
    ranked: str = ""
    as_reported: Callable[[Facts], bool] = _always

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns behind ``model`` and ``data``: values, intervals, counts."""
        bounds = [f"{name}_{bound}" for name in self.rates for bound in ("low", "high")]
        return ("n", *self.values, *bounds, "failed", *self.extra)

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns behind those that only some rows have."""
        return ("excluded", "reasons", *(f"{name}_all" for name in self.rates), *self.rare)

    def in_words(self, part: Part) -> str:
        """Return a part in words; inf stands for what it does not have."""
        if part and self.part_words is not None:
            return self.part_words(part)
        return ", ".join(f"{column} {value:g}" if isinstance(value, float) else value
                         for column, value in zip(self.parts, part) if value != math.inf)

    def label(self, rate: str) -> str:
        """Return a rate of a part in words, or its name where the layout has none."""
        labels = {measure.key: measure.label for measure in self.details}
        return {**labels, **self.further}.get(rate, rate)

    def is_shared(self, column: str) -> bool:
        """Return whether a column is printed once for all parts."""
        return not self.parts or any(column == name or column.startswith(f"{name}_")
                                     for name in self.shared)
