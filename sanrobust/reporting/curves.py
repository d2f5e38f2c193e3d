"""Figures that a report alone has: errors against severity, and losses step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from sanrobust.attacks.versions import version_of
from sanrobust.experiments.budgets import BUDGET, budget_order, budget_words, budgets_of
from sanrobust.runs import Run
from sanrobust.tables import Table
from sanrobust.tables.entries import entries

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy import float64, int64
    from numpy.typing import NDArray

LOSSES = {"target_loss": "loss toward the target", "loss": "loss"}
"""Columns of records with a loss for each step, in words."""
_FEWEST_STEPS = 3
_LINES = ("-", "--", ":", "-.")
_COLOURS = 10
_ACROSS, _STEPS_ACROSS = 5, 3
_MOST_POINTS = 61

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
    """Draw the median loss of the images step by step; an image that is done keeps its last one.

    A line per model, a panel per attack and kind of loss, of AutoAttack one for each of its attacks
    with the images that it broke; the last budget of each run counts. None where no run has such
    losses. Raises OutputError where records do not read back.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    found = _losses(table, runs)
    if not found:
        return None
    across = min(_STEPS_ACROSS, len(found))
    down = math.ceil(len(found) / across)
    figure = Figure(figsize=(1.2 + 3.6 * across, 0.4 + 3.8 * down), layout="constrained")
    panels = [*figure.subplots(down, across, squeeze=False).flat]
    for panel, (title, lines) in zip(panels, found.items()):
        styles = _styles()
        for label, losses in lines.items():
            colour, line = next(styles)
            steps = _thinned(losses.shape[1])
            panel.plot(steps, np.median(losses[:, steps], axis=0), color=colour, linestyle=line,
                       marker=".", label=_visible(label))
        panel.set_title(title, fontsize="small")
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend(fontsize="x-small")
    for panel in panels[len(found):]:
        panel.set_axis_off()
    figure.supylabel("median loss", fontsize="small")
    return figure


def _thinned(points: int) -> NDArray[int64]:
    """Return the numbers of the points that are drawn, the first and the last among them."""
    import numpy as np
    return np.unique(np.linspace(0, points - 1, min(points, _MOST_POINTS)).round().astype(np.int64))


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
    records = run.records(["image", *BUDGET, "error", "broken_by", *LOSSES])
    records = records[records["error"].isna()]
    if not len(records):
        return
    budgets = budgets_of(records)
    last = max(budgets, key=budget_order)
    rows = records[[budget == last for budget in budgets]]
    told = budget_words(tuple(math.inf if each is None else each for each in last))
    for column, words in LOSSES.items():
        for part, own in _by_attack(run, rows):
            lists = [each for each in own[column].dropna() if len(each)]
            if lists and max(map(len, lists)) >= _FEWEST_STEPS:
                yield ", ".join(filter(None, (words, told, part))), _kept(lists)


def _by_attack(run: Run, rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the rows that one attack made, and which it was where a run has several.

    Of images that withstand several attacks nobody recorded of which one the losses are.
    """
    version = run.settings.get("version")
    members = version_of(version).members if isinstance(version, str) else ()
    if len(members) < 2:
        yield "", rows
        return
    for name in members:
        own = rows[rows["broken_by"] == name]
        yield f"images broken by {name}", own


def _kept(lists: Sequence[Sequence[float]]) -> NDArray[float64]:
    """Return losses (images, steps + 1), of which the last of an image stands till the end."""
    import numpy as np
    longest = max(map(len, lists))
    return np.stack([np.pad(np.asarray(each, dtype=np.float64), (0, longest - len(each)), "edge")
                     for each in lists])
