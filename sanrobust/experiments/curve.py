"""The figure of attacks of several radii: accuracy against the radius, a line for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanrobust.attacks.describe import attack_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FEWEST = 3
"""Radii of a run from which on there is a curve."""


def draw_curve(rows: pd.DataFrame) -> Figure | None:
    """Draw accuracy under attack against the radius; None where no run has enough radii.

    Args:
        rows: of a table, in percent, with the 95 % Wilson interval that becomes a band; runs in
            L-inf and in L2, whose units differ, are drawn beside each other.
    """
    if "run_id" not in rows:  # the paper's
        return None
    runs = [run.sort_values("eps") for _, run in rows.groupby("run_id", sort=False)
            if run["eps"].nunique() >= FEWEST]
    if not runs:
        return None
    from matplotlib.figure import Figure
    panels: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        panels.setdefault("l2" if attack_name(_facts(run)).endswith(" l2") else "linf",
                          []).append(run)
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (norm, members) in zip(axes, panels.items(), strict=True):
        for run in members:
            line, = panel.plot(run["eps"], run["top1_adv"], marker=".",
                               label=f"{run['model'].iloc[0]}, {attack_name(_facts(run))}")
            panel.fill_between(run["eps"], run["top1_adv_low"], run["top1_adv_high"],
                               color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set_xlabel("radius in L2, pixel range [0, 1]" if norm == "l2"
                         else "radius in L-inf, 1/255")
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    axes[0].set_ylabel("top-1 accuracy under attack in %")
    data = " and ".join(dict.fromkeys(map(str, rows["data"])))
    figure.suptitle(f"{data}: accuracy under attack\nbands: 95 % Wilson intervals",
                    fontsize="medium")
    return figure


def _facts(run: pd.DataFrame) -> dict[str, object]:
    """Return the settings of a run that its rows have."""
    first = run.iloc[0].dropna()
    return {str(name): value for name, value in first.items()}
