"""Transfer: images that were made to attack one model, measured on others as they were saved."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sanrobust.choices import FLOAT32
from sanrobust.errors import DataError
from sanrobust.experiments.base import Columns, Experiment, Outcome, Records, stacked
from sanrobust.experiments.budgets import (BUDGET, Budget, budget_order, budget_text, budget_words,
                                           budgets_of)
from sanrobust.experiments.layout import Entry, Facts, Head, Layout, Measure, Part

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from torch import Tensor

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.data.replayed import SavedImages
    from sanrobust.data.saved import Saved
    from sanrobust.experiments.base import Model
    from sanrobust.metrics import PerImage, Summary
    from sanrobust.preprocessing import Preprocessing

RATES = ("top1", "success", "transfer", "source_top1", "source_success")


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """Nothing to choose: what is measured lies in the folder."""


class ReplayMeasurement:
    """The predictions of saved images; `check` is told which."""

    gradient = False
    batched = True
    notes = ()

    def __init__(self, settings: ReplaySettings) -> None:
        del settings
        self._images: SavedImages | None = None

    @property
    def images(self) -> SavedImages:
        """The images that `check` was told."""
        assert self._images is not None
        return self._images

    def spec(self) -> Mapping[str, object]:
        """Return which model and settings the images were made with; rows tell the budgets."""
        from sanrobust.experiments.catalog import EXPERIMENTS
        made = self.images.source.spec
        known = made["experiment"] in EXPERIMENTS
        told = EXPERIMENTS.get(made["experiment"]).told_by_rows if known else ()
        settings = {name: value for name, value in made["settings"].items() if name not in told}
        precision = made.get("precision", FLOAT32)
        return {"source_model": made["model"], "source_weights": made["weights"],
                "source_experiment": made["experiment"], "source_settings": settings,
                **({} if precision == FLOAT32 else {"source_precision": precision})}

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Refuse images of another size than the model's, and targets that are none of its classes.
        """
        from sanrobust.data.replayed import SavedImages
        assert isinstance(images, SavedImages)
        self._images, side, own = images, images.source.side, preprocessing.img_size
        if side != own:
            raise DataError("saved images must be replayed in their own size",
                            seen=f"they are {side}x{side} and the model takes {own}x{own}",
                            hint=f"name another --model, or add --img-size {side} if this one "
                                 "can take it")
        for row in (row for rows in images.saved for row in rows):
            if row.target is not None and not 0 <= row.target < num_classes:
                raise DataError("the targets of saved images must be classes of the model",
                                seen=f"that of {row.image} is none of its {num_classes}",
                                hint="name a --model that knows all classes of the model that "
                                     "was attacked")
        return ()

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Return one row per budget and image."""
        saved = [self.images.by_image[image] for image in batch.ids]
        tables = []
        for number in range(len(self.images.budgets)):
            rows = [each[number] for each in saved]
            pixels = batch.pixels if number == 0 else self._pixels(rows, batch.pixels)
            tables.append(_rows(model, pixels, rows, batch.labels))
        return stacked(tables)

    def _pixels(self, rows: Sequence[Saved], like: Tensor) -> Tensor:
        import torch

        from sanrobust.data.decode import ImageError
        try:
            return torch.stack([self.images.pixels(row) for row in rows]).to(like.device)
        except ImageError as error:
            raise DataError("every image must be readable while it is measured",
                            seen=f"one of {self.images.folder} could not be read ({error})",
                            hint="restore the folder and type the same command again; the "
                                 "records of all others are saved") from error

    def failed(self, image: FailedImage) -> Columns:
        """Return one row per budget that says why the image has no prediction."""
        budgets = self.images.budgets
        columns: Columns = {name: [None] * len(budgets) for name in REPLAY.records.columns}
        columns.update(
            image=[image.id] * len(budgets), label=[image.label] * len(budgets),
            error=[image.reason] * len(budgets), **dict(zip(BUDGET, zip(*budgets))))
        return columns


def _rows(model: Model, pixels: Tensor, rows: Sequence[Saved], labels: Tensor) -> Columns:
    """Return the records of images (B, 3, S, S) of one budget."""
    import torch

    from sanrobust.attacks.guards import check_finite
    with torch.no_grad():
        logits = model(pixels)
    check_finite(logits)
    said, targets = logits.argmax(dim=1).tolist(), [row.target for row in rows]
    likely = logits.softmax(dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return {
        "image": [row.image for row in rows], "label": labels.tolist(), "target": targets,
        **dict(zip(BUDGET, zip(*(row.budget for row in rows)))),
        "source_clean_pred": [row.clean_pred for row in rows],
        "source_pred": [row.adv_pred for row in rows],
        "source_broken": [_is_broken_on_source(row) for row in rows],
        "pred": said,
        "right": [pred == row.label for pred, row in zip(said, rows)],
        "on_target": [None if row.target is None else pred == row.target
                      for pred, row in zip(said, rows)],
        "prob_label": likely.tolist(), "error": [None] * len(rows),
    }


def _is_broken_on_source(row: Saved) -> bool | None:
    """Say whether an attack reached its aim: the target, else that a right label was lost."""
    if row.adv_pred is None:
        return None
    if row.target is not None:
        return row.adv_pred == row.target
    return row.clean_pred in (None, row.label) and row.adv_pred != row.label


def replay_summaries(records: pd.DataFrame) -> list[Summary]:
    """Summarise the records of one model on saved images, one dict per budget.

    Args:
        records: one row per image and budget, with the columns that `REPLAY` reads.

    Each dict has what `metrics.counts` returns, the budget, and in percent with ``_low`` and
    ``_high`` (95 % Wilson): ``top1``; ``success`` (classified as their target); ``source_top1`` and
    ``source_success``, the same on the model that the images were made for; and ``transfer``, the
    part of the ``broken`` images, on which the attack reached its aim there, on which it does here
    as well. What the images do not know is nan. Raises OutputError when an image counts twice or
    lacks a budget.
    """
    from sanrobust import metrics
    table, budgets = _by_budget(records)
    summaries = []
    for budget in budgets:
        rows = table.rows[budget]
        broken = rows["source_broken"].astype("boolean")
        summary = {**metrics.counts(table), **dict(zip(BUDGET, budget)),
                   "broken": int(broken.sum()) if broken.notna().any() else None}
        for name, outcomes in _outcomes(rows, broken).items():
            metrics.put_rate(summary, name, outcomes, failed_counts=name == "success",
                             failed=table.failed if name in ("top1", "success") else 0)
        summaries.append(summary)
    return summaries


def _outcomes(rows: pd.DataFrame, broken: pd.Series[bool]) -> dict[str, pd.Series[bool]]:
    """Return what holds of each image; transfer is unknown of those that were not broken."""
    from sanrobust import metrics
    right, hit = metrics.flags(rows, "right"), rows["on_target"].astype("boolean")
    before = rows["source_pred"].astype("Int64")
    return {
        "top1": right, "success": hit,
        "transfer": hit.fillna(~right).mask(~broken.fillna(False)),
        "source_top1": (before == rows["label"]).astype("boolean"),
        "source_success": (before == rows["target"].astype("Int64")).astype("boolean"),
    }


def _summaries(records: pd.DataFrame, settings: Mapping[str, object]) -> list[Summary]:
    del settings
    return replay_summaries(records)


def _by_budget(records: pd.DataFrame) -> tuple[PerImage, list[Budget]]:
    from sanrobust import metrics
    keys = budgets_of(records)
    budgets = sorted(set(keys), key=budget_order)
    return metrics.per_image(records, keys, budgets, noun="budget"), budgets


def _all_outcomes(records: pd.DataFrame, settings: Mapping[str, object]) -> Iterator[Outcome]:
    """Yield what holds of the images on the model; what held on their source is no model's own."""
    del settings
    from sanrobust import metrics
    table, budgets = _by_budget(records)
    for budget in budgets:
        rows = table.rows[budget]
        found = _outcomes(rows, rows["source_broken"].astype("boolean"))
        for name in ("top1", "success", "transfer"):
            yield Outcome(name, metrics.with_failed(found[name], records), budget)


