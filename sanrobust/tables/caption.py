"""What stands under a table: everything a reader needs to trust or doubt its numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sanrobust import paper
from sanrobust.tables.grid import Entry, Grid, entries
from sanrobust.tables.table import PAPER_PREFIX, Table

_ROTATION_LEGEND = "In brackets the drop in points against no rotation (lower is better)."
_PGD_LEGEND = ("n is the number of iterations, ε the largest change of a pixel and ρ the step, "
               "both in 1/255; s. rate is the share of images classified as their target{when} "
               "(lower is better), top-1 the accuracy under attack.")


def caption(table: Table, layout: Grid, *, weights: bool = False) -> str:
    """Return the caption as plain text, in sentences.

    It names the data, how many images were evaluated and how many failed, the intervals,
    settings that are not the same in all rows, the table's note and, if asked for, the digests of
    the weights.
    """
    members = entries(table)
    bold = any(cell.bold for group in layout.groups for line in group for cell in line.cells)
    sentences = [
        " ".join(table.title.split()).rstrip(".") + ".",
        "All numbers in percent.",
        _legend(table),
        "Bold: best of its group." if bold else "",
        _data_sentence(members),
        _failed_sentence(members),
        _interval_sentence(table),
        _by_value("Weights", members, "weights") if weights else "",
        *_setting_sentences(table, members),
        _paper_sentence(table),
        " ".join(table.note.split()),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _legend(table: Table) -> str:
    if table.layout == "rotation":
        return _ROTATION_LEGEND
    # The paper does not say which iterate it scores; our own records tell the two apart.
    return _PGD_LEGEND.format(when=" on the last iterate" if "success_any" in table.columns else "")


def _data_sentence(members: Sequence[Entry]) -> str:
    parts = []
    for data in dict.fromkeys(entry.data for entry in members):
        counts = _values([entry for entry in members if entry.data == data], "n", unit=" images")
        parts.append(f"{data}, {counts}" if counts else data)
    return f"Data: {'; '.join(parts)}."


def _failed_sentence(members: Sequence[Entry]) -> str:
    known = [entry for entry in members if "failed" in entry.facts]
    if not known:
        return ""
    failed = [entry for entry in known if entry.facts["failed"] != 0]
    if not failed:
        return "No image failed."
    return f"Images that failed and are not counted: {_values(failed, 'failed', named=True)}."


def _interval_sentence(table: Table) -> str:
    halves = [(table.rows[name.removesuffix("_low") + "_high"] - table.rows[name]) / 2
              for name in table.columns if name.endswith("_low")]
    known = [float(half) for column in halves for half in column.dropna()]
    if not known:
        return ""
    low, high = f"{min(known):.1f}", f"{max(known):.1f}"
    span = low if low == high else f"{low} to {high}"
    return f"Half-widths of the {table.intervals}: {span} points."


def _setting_sentences(table: Table, members: Sequence[Entry]) -> list[str]:
    """Name every setting in which rows differ: they are not strictly comparable."""
    differing = [name for name in table.settings
                 if len({str(entry.facts.get(name)) for entry in members}) > 1]
    return [_by_value(f"Not the same in all rows: {name}", members, name) for name in differing]


def _paper_sentence(table: Table) -> str:
    compared = any(name.startswith(PAPER_PREFIX) for name in table.columns)
    return f"Paper: {paper.SOURCE}." if compared else ""


def _by_value(title: str, members: Sequence[Entry], name: str) -> str:
    text = _values([entry for entry in members if name in entry.facts], name)
    return f"{title}: {text}." if text else ""


def _values(members: Sequence[Entry], name: str, *, unit: str = "", named: bool = False) -> str:
    """List the values of a fact, each with the models it holds for unless it holds for all."""
    several = len({entry.data for entry in members}) > 1
    holders: dict[str, list[str]] = {}
    for entry in members:
        if name in entry.facts:
            label = f"{entry.label} on {entry.data}" if several else entry.label
            holders.setdefault(_short(str(entry.facts[name])), []).append(label)
    if len(holders) == 1 and not named:
        return f"{next(iter(holders))}{unit}"
    return "; ".join(f"{value}{unit} ({', '.join(dict.fromkeys(labels))})"
                     for value, labels in holders.items())


def _short(value: str) -> str:
    """Cut a digest to the twelve digits that people compare."""
    return value[:12] if re.fullmatch(r"[0-9a-f]{32,}", value) else value
