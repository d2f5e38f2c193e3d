"""The paper's wide layout of a table, before it becomes text in any format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from sanrobust import paper
from sanrobust.metrics import VIEWS
from sanrobust.tables.table import (BUDGET, NOT_SETTINGS, PAPER_PREFIX, Table, architecture,
                                    network, standard_columns)

VIEW_TITLES: Mapping[str, str] = {
    "none": "no rotation", "cw90": "clockwise 90°", "cw180": "clockwise 180°",
    "cw270": "clockwise 270°", "updown": "upside-down",
}

_NOT_MEASURED = ("n", "failed", "mean_linf", *BUDGET)

Role = Literal["single", "ours", "paper", "difference"]


@dataclass(frozen=True)
class Measure:
    """One printed column: the value's name, its heading, and which values are good."""

    key: str
    label: str
    best: Callable[[Iterable[float]], float] = max


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
        label: how the model is printed, unique within its dataset.
        facts: other columns of its rows (n, failed, provenance).
        values: numbers by measure, with drops and interval bounds under their column's name.
        paper: the paper's numbers by measure; empty where it has none.
    """

    model: str
    data: str
    label: str
    facts: Mapping[str, object]
    values: Mapping[str, float]
    paper: Mapping[str, float]


@dataclass(frozen=True)
class Cell:
    """One printed number; ``drop`` goes into brackets, nan prints as a dash."""

    value: float
    drop: float | None = None
    bold: bool = False
    signed: bool = False


@dataclass(frozen=True)
class Line:
    """One printed row."""

    label: str
    data: str
    role: Role
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """Headings and groups of lines; a rule stands between two groups."""

    stubs: tuple[str, ...]
    heads: tuple[Head, ...]
    groups: tuple[tuple[Line, ...], ...]


def printed(value: float, *, signed: bool = False) -> str:
    """Return a number with one decimal and no negative zero; nan gives an empty string."""
    if math.isnan(value):
        return ""
    rounded = float(f"{value:.1f}") + 0.0
    return f"{rounded:+.1f}" if signed else f"{rounded:.1f}"


def grid(table: Table) -> Grid:
    """Arrange a table as the paper prints it: one line per model, grouped, the best in bold."""
    heads = _heads(table)
    measures = [measure for head in heads for measure in head.measures]
    members = entries(table)
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in members:
        groups.setdefault((entry.data, _group(entry.model)), []).append(entry)
    several = len({entry.data for entry in members}) > 1
    return Grid(("Method", "Data") if several else ("Method",), heads,
                tuple(tuple(_lines(group, measures)) for group in groups.values()))


def entries(table: Table) -> list[Entry]:
    """Return the models of a table in order, each with a label of its own."""
    raw = _rotation_entries(table) if table.layout == "rotation" else _pgd_entries(table)
    return _labelled(raw)


def budgets(table: Table) -> list[tuple[float, float, float]]:
    """Return the budgets of an attack table, by eps and then iterations as in Table 10."""
    return sorted(set(_budget_keys(table.rows)), key=lambda key: (key[0], key[2], key[1]))


def budget_text(budget: tuple[float, float, float]) -> tuple[str, str]:
    """Return a budget's heading and its detail; what an attack does not have is left out."""
    eps, step, iters = budget
    title = f"attack n = {iters:g}" if math.isfinite(iters) else "attack"
    parts = {"ε": eps, "ρ": step}
    return title, ", ".join(f"{sign} = {part:g}" for sign, part in parts.items()
                            if math.isfinite(part))


def _heads(table: Table) -> tuple[Head, ...]:
    if table.layout == "rotation":
        return tuple(Head(VIEW_TITLES[view], "", (Measure(f"{view}_top1", "top-1"),
                                                  Measure(f"{view}_top5", "top-5")))
                     for view in VIEWS)
    attacks = (Head(*budget_text(budget), (Measure(f"{number}:success", "s. rate", min),
                                           Measure(f"{number}:top1_adv", "top-1")))
               for number, budget in enumerate(budgets(table)))
    return (Head("clean", "", (Measure("clean_top1", "top-1"),)), *attacks)


def _rotation_entries(table: Table) -> list[Entry]:
    names = _measured(table)
    return [_entry(table, row, _numbers(row, names), _numbers(row, names, prefix=PAPER_PREFIX))
            for _, row in table.rows.iterrows()]


def _pgd_entries(table: Table) -> list[Entry]:
    """Join the rows of one model that differ in the budget alone; a repeated budget does not."""
    order = {budget: number for number, budget in enumerate(budgets(table))}
    rows = table.rows.assign(_budget=[order[key] for key in _budget_keys(table.rows)])
    same = [name for name in ("model", "data", "n", "failed", "clean_top1", *table.settings)
            if name in rows]
    rows["_repeat"] = rows.groupby([*same, "_budget"], dropna=False, sort=False).cumcount()
    names, joined = _measured(table), []
    for _, part in rows.groupby([*same, "_repeat"], dropna=False, sort=False):
        values: dict[str, float] = {}
        reference: dict[str, float] = {}
        for _, row in part.iterrows():
            number = int(row["_budget"])
            values.update(_numbers(row, names, budget=number))
            reference.update(_numbers(row, names, budget=number, prefix=PAPER_PREFIX))
        joined.append(_entry(table, part.iloc[0], values, reference))
    return joined


