"""Errors by corruption and severity as a picture: a panel per model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sanrobust.experiments.corrupt.names import BY_NAME, SEVERITIES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

MOST_PANELS = 12
"""Of more models than this the mean is drawn."""
_WIDE, _MARGIN, _ROW = 2.5, 1.4, 0.24  # inches
_DARK = 45.0  # percent, from which on numbers are printed in white


def draw(rows: pd.DataFrame) -> Figure | None:
    """Draw the table's rows, one per model and corruption, each panel in percent of error.

    Returns None where no row has an error.
    """
    from matplotlib.figure import Figure

    columns = [f"error_{severity}" for severity in SEVERITIES
               if f"error_{severity}" in rows and rows[f"error_{severity}"].notna().any()]
    names = [name for name in BY_NAME if name in set(rows["corruption"])]
    if not columns or not names:
        return None
    panels = _panels(rows, columns)
    across = min(len(panels), 3 if len(panels) < 7 else 5)
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(_MARGIN + _WIDE * across, (_ROW * len(names) + 0.6) * down + 0.3),
                    layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    image = None
    for axes, (title, values) in zip(grid.flat, panels):
        image = _panel(axes, title, values.reindex(names))
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    figure.colorbar(image, ax=grid, label="top-1 error in percent", shrink=0.6)  # type: ignore
    return figure


def _panels(rows: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """Return a table of errors, corruptions by severities, for each run, or the mean of many."""
    known = [name for name in ("model", "data", "run_id") if name in rows]
    groups = list(rows.groupby(known, sort=False))
    models = [str(named[0]) for named, _ in groups]
    panels = []
    for model, (named, group) in zip(models, groups):
        # What tells two panels of one model apart.
        second = f"\n{str(named[-1])[-40:]}" if models.count(model) > 1 else ""
        panels.append((f"{model}{second}{_survivors(group.iloc[0])}",
                       group.set_index("corruption")[list(columns)]))
    if len(panels) <= MOST_PANELS:
        return panels
    mean = rows.groupby("corruption")[list(columns)].mean()
    return [(f"mean of {len(panels)} models", mean)]


def _survivors(row: pd.Series) -> str:
    """Say on how many images the errors are where others failed."""
    return f"\n{row['n']} of {row['n'] + row['failed']} images" if row["failed"] else ""


def _panel(axes: Axes, title: str, values: pd.DataFrame) -> AxesImage:
    numbers = values.to_numpy(dtype=float)
    image = axes.imshow(numbers, cmap="magma_r", vmin=0, vmax=100, aspect="auto")
    axes.set_title(title, fontsize=8)
    axes.set_xticks(range(len(values.columns)), [name[-1] for name in values.columns], fontsize=7)
    axes.set_yticks(range(len(values)), [BY_NAME[str(name)].title for name in values.index],
                    fontsize=7)
    axes.set_xlabel("severity", fontsize=7)
    for (row, column), value in _cells(numbers):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6,
                  color="white" if value >= _DARK else "black")
    return image


def _cells(numbers: NDArray[np.float64]) -> Iterator[tuple[tuple[int, ...], float]]:
    import numpy as np
    return ((place, value) for place, value in np.ndenumerate(numbers) if math.isfinite(value))
