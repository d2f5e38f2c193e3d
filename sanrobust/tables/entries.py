"""The rows of a table as the lines that people read: one per model and settings, each with a label
of its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import pandas as pd

from sanrobust import paper
from sanrobust.attacks.describe import attack_name, attack_strength
from sanrobust.files import printable
from sanrobust.tables.table import (BUDGET, MODEL_FACTS, PAPER_PREFIX, Table, architecture, network,
                                    optional_columns, standard_columns)

Budget = tuple[float, float, float]

# What the columns of a row mean beside its numbers; the first ones tell rows apart best.
_COUNTS = ("n", "failed", "excluded", "reasons")
_SPARED = ("run_id", "failed", "excluded", "data_digest", "code", "weights", "source")
_LONGEST_SUFFIX = 60
_DIGEST = re.compile(r"[0-9a-f]{32,}")


@dataclass(frozen=True)
class Entry:
    """One model of the wide layout: all its numbers under one set of settings.

    Attributes:
        model, data: full names.
        attack: the attack in a word or two; empty for a table without attacks.
        label: how the model is printed, unique within its dataset and attack.
        facts: other columns of its rows (counts, settings, provenance).
        comparable: what entries agree in of which one can be called better.
        values: numbers by measure, with drops and interval bounds under their column's name.
        overall: rates over all images by measure, failed ones included; empty where none failed.
        paper: the paper's numbers by measure; empty where it has none.
    """

    model: str
    data: str
    attack: str
    label: str
    facts: Mapping[str, object]
    comparable: tuple[str, ...]
    values: Mapping[str, float]
    overall: Mapping[str, float]
    paper: Mapping[str, float]

    @property
    def images(self) -> int:
        """How many images were to be measured, those that failed included."""
        return sum(int(str(self.facts.get(name, 0))) for name in ("n", "failed"))


def entries(table: Table) -> list[Entry]:
    """Return the models of a table in order, each with a label of its own."""
    raw = _rotation_entries(table) if table.layout == "rotation" else _pgd_entries(table)
    return _labelled(raw)


def budgets(table: Table) -> list[Budget]:
    """Return the budgets of an attack table, by eps and then iterations as in Table 10."""
    return sorted(set(_budget_keys(table.rows)), key=lambda key: (key[0], key[2], key[1]))


def settings_of(facts: Mapping[str, object]) -> dict[str, object]:
    """Return the settings of an attack as its specification has them, from a row's columns."""
    settings = dict(facts)
    if isinstance(settings.get("options"), str):
        settings["options"] = json.loads(str(settings["options"]))
    return settings


def short(value: str) -> str:
    """Cut a digest to the twelve digits that people compare."""
    return value[:12] if _DIGEST.fullmatch(value) else value


def _rotation_entries(table: Table) -> list[Entry]:
    return [_entry(table, row, [(None, row)]) for _, row in table.rows.iterrows()]


def _pgd_entries(table: Table) -> list[Entry]:
    """Join the rows of one model that differ in the budget alone; a repeated budget does not."""
    order = {budget: number for number, budget in enumerate(budgets(table))}
    rows = table.rows.assign(_budget=[order[key] for key in _budget_keys(table.rows)])
    same = [name for name in ("model", "data", "n", "failed", "clean_top1", "preprocessing",
                              "code", "weights", *table.settings) if name in rows]
    rows["_repeat"] = rows.groupby([*same, "_budget"], dropna=False, sort=False).cumcount()
    return [_entry(table, part.iloc[0],
                   [(int(row["_budget"]), row) for _, row in part.iterrows()])
            for _, part in rows.groupby([*same, "_repeat"], dropna=False, sort=False)]


def _budget_keys(rows: pd.DataFrame) -> list[Budget]:
    # inf stands for what an attack does not have: unlike nan it equals itself and sorts last.
    filled = [rows[name].astype("Float64").fillna(math.inf).astype(float) for name in BUDGET]
    return list(zip(*(column.tolist() for column in filled)))


def _entry(table: Table, first: pd.Series, rows: Sequence[tuple[int | None, pd.Series]]) -> Entry:
    """Make an entry of rows that differ in the budget alone, each with its budget's number."""
    facts = {name: first[name] for name in (*_COUNTS, *table.provenance)
             if pd.notna(first.get(name))}
    values: dict[str, float] = {}
    overall: dict[str, float] = {}
    reference: dict[str, float] = {}
    measured = _measured(table)
    for budget, row in rows:
        values.update(_numbers(row, measured, budget))
        overall.update(_numbers(row, measured, budget, suffix="_all"))
        reference.update(_numbers(row, measured, budget, prefix=PAPER_PREFIX))
    model, data = str(first["model"]), printable(str(first["data"]))
    settings = [f"{name} {facts.get(name)}" for name in table.settings]
    # Rates over the images that did not fail are rates over other images.
    survivors = f"{model} {facts.get('n')}" if facts.get("failed") else ""
    return Entry(model, data, _attack(facts), _label(model), facts, (data, survivors, *settings),
                 values, overall, reference)


