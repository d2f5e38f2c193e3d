"""Reliability diagrams: accuracy against confidence, a panel for each row of a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sanrobust.errors import number_of, shortened
from sanrobust.experiments.layout import Facts
from sanrobust.files import printable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 15
"""Bins of confidence where no other number is asked for."""


def variant(facts: Facts) -> str:
    """Say which classes, labels and bins a run has, where they are not the usual ones."""
    number, bins = facts.get("num_classes"), facts.get("bins", BINS)
    words = f"{number} classes" if "classes" in facts and number else "all classes"
    more = ["ReaL labels"] if "real_labels" in facts else []
    return ", ".join([words, *more, *([f"{bins} bins"] if bins != BINS else [])])


def draw(rows: pd.DataFrame) -> Figure | None:
    """Draw the reliability diagram of each row; None where no row has one."""
    from matplotlib.figure import Figure
    shown = [row for row in rows.to_dict(orient="records")
             if isinstance(row.get("reliability"), str) and row["reliability"] != "[]"]
    if not shown:
        return None
    across = math.ceil(math.sqrt(len(shown)))
    down = math.ceil(len(shown) / across)
    figure = Figure(figsize=(max(2.6 * across, 4.5), 2.6 * down + 0.4), layout="constrained")
    panels = [*figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat]
    for row, panel in zip(shown, panels):
        _draw_one(panel, {str(name): value for name, value in row.items()}, rows)
    for panel in panels[len(shown):]:
        panel.set_axis_off()
    figure.supxlabel("confidence in % (the darker, the more images)", fontsize=9)
    figure.supylabel("accuracy in %", fontsize=9)
    return figure


def _draw_one(panel: Axes, row: Mapping[str, Any], rows: pd.DataFrame) -> None:
    bars = json.loads(row["reliability"])
    most = max(bar["n"] for bar in bars)
    panel.bar([bar["low"] for bar in bars], [bar["accuracy"] for bar in bars],
              [bar["high"] - bar["low"] for bar in bars], align="edge", edgecolor="#1f4e79",
              color=[(0.12, 0.47, 0.71, 0.1 + 0.9 * math.sqrt(bar["n"] / most)) for bar in bars])
    panel.plot([0, 100], [0, 100], color="#c44e52", linewidth=1)
    panel.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    panel.tick_params(labelsize=8)
    several = [name for name in ("data", "classes", "real_labels", "bins")
               if name in rows and rows[name].nunique(dropna=False) > 1]
    facts = {name: row[name] for name in ("num_classes", "classes", "real_labels")
             if isinstance(row.get(name), str | int)}
    words = [shortened(printable(str(row["model"])), 34),
             *([f"on {shortened(printable(str(row['data'])), 30)}"] if "data" in several else []),
             *([variant(facts)] if {"classes", "real_labels"} & {*several} else []),
             f"ECE {row['ece']:.1f} %, {number_of(row['n'], 'image')}"]
    panel.set_title("\n".join(words), fontsize=8, parse_math=False)
