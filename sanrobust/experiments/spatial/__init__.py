"""Accuracy of turned images, and under the attack by rotation and translation (Engstrom et al.,
Exploring the Landscape of Spatial Robustness, ICML 2019)."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from sanrobust.experiments.base import (Columns, Experiment, Outcome, Plot, Records,
                                        stacked)
from sanrobust.experiments.layout import Entry, Facts, Head, Layout, Measure, Part
from sanrobust.experiments.spatial.attack import (FILLS, STILL, Answer, Answers, Move,
                                                  SpatialSettings)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.experiments.base import Model
    from sanrobust.metrics import Summary
    from sanrobust.preprocessing import Preprocessing

ANGLE, CLEAN = "angle", "clean"
ATTACKS = ("natural", "random", "worst", "grid")
RATES = tuple(f"{name}_top1" for name in (CLEAN, *ATTACKS, ANGLE))
_SHARED = RATES[:-1]
_MANY_PASSES = 200
_CURVE = ("model", "data", "n", "fill", "translation")
"""What tells curves apart to a reader; digests tell the others apart."""


class SpatialMeasurement:
    """Top-1 at every angle and under the attack.

    The attack tries on each image, until one is misclassified: the untouched image, the points
    drawn for it (worst of k), then the other points of the grid, the farthest ones first.
    """

    gradient = False
    batched = True

    def __init__(self, settings: SpatialSettings) -> None:
        self._settings, self._points = settings, settings.points()
        most = len(settings.angles) + len(self._points) + 1
        self.notes = () if most < _MANY_PASSES else (
            f"note: each image is classified up to {most} times; a smaller --grid, such as 3x3x7, "
            "takes less time",)

    def spec(self) -> Mapping[str, object]:
        """Return the angles and the settings of the attack."""
        return self._settings.as_dict()

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Accept every dataset without a remark."""
        del images, num_classes, preprocessing
        return ()

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Return one row per angle, one without any transformation, and one per attack."""
        answers = Answers(model, batch.pixels, batch.labels, self._settings)
        draws = [self._settings.draws(image, self._points) for image in batch.ids]
        count = len(batch.ids)
        fixed: list[tuple[str, float | None, Sequence[Move | None]]] = [
            (ANGLE, angle, [Move(angle)] * count) for angle in self._settings.angles]
        fixed += [(CLEAN, None, [None] * count), ("natural", None, [STILL] * count),
                  ("random", None, [its[0] for its in draws])]
        parts = [_rows(batch, name, angle, answers.sound(moves), moves, [1] * count)
                 for name, angle, moves in fixed]
        return stacked([*parts, *self._attacked(answers, batch, draws)])

    def _attacked(self, answers: Answers, batch: Batch,
                  draws: Sequence[Sequence[Move]]) -> Iterator[Columns]:
        """Yield the rows of the worst of k and of the whole grid, which goes on where k ended."""
        drawn = [len(dict.fromkeys((STILL, *its))) for its in draws]
        orders = [list(dict.fromkeys((STILL, *its, *self._points))) for its in draws]
        found = answers.first_wrong(orders)
        for name, lengths in (("worst", drawn), ("grid", list(map(len, orders)))):
            places = [place if place is not None and place < length else None
                      for place, length in zip(found, lengths, strict=True)]
            moves = [None if place is None else order[place]
                     for place, order in zip(places, orders, strict=True)]
            said = answers.sound([move or STILL for move in moves])
            tried = [length if place is None else place + 1
                     for place, length in zip(places, lengths, strict=True)]
            yield _rows(batch, name, None, said, moves, tried)

    def failed(self, image: FailedImage) -> Columns:
        """Return all rows of an image, which say why it has no prediction."""
        angles = self._settings.angles
        measures = [*[ANGLE] * len(angles), CLEAN, *ATTACKS]
        count = len(measures)
        columns: Columns = {name: [None] * count for name in SPATIAL.records.columns}
        columns.update(image=[image.id] * count, label=[image.label] * count, measure=measures,
                       angle=[*angles, *[None] * (count - len(angles))],
                       error=[image.reason] * count)
        return columns


def _rows(batch: Batch, measure: str, angle: float | None, answers: Sequence[Answer],
          moves: Sequence[Move | None], tried: Sequence[int]) -> Columns:
    """Return the records of one measure on a batch."""
    count = len(batch.ids)
    return {
        "image": batch.ids,
        "label": batch.labels.tolist(),
        "measure": [measure] * count,
        "angle": [angle] * count,
        "pred": [answer.pred for answer in answers],
        "prob_label": [answer.prob_label for answer in answers],
        "rotation": [move and move.rotation for move in moves],
        "right": [move and move.right for move in moves],
        "down": [move and move.down for move in moves],
        "tried": tried,
        "error": [None] * count,
    }


def spatial_summaries(records: pd.DataFrame) -> list[Summary]:
    """Summarise the records of one model, one dict per angle (Engstrom et al. 2019, Table 1).

    Args:
        records: one row per image and measure, with the columns that `SPATIAL` reads; angles in
            degrees.

    Each dict has what `metrics.counts` returns, the ``angle``, and in percent of the evaluated
    images, with ``_low`` and ``_high`` (95 % Wilson) and ``_all`` where images failed:
    ``angle_top1``, and the same in every dict ``clean_top1`` (images as they came),
    ``natural_top1`` (cropped where all are), ``random_top1`` (one transformation per image),
    ``worst_top1`` and ``grid_top1`` (right under all transformations tried). Raises OutputError
    when an image counts twice or lacks a measure.
    """
    from sanrobust import metrics
    keys = _keys(records)
    angles = sorted({key for key in keys if isinstance(key, float)})
    table = metrics.per_image(records, keys, [CLEAN, *ATTACKS, *angles], noun="measure")
    shared = metrics.counts(table)
    for name in (CLEAN, *ATTACKS):
        metrics.put_rate(shared, f"{name}_top1", metrics.predicted(table.rows[name], "pred"),
                         failed=table.failed)
    summaries = []
    for angle in angles:
        summary: Summary = {**shared, ANGLE: angle}
        metrics.put_rate(summary, RATES[-1], metrics.predicted(table.rows[angle], "pred"),
                         failed=table.failed)
        summaries.append(summary)
    return summaries


def spatial_outcomes(records: pd.DataFrame, *, measure: str | float = "grid") -> pd.Series[bool]:
    """Return per image whether the label was predicted: at an angle, or under one of ATTACKS.

    The result is a nullable Series indexed by image; an image that failed is NA. Raises
    OutputError when an image counts twice or the records lack the measure.
    """
    from sanrobust import metrics
    key = measure if isinstance(measure, str) else float(measure)
    table = metrics.per_image(records, _keys(records), [key], noun="measure", more=True)
    return metrics.with_failed(metrics.predicted(table.rows[key], "pred"), records)


def _keys(records: pd.DataFrame) -> list[str | float]:
    """Return what each row measures: an angle, or a measure by its name."""
    return [float(angle) if measure == ANGLE else str(measure)
            for measure, angle in zip(records["measure"], records["angle"], strict=True)]


def _summaries(records: pd.DataFrame, settings: Mapping[str, object]) -> list[Summary]:
    del settings
    return spatial_summaries(records)


def _outcomes(records: pd.DataFrame, settings: Mapping[str, object]) -> Iterator[Outcome]:
    del settings
    for key in dict.fromkeys(_keys(records)):
        part, name = ((key,), ANGLE) if isinstance(key, float) else ((), key)
        yield Outcome(f"{name}_top1", spatial_outcomes(records, measure=key), part)


def _part_words(part: Part) -> str:
    return f"turned by {part[0]:g}°" if part[0] != math.inf else ""


def _heads(parts: Sequence[Part]) -> list[Head]:
    del parts
    titles = zip(ATTACKS, ("natural", "random", "worst of k", "whole grid"), strict=True)
    return [Head("top-1", "", tuple(Measure(f"{name}_top1", title) for name, title in titles))]


def _title(entries: Sequence[Entry]) -> str:
    del entries
    return "Robustness to rotations and translations"


def _legend(known: Container[str]) -> str:
    del known
    return ("Natural is the accuracy without a transformation; under the worst of k and the whole "
            "grid an image counts as right where it is right under each of them.")


def _part(facts: Facts) -> str:
    """Return the translation as it is mostly written, 3/32."""
    value = float(str(facts["translation"]))
    near = Fraction(value).limit_denominator(1000)
    return str(near) if float(near) == value else f"{value:g}"


def _settings(facts: Facts) -> SpatialSettings:
    """Return the attack's settings from a row's columns; the angles stand in the rows."""
    return SpatialSettings(rotation=float(str(facts["rotation"])), fill=str(facts["fill"]),
                           translation=float(str(facts["translation"])),
                           grid=tuple(json.loads(str(facts["grid"]))))


def _variant(facts: Facts) -> str:
    return "" if "fill" not in facts else (
        f"±{float(str(facts['rotation'])):g}° ±{_part(facts)} {facts['fill']}")


def _done(facts: Facts) -> str:
    if "fill" not in facts:
        return ""
    settings = _settings(facts)
    across, along, turns = settings.grid
    return (
        f"translation by up to {_part(facts)} of the side along each axis, then rotation about the "
        f"centre by up to {settings.rotation:g}° either way, bilinear; "
        f"{FILLS[settings.fill].format(percent=f'{100 * settings.side:.1f}')}; random is one point "
        f"of a grid of {across} × {along} × {turns} = {across * along * turns}, drawn for each "
        f"image with equal chances; worst of k is k = {facts['worst_of']} such draws, random's "
        f"among them, and the natural image; whole grid is every point; seed {facts['seed']}")


def _notes(entries: Sequence[Entry]) -> Iterator[str]:
    cropped = "; ".join(f"{entry.label} {entry.values[RATES[0]]:.1f}" for entry in entries
                        if entry.facts.get("fill") == "crop" and RATES[0] in entry.values)
    if cropped:
        yield f"Accuracy on images that are not cropped: {cropped}."
    yield "Accuracy at each angle (positive: anticlockwise) is in the CSV and drawn beside it."


def draw_curves(rows: pd.DataFrame) -> Figure:
    """Draw accuracy against angle: a line per model, a panel per group that the paper compares.

    Args:
        rows: of a table, in percent, with the 95 % Wilson interval that becomes a band.
    """
    from matplotlib.figure import Figure
    panels: dict[int, list[tuple[str, pd.DataFrame]]] = {}
    for label, network, curve in _curves(rows):
        panels.setdefault(_panel(network), []).append((label, curve))
    figure = Figure(figsize=(1.2 + 3.6 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, number in zip(axes, sorted(panels), strict=True):
        _lines(panel, panels[number])
    axes[0].set_ylabel("top-1 accuracy in %")
    fills = " or ".join(dict.fromkeys(map(str, rows["fill"])))
    data = " and ".join(dict.fromkeys(map(str, rows["data"])))
    figure.suptitle(f"{data}: accuracy of turned images\ncorners: {fills}; bands: 95 % Wilson "
                    "intervals", fontsize="medium")
    return figure


def _curves(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the curves: label, architecture, and rows.

    Rows that differ in what decides no accuracy at an angle are one curve.
    """
    cropped = rows["fill"] == "crop"
    # Without a crop the attack's extent changes nothing at an angle.
    rows = rows.assign(translation=rows["translation"].where(cropped, 0.0))
    same = [name for name in (*_CURVE, "data_digest", "preprocessing", "weights", "code")
            if name in rows]
    names = _names(rows["model"].unique().tolist())
    differ = [name for name in _CURVE[1:]
              if rows.loc[cropped if name == "translation" else rows.index, name].nunique() > 1]
    for _, curve in rows.groupby(same, sort=False, dropna=False):
        curve = curve.drop_duplicates(ANGLE, keep="last").sort_values(ANGLE)
        model = str(curve["model"].iloc[0])
        told = [f"{name} {curve[name].iloc[0]}" for name in differ]
        yield ", ".join([names[model], *told]), model.split(".", 1)[0], curve