def _heads(parts: Sequence[Part]) -> list[Head]:
    return [Head(*budget_text(part), (Measure(f"{number}:top1", "top-1"),
                                      Measure(f"{number}:success", "s. rate", min, rare=True),
                                      Measure(f"{number}:transfer", "transfer", min)))
            for number, part in enumerate(parts)]


def _open(folder: Path) -> ImageSet:
    from sanrobust.data.replayed import open_saved
    return open_saved(folder)


def _title(entries: Sequence[Entry]) -> str:
    del entries
    return "Transfer of adversarial images from the model that they were made for"


def _legend(known: Container[str]) -> str:
    names = {"iters": "n is the number of iterations", "eps": "ε the radius of the ball",
             "step": "ρ the step"}
    told = [words for name, words in names.items() if name in known]
    unit = ", in 1/255 in L-inf and in the pixel range [0, 1] in L2" if "eps" in known else ""
    success = ", s. rate the share of images classified as their target" \
        if "success" in known else ""
    return "; ".join([*([", ".join(told) + unit] if told else []), (
        f"top-1 is the accuracy on the saved images{success} and transfer, of those broken on the "
        "model that they were made for, the share that is broken here too (lower is better); an "
        "image with a target is broken where it is classified as that; one without where it is "
        "misclassified, on that model only if it was right before the attack.")])


