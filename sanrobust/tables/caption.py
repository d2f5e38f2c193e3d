"""What stands under a table: everything a reader needs to trust or doubt its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from sanrobust import paper
from sanrobust.choices import FLOAT32, TF32
from sanrobust.experiments.layout import Entry, Layout
from sanrobust.tables.entries import entries, short
from sanrobust.tables.grid import Grid
from sanrobust.tables.table import PAPER_PREFIX, Table

_REASONS_TOLD = 3
_IN_WORDS = {"data_digest": "digest of the images"}


def caption(table: Table, layout: Grid, *, weights: bool = False) -> str:
    """Return the caption as plain text, in sentences.

    It says what was done to the images, names the data, how many images were evaluated, failed
    and were left out, the intervals, the facts that are not the same in all rows, what is to be
    known of single models, the table's note and, if asked for, the digests of the weights.
    """
    members = entries(table)
    bold = any(cell.bold for group in layout.groups for line in group for cell in line.cells)
    sentences = [
        f"{title(table)}.",
        table.layout.units,
        *_done_sentences(members, table.layout),
        table.layout.legend(_known(table)),
        _best_sentence(members) if bold else "",
        _data_sentence(members),
        _precision_sentence(members),
        *_failed_sentences(members, table.layout),
        _excluded_sentence(members, table.layout),
        *table.layout.notes(members),
        _interval_sentence(table),
        _by_value("Weights", members, "weights") if weights else "",
        *_difference_sentences(table, members),
        *_remarks(members),
        _paper_sentence(table),
        " ".join(table.note.split()),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _best_sentence(members: Sequence[Entry]) -> str:
    alike = len({entry.comparable for entry in members}) < 2
    return f"Bold: best of its group{'' if alike else ' among rows that are measured alike'}."


def title(table: Table) -> str:
    """Return the table's title: its own, or what its rows are."""
    if table.title:
        return " ".join(table.title.split()).rstrip(".")
    return table.layout.title(entries(table))


def _known(table: Table) -> set[str]:
    """Return the columns that have a value in some row."""
    return {name for name in table.columns if table.rows[name].notna().any()}


def _done_sentences(members: Sequence[Entry], layout: Layout) -> Iterator[str]:
    """Say what was done to the images, each way once."""
    told: dict[str, list[Entry]] = {}
    for entry in members:
        if words := _done(entry, layout):
            told.setdefault(words, []).append(entry)
    names = [name for alike in told.values() for name in {entry.variant for entry in alike}]
    for words, alike in told.items():
        # The variant's own name where it stands for one set of settings, else the lines' names.
        alone = all(names.count(entry.variant) == 1 for entry in alike)
        whose = dict.fromkeys(entry.variant if alone else f"{_named(entry)}{_on(entry, members)}"
                              for entry in alike)
        holders = f" ({'; '.join(whose)})" if len(told) > 1 else ""
        yield f"{layout.variant_noun}{holders}: {words}."


def _on(entry: Entry, members: Sequence[Entry]) -> str:
    """Name an entry's data where the table has several."""
    return f" on {entry.data}" if len({other.data for other in members}) > 1 else ""


def _done(entry: Entry, layout: Layout) -> str:
    return layout.done(entry.facts).rstrip(".")


def _named(entry: Entry) -> str:
    return f"{entry.label}, {entry.variant}"


def _data_sentence(members: Sequence[Entry]) -> str:
    parts = []
    for data in dict.fromkeys(entry.data for entry in members):
        counts = _values([entry for entry in members if entry.data == data], "n", unit=" images")
        parts.append(f"{data}, {counts}" if counts else data)
    return f"Data: {'; '.join(parts)}."


def _precision_sentence(members: Sequence[Entry]) -> str:
    """Say in what networks were computed, where any was in another precision than float32."""
    found = dict.fromkeys(str(entry.facts.get("precision", FLOAT32)) for entry in members)
    if set(found) == {FLOAT32}:
        return ""
    said = all("precision " in entry.label for entry in members)
    values = ", ".join(found) if said else _values(members, "precision")
    how = "" if set(found) <= {FLOAT32, TF32} else ", 16-bit types by torch's autocast"
    return f"Networks computed in {values}{how}; pixels and attacks in float32."


