"""Zero-shot rotation and flip (Zhao et al. 2020, section 5.4 and Table 9): five views of an image.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sanrobust.data.views import VIEWS, view
from sanrobust.experiments.base import (Columns, Experiment, Outcome, Records, Reference,
                                        stacked)
from sanrobust.experiments.layout import Entry, Head, Layout, Measure, Part

if TYPE_CHECKING:
    import pandas as pd

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.experiments.base import Model
    from sanrobust.metrics import Summary
    from sanrobust.preprocessing import Preprocessing

_CLEAN = "none"
_MEASURES: tuple[Literal["top1", "top5"], ...] = ("top1", "top5")
_RATES = tuple(f"{name}_{measure}" for name in VIEWS for measure in _MEASURES)


@dataclass(frozen=True, kw_only=True)
class RotationSettings:
    """Nothing to choose: the five views are those of the paper."""


class RotationMeasurement:
    """Top-1 and top-5 in each view."""

    gradient = False
    batched = True
    notes = ()

    def __init__(self, settings: RotationSettings) -> None:
        del settings

    def spec(self) -> Mapping[str, object]:
        """Return the views in their order."""
        return {"views": list(VIEWS)}

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Accept every dataset without a remark: views need nothing of the labels."""
        del images, num_classes, preprocessing
        return ()

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Return one row per view and image."""
        return stacked([_view_rows(model, name, batch) for name in VIEWS])

    def failed(self, image: FailedImage) -> Columns:
        """Return one row per view that says why the image has no prediction."""
        count = len(VIEWS)
        return {
            "image": [image.id] * count, "label": [image.label] * count, "view": list(VIEWS),
            "pred": [None] * count, "top5_hit": [None] * count, "prob_label": [None] * count,
            "error": [image.reason] * count,
        }


def _view_rows(model: Model, name: str, batch: Batch) -> Columns:
    import torch

    from sanrobust.attacks.guards import check_finite
    with torch.no_grad():
        logits = model(view(name, batch.pixels))
    check_finite(logits)
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    labels = batch.labels.unsqueeze(1)
    return {
        "image": batch.ids,
        "label": batch.labels.tolist(),
        "view": [name] * len(batch.ids),
        "pred": logits.argmax(dim=1).tolist(),
        "top5_hit": (top5 == labels).any(dim=1).tolist(),
        "prob_label": logits.softmax(dim=1).gather(1, labels).squeeze(1).tolist(),
        "error": [None] * len(batch.ids),
    }


def rotation_summary(records: pd.DataFrame, *, views: Sequence[str] = tuple(VIEWS)) -> Summary:
    """Summarise the records of one model under rotation and flip (paper, Table 9).

    Args:
        records: one row per image and view, with the columns that `ROTATION` reads.
        views: names that every image must have; the first is the one that drops refer to.

    Returns what `metrics.counts` does, and per view ``V_top1`` and ``V_top5`` with ``_low`` and
    ``_high`` (95 % Wilson), ``_all`` where images failed and, but for the first view, ``_drop``.
    Raises OutputError when an image counts twice or lacks a view.
    """
    from sanrobust import metrics
    table = metrics.per_image(records, records["view"].tolist(), views, noun="view")
    summary = metrics.counts(table)
    for measure in _MEASURES:
        for each in views:
            name = f"{each}_{measure}"
            metrics.put_rate(summary, name, _hits(table.rows[each], measure), failed=table.failed)
            if each != views[0]:
                summary[f"{name}_drop"] = metrics.minus(summary[f"{views[0]}_{measure}"],
                                                        summary[name])
    return summary


def rotation_outcomes(records: pd.DataFrame, *, view: str,
                      measure: Literal["top1", "top5"] = "top1") -> pd.Series[bool]:
    """Return per image whether the label was among the model's top 1 or 5 in ``view``.

    The result is a nullable Series indexed by image; an image that failed is NA. Raises
    OutputError when an image counts twice or the records lack the view.
    """
    from sanrobust import metrics
    table = metrics.per_image(records, records["view"].tolist(), [view], noun="view", more=True)
    return metrics.with_failed(_hits(table.rows[view], measure), records)


def _hits(rows: pd.DataFrame, measure: str) -> pd.Series[bool]:
    from sanrobust import metrics
    right = metrics.predicted(rows, "pred")
    return right if measure == "top1" else metrics.flags(rows, "top5_hit")


def _summaries(records: pd.DataFrame, settings: Mapping[str, object]) -> list[Summary]:
    del settings
    return [rotation_summary(records)]


def _outcomes(records: pd.DataFrame, settings: Mapping[str, object]) -> Iterator[Outcome]:
    del settings
    for measure in _MEASURES:
        upright = rotation_outcomes(records, view=_CLEAN, measure=measure)
        yield Outcome(f"{_CLEAN}_{measure}", upright)
        for name in VIEWS:
            if name != _CLEAN:
                turned = rotation_outcomes(records, view=name, measure=measure)
                yield Outcome(f"{name}_{measure}", turned)
                yield Outcome(f"{name}_{measure}_drop",
                              upright.astype("Float64") - turned.astype("Float64"))


def _heads(parts: Sequence[Part]) -> list[Head]:
    del parts
    return [Head(each.title, "", (Measure(f"{name}_top1", "top-1"),
                                  Measure(f"{name}_top5", "top-5")))
            for name, each in VIEWS.items()]


def _title(entries: Sequence[Entry]) -> str:
    del entries
    return "Zero-shot robustness to rotation and flipping"


def _legend(known: Container[str]) -> str:
    del known
    return "In brackets the drop in points against no rotation (lower is better)."


def _table9() -> pd.DataFrame:
    from sanrobust import paper
    return paper.rotation()


def _fits(row: Mapping[str, object]) -> bool:
    del row
    return True


def _note() -> str:
    from sanrobust import paper
    return f"Table 9; {paper.ODD_DROPS}."


ROTATION = Experiment(
    name="rotate",
    files="rotation",
    help="""Zero-shot rotation and flip (the paper's Table 9).

    Measures top-1 and top-5 on upright images, on the three rotations by 90 degrees and on
    images flipped upside down, and writes OUT/rotation.csv, .tex and .md.
    """,
    settings=RotationSettings,
    prepare=RotationMeasurement,
    records=Records(
        columns={"image": "string", "label": "int32", "view": "string", "pred": "int32",
                 "top5_hit": "bool", "prob_label": "float32", "error": "string"},
        key=("image", "view"),
        read=("image", "label", "view", "pred", "top5_hit", "error")),
    summarise=_summaries,
    outcomes=_outcomes,
    told_by_rows=("views",),
    layout=Layout(
        rates=_RATES,
        values=tuple(column for name in _RATES for column in
                     ((name,) if name.startswith(f"{_CLEAN}_") else (name, f"{name}_drop"))),
        further={f"{name}_{measure}_drop": f"{each.title}: drop in {measure.replace('p', 'p-')}"
                 for name, each in VIEWS.items() for measure in _MEASURES},
        clean=f"{_CLEAN}_top1", ranked="cw90_top1", heads=_heads, title=_title, legend=_legend),
    reference=Reference(rows=_table9, fits=_fits, note=_note),
)