def _measured(table: Table) -> list[str]:
    beside = {*_COUNTS, *BUDGET, "mean_linf"}
    names = (*standard_columns(table.layout), *optional_columns(table.layout))
    return [name for name in names if name not in beside and not name.endswith("_all")]


def _numbers(row: pd.Series, names: Iterable[str], budget: int | None, *, prefix: str = "",
             suffix: str = "") -> dict[str, float]:
    """Return a row's known numbers by measure; those of an attack carry its budget's number."""
    found = {}
    for name in names:
        value = row.get(prefix + name + suffix)
        if value is not None and not pd.isna(value):
            shared = budget is None or name.startswith("clean_")
            found[name if shared else f"{budget}:{name}"] = float(value)
    return found


def _attack(facts: Mapping[str, object]) -> str:
    if "attack" not in facts:
        return ""
    settings = settings_of(facts)
    words = (attack_name(settings), attack_strength(settings))
    return ", ".join(word for word in words if word)


def _label(model: str) -> str:
    """Print a network of the paper as the paper does, with its options; others by full name."""
    name = paper.DISPLAY_NAMES.get(network(model))
    if name is None:
        return printable(model)
    options = architecture(model)[len(network(model)):].strip("()")
    # A relation says by itself what it is.
    chosen = [text.removeprefix("relation=").replace("=", " ") for text in options.split(",")]
    return f"{name} ({', '.join(chosen)})" if options else name


def _labelled(raw: Sequence[Entry]) -> list[Entry]:
    """Tell equal labels apart by the weights' tag, by whatever else differs, or by number."""
    return _apart(_apart(_apart(raw, _tag), _differences), _number)


def _apart(raw: Sequence[Entry], suffix: Callable[[Entry, Sequence[Entry]], str]) -> list[Entry]:
    result = []
    for entry in raw:
        namesakes = [other for other in raw if (other.label, other.data, other.attack)
                     == (entry.label, entry.data, entry.attack)]
        extra = suffix(entry, namesakes) if len(namesakes) > 1 else ""
        result.append(replace(entry, label=f"{entry.label} ({extra})") if extra else entry)
    return result


def _tag(entry: Entry, namesakes: Sequence[Entry]) -> str:
    if len({other.model for other in namesakes}) == 1:
        return ""
    return entry.model.partition(".")[2]


def _differences(entry: Entry, namesakes: Sequence[Entry]) -> str:
    """Name the facts in which an entry differs from those that would print alike."""
    said = [_facts_in_words(other, namesakes) for other in namesakes]
    names = [name for name in dict.fromkeys(name for facts in said for name in facts)
             if len({facts.get(name, "") for facts in said}) > 1]
    for spared in _SPARED:  # what another fact tells as well, and easier to read
        others = [name for name in names if name != spared]
        if _kinds(said, others) == _kinds(said, names):
            names = others
    own = _facts_in_words(entry, namesakes)
    text = ", ".join(own.get(name, f"{name} unknown") for name in names)
    return text if len(text) <= _LONGEST_SUFFIX else ""


def _kinds(said: Sequence[Mapping[str, str]], names: Sequence[str]) -> int:
    return len({tuple(facts.get(name, "") for name in names) for facts in said})


def _facts_in_words(entry: Entry, namesakes: Sequence[Entry]) -> dict[str, str]:
    last = (*MODEL_FACTS, "run_id")
    names = [name for name in entry.facts if name not in (*last, "remarks", "reasons")]
    return {name: f"{name} {_in_words(name, entry, namesakes)}"
            for name in (*names, *last) if name in entry.facts}


def _in_words(name: str, entry: Entry, namesakes: Sequence[Entry]) -> str:
    text = str(entry.facts[name])
    if name == "source":
        return "/".join(PurePath(text).parts[-2:])
    if name not in ("preprocessing", "options"):
        return short(text)
    values = json.loads(text)
    others = [json.loads(str(other.facts.get(name, "{}"))) for other in namesakes]
    told = [f"{key}={value}" for key, value in values.items()
            if any(other.get(key) != value for other in others)]
    return " ".join(told) or "unchanged"


def _number(entry: Entry, namesakes: Sequence[Entry]) -> str:
    return next(str(place) for place, other in enumerate(namesakes, 1) if other is entry)