def _budget_keys(rows: pd.DataFrame) -> list[tuple[float, float, float]]:
    # inf stands for what an attack does not have: unlike nan it equals itself and sorts last.
    filled = [rows[name].astype("Float64").fillna(math.inf).astype(float) for name in BUDGET]
    return list(zip(*(column.tolist() for column in filled)))


def _measured(table: Table) -> list[str]:
    return [name for name in standard_columns(table.layout) if name not in _NOT_MEASURED]


def _numbers(row: pd.Series, names: Iterable[str], *, budget: int | None = None,
             prefix: str = "") -> dict[str, float]:
    """Return a row's known numbers by measure; those of an attack carry its budget's number."""
    found = {}
    for name in names:
        value = row.get(prefix + name)
        if value is not None and not pd.isna(value):
            shared = budget is None or name.startswith("clean_")
            found[name if shared else f"{budget}:{name}"] = float(value)
    return found


def _entry(table: Table, row: pd.Series, values: Mapping[str, float],
           reference: Mapping[str, float]) -> Entry:
    facts = {name: row[name] for name in ("n", "failed", *table.provenance)
             if pd.notna(row.get(name))}
    model = str(row["model"])
    return Entry(model, str(row["data"]), _label(model), facts, values, reference)


def _label(model: str) -> str:
    """Print a network of the paper as the paper does, with its options; others by full name."""
    name = paper.DISPLAY_NAMES.get(network(model))
    if name is None:
        return model
    options = architecture(model)[len(network(model)):].strip("()")
    # A relation says by itself what it is.
    chosen = [text.removeprefix("relation=").replace("=", " ") for text in options.split(",")]
    return f"{name} ({', '.join(chosen)})" if options else name


def _labelled(raw: Sequence[Entry]) -> list[Entry]:
    """Tell equal labels apart by the weights' tag, by whatever else differs, or by number."""
    return _apart(_apart(_apart(raw, _tag), _difference), _number)


def _apart(raw: Sequence[Entry], suffix: Callable[[Entry, Sequence[Entry]], str]) -> list[Entry]:
    result = []
    for entry in raw:
        namesakes = [other for other in raw
                     if (other.label, other.data) == (entry.label, entry.data)]
        extra = suffix(entry, namesakes) if len(namesakes) > 1 else ""
        label = f"{entry.label} ({extra})" if extra else entry.label
        result.append(Entry(entry.model, entry.data, label, entry.facts, entry.values,
                            entry.paper))
    return result


def _tag(entry: Entry, namesakes: Sequence[Entry]) -> str:
    if len({other.model for other in namesakes}) == 1:
        return ""
    return entry.model.partition(".")[2]


def _difference(entry: Entry, namesakes: Sequence[Entry]) -> str:
    def differing(names: Iterable[str]) -> list[str]:
        return [f"{name} {entry.facts.get(name, 'unknown')}" for name in names
                if len({str(other.facts.get(name)) for other in namesakes}) > 1]
    names = list(dict.fromkeys(name for other in namesakes for name in other.facts))
    settings = differing(name for name in names if name not in NOT_SETTINGS)
    return ", ".join(settings or differing(name for name in names if name in NOT_SETTINGS))


def _number(entry: Entry, namesakes: Sequence[Entry]) -> str:
    return next(str(place) for place, other in enumerate(namesakes, 1) if other is entry)


def _group(model: str) -> int:
    """Return the place of a model's group; models outside the paper share the last one."""
    found = [place for place, group in enumerate(paper.GROUPS) if network(model) in group]
    return found[0] if found else len(paper.GROUPS)


def _lines(group: Sequence[Entry], measures: Sequence[Measure]) -> list[Line]:
    best = {measure.key: _best(group, measure) for measure in measures}
    lines = []
    for entry in group:
        cells = tuple(_cell(entry.values, measure.key, best[measure.key]) for measure in measures)
        role: Role = "ours" if entry.paper else "single"
        lines.append(Line(entry.label, entry.data, role, cells))
        if entry.paper:
            lines.extend(_paper_lines(entry, measures))
    return lines


def _best(group: Sequence[Entry], measure: Measure) -> str | None:
    """Return a column's best value as printed, so that equal print is equal rank, or None."""
    known = [float(printed(entry.values[measure.key])) for entry in group
             if measure.key in entry.values]
    return printed(measure.best(known)) if len(known) > 1 else None


def _cell(values: Mapping[str, float], key: str, best: str | None) -> Cell:
    value = values.get(key, math.nan)
    return Cell(value, values.get(f"{key}_drop"), bold=best is not None and printed(value) == best)


def _paper_lines(entry: Entry, measures: Sequence[Measure]) -> list[Line]:
    theirs = tuple(_cell(entry.paper, measure.key, None) for measure in measures)
    # Of the drops no difference is printed: it follows from those of the accuracies.
    change = tuple(Cell(entry.values.get(measure.key, math.nan)
                        - entry.paper.get(measure.key, math.nan), signed=True)
                   for measure in measures)
    return [Line("paper", "", "paper", theirs), Line("difference", "", "difference", change)]
