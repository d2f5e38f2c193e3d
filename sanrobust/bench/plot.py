"""The medians of a benchmark as a picture: one panel per kind and step, one bar per contender."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.bench.results import Results
from sanrobust.bench.samples import Summary
from sanrobust.bench.settings import in_order
from sanrobust.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES = (11.0, 3.4)
_GROUP_WIDTH = 0.8
_DPI = 150


def draw(results: Results) -> Path | None:
    """Write ``bench.png`` and return its path; None when nothing was timed.

    Raises OutputError when it cannot be written.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Summary]] = {}
    for each in results.summaries():
        if each.seconds is not None:
            panels.setdefault((each.case.kind, each.case.step), []).append(each)
    if not panels:
        return None
    width, height = _INCHES
    figure = Figure(figsize=(width, height * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for panel, ((kind, step), summaries) in zip(axes, panels.items(), strict=True):
        _bars(panel, summaries, kind)
        panel.set_title(f"{kind}s, {step}, batch {summaries[0].case.images}, "
                        f"{results.settings.shape.dtype}, {results.settings.shape.device}")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=_DPI)
    path = results.settings.out / "bench.png"
    with atomic_write(path) as stream:
        stream.write(picture.getvalue())
    return path


def _bars(panel: Axes, summaries: Sequence[Summary], kind: str) -> None:
    names = list(dict.fromkeys(each.case.name for each in summaries))
    present = in_order(each.contender for each in summaries)
    width = _GROUP_WIDTH / len(present)
    for place, contender in enumerate(present):
        chosen = [each for each in summaries if each.contender == contender]
        offset = (place - (len(present) - 1) / 2) * width
        panel.bar([names.index(each.case.name) + offset for each in chosen],
                  [_height(each, kind) for each in chosen], width, label=contender)
    panel.set_xticks(range(len(names)), names, rotation=30 if kind == "operator" else 0,
                     ha="right" if kind == "operator" else "center")
    panel.set_ylabel("milliseconds" if kind == "operator" else "images/s")
    panel.set_yscale("log" if kind == "operator" else "linear")
    panel.legend(fontsize="small")


def _height(summary: Summary, kind: str) -> float:
    assert summary.seconds is not None and summary.images_per_second is not None
    return summary.seconds * 1e3 if kind == "operator" else summary.images_per_second
