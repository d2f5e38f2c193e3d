"""Accuracy class by class, a column for each model."""

from __future__ import annotations

import json
import math
from typing import Any

from sanrobust.reporting.views import Bar, Row, Shown, TableView, Unit
from sanrobust.tables import Table
from sanrobust.tables.details import DASH
from sanrobust.tables.entries import entries
from sanrobust.tables.grid import printed

MOST_CLASSES = 40
"""Of more classes those are shown in which some model is worst."""


def class_view(table: Table, name: str) -> TableView | None:
    """Return the accuracies of each class as the table has them; None where it has none."""
    found = {entry.label + (f", {entry.variant}" if entry.variant != "all classes" else ""):
             {str(each["name"]): each for each in json.loads(str(entry.extra["per_class"]))}
             for entry in entries(table) if "per_class" in entry.extra}
    if not found:
        return None
    classes = dict.fromkeys(each for of_model in found.values() for each in of_model)
    worst = sorted(classes, key=lambda each: min(
        (float(of_model[each]["top1"]) for of_model in found.values() if each in of_model),
        default=math.inf))
    shown = set(worst[:MOST_CLASSES])
    units = tuple(Unit((Row((each,), tuple(_cell(of_model.get(each))
                                           for of_model in found.values())),))
                  for each in classes if each in shown)
    left = len(classes) - len(shown)
    notes = ("Top-1 in percent of the images of a class, with its 95 % Wilson interval." + (
        f" Of {len(classes)} classes the {len(shown)} are shown in which some model is worst."
        if left else ""))
    return TableView(name, "Accuracy of each class.", notes, ("Class",), (), tuple(found), units)


def _cell(found: dict[str, Any] | None) -> Shown:
    if found is None:
        return Shown(DASH)
    value, low, high = (float(found[key]) for key in ("top1", "top1_low", "top1_high"))
    return Shown(printed(value), value, "top1", interval=f"[{printed(low)}, {printed(high)}]",
                 bar=Bar(round(low, 1), round(high, 1), round(value, 1)))
