"""The files of a table: every format, and the experiment's plots."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanrobust.experiments.base import Experiment
from sanrobust.files import atomic_write, write_text
from sanrobust.harmless import plain_names
from sanrobust.tables.latex import to_latex
from sanrobust.tables.markdown import to_markdown
from sanrobust.tables.table import Table, to_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RENDERERS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
"""Renderer by the suffix of the file it fills."""
# Nothing of a picture's file may depend on when it was drawn.
_PICTURES: Mapping[str, Mapping[str, Any]] = {
    "svg": {"metadata": {"Date": None}}, "png": {"dpi": 150, "metadata": {"Software": None}}}


def write_table(table: Table, folder: Path, suffix: str = "") -> list[Path]:
    """Write a table into ``folder`` in every format, and its plots; return the paths.

    The files are called as the experiment says, with ``suffix`` behind. Raises OutputError when one
    cannot be written.
    """
    stem = table.experiment.files + suffix
    paths = [folder / f"{stem}.{kind}" for kind in RENDERERS]
    for path, render in zip(paths, RENDERERS.values()):
        write_text(path, render(table))
    return [*paths, *_write_plots(table, folder / stem)]


def table_files(experiment: Experiment, suffix: str = "") -> list[str]:
    """Return the names of the files that `write_table` may write."""
    stem = experiment.files + suffix
    return [*(f"{stem}.{kind}" for kind in RENDERERS),
            *(f"{stem}{plot.suffix}.{kind}" for plot in experiment.plots for kind in _PICTURES)]


def _write_plots(table: Table, stem: Path) -> Iterator[Path]:
    for plot in table.experiment.plots:
        figure = plot.draw(table.rows)
        for kind in _PICTURES:
            path = stem.with_name(f"{stem.name}{plot.suffix}.{kind}")
            if figure is None:
                path.unlink(missing_ok=True)  # that of an earlier table would be another's
                continue
            with atomic_write(path) as stream:
                stream.write(_picture(figure, kind))
            yield path


def _picture(figure: Figure, kind: str) -> bytes:
    from matplotlib import rc_context
    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "sanrobust"}):
        plain_names(figure).savefig(picture, format=kind, **_PICTURES[kind])
    return picture.getvalue()
