"""The rows of a table as the lines that people read: one per model and settings, each with a label
of its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

import pandas as pd

from sanrobust import paper
from sanrobust.data.catalog import DATASETS
from sanrobust.experiments.layout import Entry, Layout, Part
from sanrobust.files import printable
from sanrobust.tables.table import MODEL_FACTS, PAPER_PREFIX, Table, architecture, network

# What the columns of a row mean beside its numbers; the first ones tell rows apart best.
_COUNTS = ("n", "failed", "excluded", "reasons")
_SPARED = ("run_id", "failed", "excluded", "data_digest", "code", "weights", "source")
_LONGEST_SUFFIX = 60
_DIGEST = re.compile(r"[0-9a-f]{32,}")


def entries(table: Table) -> list[Entry]:
    """Return the models of a table in order, each with a label of its own."""
    return _labelled(_joined(table))


def parts(table: Table) -> list[Part]:
    """Return the parts that the rows of a table are of, in the layout's order."""
    return sorted(set(_part_keys(table)), key=table.layout.order)


def short(value: str) -> str:
    """Cut a digest to the twelve digits that people compare."""
    return value[:12] if _DIGEST.fullmatch(value) else value


def _joined(table: Table) -> list[Entry]:
    """Join the rows of one model that differ in the part alone; a repeated part does not."""
    layout = table.layout
    if not layout.parts:
        return [_entry(table, row, [(0, row)]) for _, row in table.rows.iterrows()]
    order = {part: number for number, part in enumerate(parts(table))}
    rows = table.rows.assign(_part=[order[key] for key in _part_keys(table)])
    same = [name for name in ("model", "data", "n", "failed", *layout.shared, "preprocessing",
                              "code", "weights", *table.settings) if name in rows]
    rows["_repeat"] = rows.groupby([*same, "_part"], dropna=False, sort=False).cumcount()
    return [_entry(table, group.iloc[0],
                   [(int(row["_part"]), row) for _, row in group.iterrows()])
            for _, group in rows.groupby([*same, "_repeat"], dropna=False, sort=False)]


def _part_keys(table: Table) -> list[Part]:
    # inf stands for what a run does not have: unlike nan it equals itself and sorts last.
    columns = [[math.inf if pd.isna(value) else value if isinstance(value, str) else float(value)
                for value in table.rows[name]] for name in table.layout.parts]
    return list(zip(*columns))


def _entry(table: Table, first: pd.Series, rows: Sequence[tuple[int, pd.Series]]) -> Entry:
    """Make an entry of rows that differ in the part alone, each with its part's number."""
    facts = {name: first[name] for name in (*_COUNTS, *table.provenance)
             if pd.notna(first.get(name))}
    values: dict[str, float] = {}
    overall: dict[str, float] = {}
    reference: dict[str, float] = {}
    layout, measured = table.layout, _measured(table.layout)
    for part, row in rows:
        values.update(_numbers(row, measured, layout, part))
        overall.update(_numbers(row, measured, layout, part, suffix="_all"))
        reference.update(_numbers(row, measured, layout, part, prefix=PAPER_PREFIX))
    model, data = str(first["model"]), printable(str(first["data"]))
    settings = [f"{name} {facts.get(name)}" for name in table.settings]
    # Rates over the images that did not fail are rates over other images.
    survivors = f"{model} {facts.get('n')}" if facts.get("failed") else ""
    return Entry(model, data, layout.variant(facts), label_of(model), facts,
                 (data, survivors, *settings), values, overall, reference,
                 {name: first[name] for name in layout.extra if pd.notna(first.get(name))})


def _measured(layout: Layout) -> list[str]:
    beside = {*_COUNTS, *layout.parts, *layout.extra}
    return [name for name in (*layout.columns, *layout.optional)
            if name not in beside and not name.endswith("_all")]


def _numbers(row: pd.Series, names: Iterable[str], layout: Layout, part: int, *, prefix: str = "",
             suffix: str = "") -> dict[str, float]:
    """Return a row's known numbers by measure; those of a part carry its number."""
    found = {}
    for name in names:
        value = row.get(prefix + name + suffix)
        if value is not None and not pd.isna(value):
            found[name if layout.is_shared(name) else f"{part}:{name}"] = float(value)
    return found


def label_of(model: str) -> str:
    """Print a network of the paper as the paper does, with its options; others by full name."""
    name = paper.DISPLAY_NAMES.get(network(model))
    if name is None:
        return printable(model)
    options = architecture(model)[len(network(model)):].strip("()")
    # A relation says by itself what it is.
    chosen = [text.removeprefix("relation=").replace("=", " ") for text in options.split(",")]
    return f"{name} ({', '.join(chosen)})" if options else name


def _labelled(raw: Sequence[Entry]) -> list[Entry]:
    """Tell equal labels apart by the weights' tag, by whatever else differs, or by number; the tag
    stands too at weights of another kind than the rest or than those of the dataset."""
    return _apart(_apart(_of_a_kind(_apart(raw, _tag)), _differences), _number)


def _of_a_kind(raw: Sequence[Entry]) -> list[Entry]:
    """Add the tag to networks called as the paper calls them whose weights a reader cannot expect:
    others than the dataset has or, on images that no weights are known for, one kind of several."""
    are_several = len({_tag_of(each) for each in raw
                       if network(each.model) in paper.DISPLAY_NAMES}) > 1
    result = []
    for entry in raw:
        tag = _tag_of(entry)
        known = DATASETS.get(entry.data).tag if entry.data in DATASETS else None
        is_odd = tag != known if known is not None else are_several
        # The label of a network of the paper is not its name, and one told apart has its tag.
        is_bare = entry.label == label_of(entry.model) != printable(entry.model)
        result.append(replace(entry, label=f"{entry.label} ({tag})")
                      if tag and is_odd and is_bare else entry)
    return result


def _apart(raw: Sequence[Entry], suffix: Callable[[Entry, Sequence[Entry]], str]) -> list[Entry]:
    result = []
    for entry in raw:
        namesakes = [other for other in raw if (other.label, other.data, other.variant)
                     == (entry.label, entry.data, entry.variant)]
        extra = suffix(entry, namesakes) if len(namesakes) > 1 else ""
        result.append(replace(entry, label=f"{entry.label} ({extra})") if extra else entry)
    return result


def _tag(entry: Entry, namesakes: Sequence[Entry]) -> str:
    if len({other.model for other in namesakes}) == 1:
        return ""
    return _tag_of(entry)


def _tag_of(entry: Entry) -> str:
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
    if not text.startswith("{"):
        return short(text)
    values = json.loads(text)
    others = [json.loads(str(other.facts.get(name, "{}"))) for other in namesakes]
    told = [f"{key}={value}" for key, value in values.items()
            if any(other.get(key) != value for other in others)]
    return " ".join(told) or "unchanged"


def _number(entry: Entry, namesakes: Sequence[Entry]) -> str:
    return next(str(place) for place, other in enumerate(namesakes, 1) if other is entry)
