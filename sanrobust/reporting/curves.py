"""Figures that a report alone has: errors against severity, and losses step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from sanrobust.experiments.budgets import BUDGET, budget_order, budget_words, budgets_of
from sanrobust.runs import Run
from sanrobust.tables import Table
from sanrobust.tables.entries import entries

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import float64
    from numpy.typing import NDArray

LOSSES = {"target_loss": "loss toward the target", "loss": "loss"}
"""Columns of records with a loss for each step, in words."""
_FEWEST_STEPS = 3
_LINES = ("-", "--", ":", "-.")
_COLOURS = 10
_ACROSS = 5

Steps = dict[str, dict[str, "NDArray[float64]"]]
"""Losses (images, steps + 1) by what was done and the label of the model."""


def named(table: Table) -> dict[str, tuple[str, str]]:
    """Return what the lines of a table call each run, and what was done in it."""
    found = entries(table)
    several = len({entry.data for entry in found}) > 1
    return {str(entry.facts["run_id"]): (
        entry.label + (f" on {entry.data}" if several else ""), entry.variant)
        for entry in found if "run_id" in entry.facts}


def draw_severities(table: Table) -> Figure | None:
    """Draw the error against severity, a panel per corruption; None for fewer than 3 severities.
    """
    from matplotlib.figure import Figure
    rows = table.rows
    columns = {int(name[-1]): name for name in map(str, rows.columns)
               if name.startswith("error_") and name[-1].isdigit() and rows[name].notna().any()}
    if len(columns) < _FEWEST_STEPS or "corruption" not in rows:
        return None
    names = named(table)
    known = sorted(rows["corruption"].unique(), key=lambda name: table.layout.order((name,)))
    across = min(_ACROSS, len(known))
    down = math.ceil(len(known) / across)
    figure = Figure(figsize=(1.0 + 1.9 * across, 1.0 + 1.7 * down), layout="constrained")
    panels = [*figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat]
    for panel, corruption in zip(panels, known):
        panel.set_title(table.layout.in_words((corruption,)), fontsize="small")
        _lines(panel, rows[rows["corruption"] == corruption], columns, names)
    for panel in panels[len(known):]:
        panel.set_axis_off()
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=3, fontsize="small")
    for panel in panels[len(known) - across:len(known)]:
        panel.set_xlabel("severity", fontsize="small")
    figure.supylabel("top-1 error in %", fontsize="small")
    return figure


def _lines(panel: Axes, rows: pd.DataFrame, columns: Mapping[int, str],
           names: Mapping[str, tuple[str, str]]) -> None:
    styles = _styles()
    for _, row in rows.iterrows():
        colour, line = next(styles)
        panel.plot(list(columns), [row[name] for name in columns.values()], color=colour,
                   linestyle=line, linewidth=1,
                   label=_visible(names.get(row["run_id"], (row["model"],))[0]))
    panel.set_ylim(0, 100)
    panel.set_xticks(list(columns))
    panel.tick_params(labelsize="x-small")
    panel.grid(alpha=0.3)


def _styles() -> Iterator[tuple[str, str]]:
    """Yield colours, then the same with another line."""
    for line in cycle(_LINES):
        yield from ((f"C{number}", line) for number in range(_COLOURS))


def _visible(label: str) -> str:
    # A legend leaves out what begins with an underscore.
    return f" {label}" if label.startswith("_") else label


def draw_steps(table: Table, runs: Sequence[Run]) -> Figure | None:
    """Draw the median loss of the images step by step, of attacks that end with no image early.

    A line per model, a panel per attack and kind of loss; the last budget of each run counts. None
    where no run has such losses. Raises OutputError where records do not read back.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    found = _losses(table, runs)
    if not found:
        return None
    figure = Figure(figsize=(1.2 + 3.6 * len(found), 4.2), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, (title, lines) in zip(axes, found.items(), strict=True):
        styles = _styles()
        for label, losses in lines.items():
            colour, line = next(styles)
            panel.plot(range(losses.shape[1]), np.median(losses, axis=0), color=colour,
                       linestyle=line, marker=".", label=_visible(label))
        panel.set_title(title, fontsize="small")
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    figure.supylabel("median loss", fontsize="small")
    return figure


def _losses(table: Table, runs: Sequence[Run]) -> Steps:
    found: Steps = {}
    names = named(table)
    for run in runs:
        label, variant = names.get(run.name, (run.name, ""))
        for words, losses in _of_run(run):
            title = ", ".join(filter(None, (variant, words)))
            found.setdefault(title, {})[label] = losses
    return found


def _of_run(run: Run) -> Iterator[tuple[str, NDArray[float64]]]:
    """Yield the losses in the last budget of a run, with which and where in words."""
    import numpy as np
    records = run.records(["image", *BUDGET, "error", *LOSSES])
    records = records[records["error"].isna()]
    if not len(records):
        return
    budgets = budgets_of(records)
    last = max(budgets, key=budget_order)
    rows = records[[budget == last for budget in budgets]]
    for column, words in LOSSES.items():
        lists = rows[column].dropna()
        lengths = {len(each) for each in lists}
        # Where images end early the number of them would change from step to step.
        if len(lengths) == 1 and min(lengths) >= _FEWEST_STEPS and len(lists) == len(rows):
            told = budget_words(tuple(math.inf if each is None else each for each in last))
            yield f"{words}, {told}", np.stack([np.asarray(each, dtype=np.float64)
                                                for each in lists])