def _names(models: Sequence[str]) -> dict[str, str]:
    """Return how the paper writes each model, or its full name where several are written alike."""
    from sanrobust import paper
    short = {model: paper.DISPLAY_NAMES.get(model.split(".", 1)[0], model) for model in models}
    return {model: name if list(short.values()).count(name) == 1 else model
            for model, name in short.items()}


def _panel(network: str) -> int:
    from sanrobust import paper
    return next((place for place, group in enumerate(paper.GROUPS) if network in group),
                len(paper.GROUPS))


def _lines(panel: Axes, curves: Sequence[tuple[str, pd.DataFrame]]) -> None:
    from matplotlib.ticker import MaxNLocator
    for label, curve in curves:
        line, = panel.plot(curve[ANGLE], curve[RATES[-1]], marker=".", label=label)
        panel.fill_between(curve[ANGLE], curve[f"{RATES[-1]}_low"], curve[f"{RATES[-1]}_high"],
                           color=line.get_color(), alpha=0.2, linewidth=0)
    panel.set_ylim(0, 100)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 1.5, 3, 4.5, 9, 10]))
    panel.set_xlabel("angle in degrees, anticlockwise")
    panel.grid(alpha=0.3)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize="small")


SPATIAL = Experiment(
    name="spatial",
    files="spatial",
    help="""Accuracy against angle, and attack by rotation and translation (Engstrom et al.).

    Measures top-1 at every angle and, as in Exploring the Landscape of Spatial Robustness (ICML
    2019), under one random transformation of each image, the worst of several and the worst
    of a grid. Writes OUT/spatial.csv, .tex and .md, and the accuracy at each angle as
    OUT/spatial_angles.svg and .png. Clockwise 90 degrees of rotate are -90 degrees here.
    """,
    settings=SpatialSettings,
    prepare=SpatialMeasurement,
    records=Records(
        columns={"image": "string", "label": "int32", "measure": "string", "angle": "float64",
                 "pred": "int32", "prob_label": "float32", "rotation": "float64",
                 "right": "float64", "down": "float64", "tried": "int32", "error": "string"},
        key=("image", "measure", "angle"),
        read=("image", "label", "measure", "angle", "pred", "error")),
    summarise=_summaries,
    outcomes=_outcomes,
    told_by_rows=("angles",),
    layout=Layout(
        rates=RATES, values=(*_SHARED, ANGLE, RATES[-1]), clean=RATES[0],
        ranked="grid_top1", heads=_heads, title=_title, legend=_legend, parts=(ANGLE,),
        shared=_SHARED, variant=_variant, part_words=_part_words,
        further={"angle_top1": "top-1", "clean_top1": "top-1 of the images as they came"},
        variant_noun="Attack", done=_done, notes=_notes),
    plots=(Plot(suffix="_angles", draw=draw_curves, title="Accuracy against the angle"),),
)