def _source(facts: Facts) -> tuple[str, str]:
    """Return what a column calls the attack, and the sentence of what it did; either may be empty.
    """
    from sanrobust.experiments.catalog import EXPERIMENTS
    name, settings = str(facts.get("source_experiment")), facts.get("source_settings")
    if name not in EXPERIMENTS or not isinstance(settings, str):
        return name, ""
    layout, made = EXPERIMENTS.get(name).layout, json.loads(settings)
    # As the rows of that experiment have them.
    made = {key: json.dumps(value) if isinstance(value, (dict, list)) else value
            for key, value in made.items()}
    return layout.variant(made) or name, layout.done(made)


def _variant(facts: Facts) -> str:
    return f"{_source(facts)[0]} on {facts['source_model']}" if "source_model" in facts else ""


def _done(facts: Facts) -> str:
    if "source_model" not in facts:
        return ""
    name, words = _source(facts)
    return (f"images that {name} made on {facts['source_model']}, as they were saved"
            f"{f': {words}' if words else ''}")


def _notes(entries: Sequence[Entry]) -> Iterator[str]:
    """Say of how many images transfer is a share."""
    told: dict[str, None] = {}
    several = len({entry.variant for entry in entries}) > 1
    for entry in entries:
        counts = [f"{value:.0f}" for key, value in sorted(entry.values.items())
                  if key.endswith(":broken")]
        if counts:
            told[f"{' and '.join(counts)} of {entry.facts.get('n')} images"
                 f"{f' ({entry.variant})' if several else ''}"] = None
    if told:
        yield f"Broken on the model that they were made for, budget by budget: {'; '.join(told)}."


REPLAY = Experiment(
    name="replay",
    files="replay",
    help="""Transfer: images saved with --save-adversarial, measured on other models.

    FOLDER is that of a run in OUT/runs, or the folder adversarial in it. The images are the model's
    input as they are: nothing is resized or cropped, and a model of another input size is refused.
    Measures the accuracy on them, how many are classified as their target, and how many of those
    broken on the model that they were made for are broken here too. Writes OUT/replay.csv, .tex and
    .md.
    """,
    settings=ReplaySettings,
    prepare=ReplayMeasurement,
    opens=_open,
    records=Records(
        columns={"image": "string", "label": "int32", "target": "int32", "eps": "float64",
                 "step": "float64", "iters": "int32", "source_clean_pred": "int32",
                 "source_pred": "int32", "source_broken": "bool", "pred": "int32",
                 "right": "bool", "on_target": "bool", "prob_label": "float32",
                 "error": "string"},
        key=("image", *BUDGET),
        read=("image", "label", "target", *BUDGET, "source_pred", "source_broken", "right",
              "on_target", "error")),
    summarise=_summaries,
    outcomes=_all_outcomes,
    layout=Layout(
        rates=RATES,
        values=(*BUDGET, *RATES[:3], "broken", *RATES[3:]),
        clean="top1", heads=_heads, title=_title, legend=_legend, parts=BUDGET,
        order=budget_order,
        details=(Measure("top1", "top-1"), Measure("success", "s. rate", rare=True),
                 Measure("transfer", "transfer"), Measure("source_top1", "top-1 on the source"),
                 Measure("source_success", "s. rate on the source", rare=True)),
        part_noun="Budget", part_words=budget_words, variant=_variant, variant_noun="Attack",
        done=_done, notes=_notes, failed_as="as wrong, and as reached by the attack",
        as_reported=lambda facts: False),
)