def _failed_sentences(members: Sequence[Entry], layout: Layout) -> Iterator[str]:
    known = [entry for entry in members if "failed" in entry.facts]
    if not known:
        return
    failed = [entry for entry in known if entry.facts["failed"] != 0]
    if not failed:
        yield "No image failed."
        return
    told = "; ".join(_failure(entry, members) for entry in failed)
    comma = ":" if "," in layout.failed_as else ","
    yield (f"Images that failed: {told}. They are in no rate but those over all images, where "
           f"they count against the model{comma} {layout.failed_as}.")


def _failure(entry: Entry, members: Sequence[Entry]) -> str:
    text = f"{entry.facts['failed']} of {entry.images} ({entry.label}{_on(entry, members)})"
    counted: dict[str, int] = json.loads(str(entry.facts.get("reasons", "{}")))
    if not counted:
        return text
    told = [f"{reason}, {count}" for reason, count in list(counted.items())[:_REASONS_TOLD]]
    more = len(counted) - len(told)
    return f"{text}: {'; '.join(told)}{f'; {more} more reasons' if more else ''}"


def _excluded_sentence(members: Sequence[Entry], layout: Layout) -> str:
    known = [entry for entry in members if entry.facts.get("excluded")]
    if not known:
        return ""
    return (f"{layout.excluded_as}: "
            f"{_values(known, 'excluded', named=len(known) < len(members))}.")


def _interval_sentence(table: Table) -> str:
    halves = [(table.rows[f"{name}_high"] - table.rows[f"{name}_low"]) / 2
              for name in table.layout.rates if f"{name}_low" in table.columns]
    known = [float(half) for column in halves for half in column.dropna()]
    if not known:
        return ""
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    span = low if low == high else f"{low} to {high}"
    return f"Half-widths of the {table.intervals}: {span} points."


def _difference_sentences(table: Table, members: Sequence[Entry]) -> Iterator[str]:
    """Name every setting in which rows differ: they are not strictly comparable.

    Facts of data and model are named where rows of the same data and model differ in them.
    """
    for name in (*table.settings, "preprocessing", "code"):
        if name == "precision":  # has a sentence of its own
            continue
        kinds: dict[tuple[str, str], set[str]] = {}
        for entry in members:
            of = {"data_digest": entry.data, "preprocessing": entry.model, "code": entry.model}
            # The words for what was done say its settings already.
            key = (of.get(name, ""), "" if name in of else _done(entry, table.layout))
            kinds.setdefault(key, set()).add(str(entry.facts.get(name)))
        said = all(f"{name} " in entry.label for entry in members)
        if not said and any(len(values) > 1 for values in kinds.values()):
            yield _by_value(f"Not the same in all rows: {_IN_WORDS.get(name, name)}", members,
                            name)


def _remarks(members: Sequence[Entry]) -> list[str]:
    """Return what is to be known of single models, each sentence once."""
    told = [str(remark) for entry in members
            for remark in json.loads(str(entry.facts.get("remarks") or "[]"))]
    return [f"{remark.rstrip('.')}." for remark in dict.fromkeys(told)]


def _paper_sentence(table: Table) -> str:
    compared = any(name.startswith(PAPER_PREFIX) for name in table.columns)
    return f"Paper: {paper.SOURCE}." if compared else ""


def _by_value(title: str, members: Sequence[Entry], name: str) -> str:
    text = _values([entry for entry in members if name in entry.facts], name)
    return f"{title}: {text}." if text else ""


def _values(members: Sequence[Entry], name: str, *, unit: str = "", named: bool = False) -> str:
    """List the values of a fact, each with the models it holds for unless it holds for all."""
    variants = len({entry.variant for entry in members}) > 1
    holders: dict[str, list[str]] = {}
    for entry in members:
        if name in entry.facts:
            label = _named(entry) if variants else entry.label
            label += _on(entry, members)
            holders.setdefault(short(str(entry.facts[name])), []).append(label)
    told = {value: f"{value}{unit.removesuffix('s') if value == '1' else unit}"
            for value in holders}
    if len(holders) == 1 and not named:
        return next(iter(told.values()))
    return "; ".join(f"{told[value]} ({', '.join(dict.fromkeys(labels))})"
                     for value, labels in holders.items())
