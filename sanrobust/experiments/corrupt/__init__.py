"""Common corruptions (Hendrycks and Dietterich, ICLR 2019): 15 kinds, and 4 more, at 5 severities.

The modules beside this one make them with NumPy, SciPy and Pillow, by the published formulae.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sanrobust.experiments.base import (Columns, Experiment, Outcome, Plot, Records,
                                        stacked)
from sanrobust.experiments.corrupt.heatmap import draw
from sanrobust.experiments.corrupt.names import (ALEXNET_CLEAN, BY_NAME, COMMON, GROUPS,
                                                 SETS, SEVERITIES)
from sanrobust.experiments.corrupt.parameters import PUBLISHED, strengths_for
from sanrobust.experiments.corrupt.settings import Condition, CorruptionSettings
from sanrobust.experiments.layout import Entry, Facts, Head, Layout, Measure, Part

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.experiments.base import Model
    from sanrobust.experiments.corrupt.files import CorruptedFiles
    from sanrobust.metrics import PerImage, Summary
    from sanrobust.preprocessing import Preprocessing

    Outcomes = Mapping[Condition, pd.Series[bool]]

CLEAN: Condition = ("none", 0)
FORMULAE = 1
"""Raised when a change of `sanrobust.experiments.corrupt` changes an image."""
_BY_SEVERITY = tuple(f"error_{severity}" for severity in SEVERITIES)
_GROUPS = {"mean_error": COMMON, **{f"{group}_error": SETS[group] for group in GROUPS}}
_RATES = ("clean_top1", "clean_error", *_GROUPS, "error", *_BY_SEVERITY)


class CorruptMeasurement:
    """Top-1 on clean and on corrupted images; each is decoded once.

    Raises DataError where the folder of corrupted images lacks one of them, UsageError where frost
    is to be made and the package with its pictures is not installed.
    """

    gradient = False
    batched = True
    notes = ()

    def __init__(self, settings: CorruptionSettings) -> None:
        self._settings = settings
        self._files: CorruptedFiles | None = None
        self._preprocessing: Preprocessing | None = None
        self._is_imagenet = False
        if settings.corrupted is not None:
            from sanrobust.experiments.corrupt import files
            self._files = files.CorruptedFiles(Path(settings.corrupted), settings.conditions)
        elif "frost" in settings.corruptions:
            from sanrobust.experiments.corrupt.weather import frost_folder
            frost_folder()

    def spec(self) -> Mapping[str, object]:
        """Return the settings; a folder enters by the digest of the files that `check` found."""
        settings = self._settings
        source = {"seed": settings.seed, "formulae": FORMULAE} if self._files is None \
            else {"corrupted": self._files.digest}
        return {"corruptions": list(settings.corruptions), "severities": list(settings.severities),
                **source, **({"relative_to": "AlexNet"} if self._is_imagenet else {})}

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Look for the images' files; mCE is meant for ImageNet's 1000 classes alone."""
        from sanrobust import paper
        self._preprocessing = preprocessing
        self._is_imagenet = images.name == paper.DATA and num_classes == 1000
        if self._files is None:
            return ()
        self._files.open([ref.id for ref in images.refs])
        missing = self._files.missing
        return [f"{len(missing)} of {len(images.refs)} images lack a corrupted file and count as "
                f"failed ({next(iter(missing))}: {next(iter(missing.values()))})"] \
            if missing else ()

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Return one row per condition and image, clean first; those of failed images come last."""
        reasons = {place: self._files.missing[image] for place, image in enumerate(batch.ids)
                   if image in self._files.missing} if self._files else {}
        source = self._read if self._files else self._made
        tables = [_rows(model, batch, batch.pixels, CLEAN)]
        for condition, pixels in source(batch, reasons):
            tables.append(_rows(model, batch, pixels, condition))
        return stacked([*_without(tables, {batch.ids[place] for place in reasons}),
                        *(self.failed(batch.failed(*each)) for each in reasons.items())])

    def _made(self, batch: Batch, reasons: object) -> Iterator[tuple[Condition, Tensor]]:
        """Yield the batch in each condition, made of its pixels in 8 bits."""
        import torch

        from sanrobust.experiments.corrupt.apply import corrupted
        del reasons
        levels = (batch.pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        for name, severity in self._settings.conditions:
            pixels = [torch.from_numpy(corrupted(image, name, severity, seed=self._settings.seed,
                                                 image_id=image_id).transpose(2, 0, 1).copy())
                      for image_id, image in zip(batch.ids, levels, strict=True)]
            yield (name, severity), torch.stack(pixels).to(batch.pixels.device).float() / 255

    def _read(self, batch: Batch, reasons: dict[int, str]) -> Iterator[tuple[Condition, Tensor]]:
        """Yield the batch in each condition as its files hold it, and note those that do not."""
        from sanrobust.data.decode import ImageError
        assert self._files is not None and self._preprocessing is not None
        for condition in self._settings.conditions:
            pixels = batch.pixels.clone()
            for place, image in enumerate(batch.ids):
                if place not in reasons:
                    try:
                        pixels[place] = self._files.load(image, condition, self._preprocessing)
                    except ImageError as error:
                        reasons[place] = str(error)
            yield condition, pixels

    def failed(self, image: FailedImage) -> Columns:
        """Return one row per condition that says why the image has no prediction."""
        conditions = [CLEAN, *self._settings.conditions]
        count = len(conditions)
        return {
            "image": [image.id] * count, "label": [image.label] * count,
            "corruption": [name for name, _ in conditions],
            "severity": [severity for _, severity in conditions],
            "pred": [None] * count, "prob_label": [None] * count, "error": [image.reason] * count,
        }


def _rows(model: Model, batch: Batch, pixels: Tensor, condition: Condition) -> Columns:
    import torch

    from sanrobust.attacks.guards import check_finite
    with torch.no_grad():
        logits = model(pixels)
    check_finite(logits)
    count, (name, severity) = len(batch.ids), condition
    labels = batch.labels.unsqueeze(1)
    return {
        "image": batch.ids, "label": batch.labels.tolist(),
        "corruption": [name] * count, "severity": [severity] * count,
        "pred": logits.argmax(dim=1).tolist(),
        "prob_label": logits.softmax(dim=1).gather(1, labels).squeeze(1).tolist(),
        "error": [None] * count,
    }


def _without(tables: Sequence[Columns], images: Container[object]) -> Iterator[Columns]:
    for table in tables:
        kept = [row for row, image in enumerate(table["image"]) if image not in images]
        yield {name: [values[row] for row in kept] for name, values in table.items()}


def corruption_summaries(records: pd.DataFrame, *, corruptions: Sequence[str] = COMMON,
                         severities: Sequence[int] = SEVERITIES,
                         relative: bool = False) -> list[Summary]:
    """Summarise the records of one model (Hendrycks and Dietterich 2019, section 4.2).

    Args:
        records: one row per image and condition, with the columns that `CORRUPT` reads.
        corruptions, severities: what every image must have beside its clean row.
        relative: give errors relative to AlexNet's, which makes sense on ImageNet alone.

    Returns a dict per corruption. Each has what `metrics.counts` does; ``clean_top1`` and
    ``clean_error``; ``mean_error`` over the common corruptions (over the extra ones where there
    are no others), ``noise_error`` and so on for each group of which all are there;
    ``corruption``, its ``error``, a mean over severities, and ``error_S`` at each severity, all in
    percent with ``_low``, ``_high`` and, where images failed, ``_all``. Where ``relative`` and at
    all severities also ``ce`` and ``relative_ce``, and with all common corruptions their means
    ``mce`` and ``relative_mce``. Raises OutputError when an image counts twice or lacks a
    condition.
    """
    from sanrobust import metrics
    table, wrong = _wrong(records, corruptions, severities)
    shared = {**metrics.counts(table), **_of_groups(wrong, corruptions, failed=table.failed)}
    rows = [_of_one(wrong, name, failed=table.failed) for name in corruptions]
    if relative and tuple(severities) == SEVERITIES:
        _put_relative(shared, rows)
    return [{**shared, **row} for row in rows]


def _wrong(records: pd.DataFrame, corruptions: Sequence[str], severities: Sequence[int]
           ) -> tuple[PerImage, Outcomes]:
    """Return the records by condition, and which images are misclassified in each."""
    from sanrobust import metrics
    keys = list(zip(records["corruption"], records["severity"]))
    wanted = [CLEAN, *((name, severity) for name in corruptions for severity in severities)]
    table = metrics.per_image(records, keys, wanted, noun="condition")
    return table, {key: ~metrics.predicted(table.rows[key], "pred") for key in wanted}


def _outcomes(records: pd.DataFrame, settings: Mapping[str, object]) -> Iterator[Outcome]:
    """Yield the errors that a table prints; of several conditions the part that is wrong."""
    from sanrobust import metrics
    corruptions, severities = settings["corruptions"], settings["severities"]
    assert isinstance(corruptions, list) and isinstance(severities, list)
    _, wrong = _wrong(records, corruptions, severities)
    yield Outcome("clean_error", metrics.with_failed(wrong[CLEAN], records))
    for column, members in _members(corruptions):
        yield Outcome(column, _mean(wrong, members, records))
    for name in corruptions:
        yield Outcome("error", _mean(wrong, [name], records), (name,))


def _mean(wrong: Outcomes, corruptions: Container[str], records: pd.DataFrame) -> pd.Series[Any]:
    """Return the part of the conditions of some corruptions in which each image is wrong."""
    import pandas as pd

    from sanrobust import metrics
    several = [outcomes.astype("Float64") for (name, _), outcomes in wrong.items()
               if name in corruptions]
    return metrics.with_failed(pd.concat(several, axis=1).mean(axis=1), records)


def _members(corruptions: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each column that is a mean over corruptions, where all are there, and which they are.
    """
    for column, members in _GROUPS.items():
        chosen = [name for name in corruptions if name in members]
        if column == "mean_error":
            yield column, chosen or list(corruptions)
        elif len(chosen) == len(members):
            yield column, chosen


def _of_groups(wrong: Outcomes, corruptions: Sequence[str], *, failed: int) -> Summary:
    """Return the clean rates and the mean errors of all corruptions and of each whole group."""
    from sanrobust import metrics
    shared: Summary = {}
    metrics.put_rate(shared, "clean_top1", ~wrong[CLEAN], failed=failed)
    metrics.put_rate(shared, "clean_error", wrong[CLEAN], failed=failed, failed_counts=True)
    for column, members in _members(corruptions):
        _put_mean(shared, column, [outcomes for (name, _), outcomes in wrong.items()
                                   if name in members], failed=failed)
    return shared


def _of_one(wrong: Outcomes, corruption: str, *, failed: int) -> Summary:
    """Return the errors under one corruption."""
    from sanrobust import metrics
    row: Summary = {"corruption": corruption}
    each = {severity: outcomes for (name, severity), outcomes in wrong.items()
            if name == corruption}
    _put_mean(row, "error", list(each.values()), failed=failed)
    for severity, outcomes in each.items():
        metrics.put_rate(row, f"error_{severity}", outcomes, failed=failed, failed_counts=True)
    return row


def _put_mean(summary: Summary, name: str, several: Sequence[pd.Series[bool]], *,
              failed: int) -> None:
    """Add the mean of rates over the same images, with the interval of one rate like it.

    An image's part of conditions that are wrong varies no more than a yes or no of the same mean,
    so the interval is at least wide enough.
    """
    n = len(several[0])
    mean = fmean(float(outcomes.mean()) for outcomes in several) if n else math.nan
    summary[name] = 100 * mean
    summary[f"{name}_low"], summary[f"{name}_high"] = _wilson(mean, n)
    if failed:
        summary[f"{name}_all"] = 100 * ((mean * n if n else 0) + failed) / (n + failed)


def _wilson(rate: float, n: int) -> tuple[float, float]:
    """Return `metrics.wilson` for a rate, 0 to 1, that need not be a whole number of images."""
    from scipy.stats import norm
    if not n:
        return math.nan, math.nan
    z2 = float(norm.ppf(0.975)) ** 2 / n
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / 4))
    return 100 * (rate + z2 / 2 - half) / (1 + z2), 100 * (rate + z2 / 2 + half) / (1 + z2)


def _put_relative(shared: Summary, rows: Sequence[Summary]) -> None:
    for row in rows:
        row["ce"], row["relative_ce"] = corruption_errors(
            str(row["corruption"]), _number(row["error"]), _number(shared["clean_error"]))
    common = [row for row in rows if row["corruption"] in COMMON]
    if len(common) == len(COMMON):
        for name in ("ce", "relative_ce"):
            mean = name.replace("ce", "mce")
            shared[mean] = fmean(_number(row[name]) for row in common)


def _number(value: object) -> float:
    assert isinstance(value, (int, float))
    return value


def corruption_errors(corruption: str, error: float, clean: float) -> tuple[float, float]:
    """Return the corruption error CE and the relative CE in percent (section 4.2).

    Args:
        corruption: its name.
        error: mean top-1 error over the five severities in percent.
        clean: top-1 error on clean images in percent.
    """
    alexnet = BY_NAME[corruption].alexnet
    return 100 * error / alexnet, 100 * (error - clean) / (alexnet - ALEXNET_CLEAN)


def _summaries(records: pd.DataFrame, settings: Mapping[str, object]) -> list[Summary]:
    corruptions, severities = settings["corruptions"], settings["severities"]
    assert isinstance(corruptions, list) and isinstance(severities, list)
    return corruption_summaries(records, corruptions=corruptions, severities=severities,
                                relative="relative_to" in settings)


def _heads(parts: Sequence[Part]) -> list[Head]:
    del parts
    groups = (Head(group, "", (Measure(f"{group}_error", "error", min, rare=True),))
              for group in GROUPS)
    mean = Head("corrupted", "", (Measure("mean_error", "error", min),
                                  Measure("mce", "mCE", min, rare=True),
                                  Measure("relative_mce", "rel. mCE", min, rare=True)))
    return [Head("clean", "", (Measure("clean_error", "error", min),)), mean, *groups]


def _title(entries: Sequence[Entry]) -> str:
    del entries
    return "Robustness to common corruptions"


def _legend(known: Container[str]) -> str:
    text = ("Errors are top-1 errors (lower is better), under corruption the means over "
            "severities and over the corruptions of a group; corrupted is the mean over all "
            "corruptions, the extra ones only where there are no others")
    relative = ("; mCE is the mean, over corruptions, of the error relative to AlexNet's, and "
                "rel. mCE that of what corruption adds to the clean error, relative to what it "
                "adds to AlexNet's")
    return f"{text}{relative if 'mce' in known else ''}."


def _order(part: Part) -> tuple[float, ...]:
    return (list(BY_NAME).index(str(part[0])),)


def _part_words(part: Part) -> str:
    return BY_NAME[str(part[0])].title


def _listed(facts: Facts, name: str) -> list[object]:
    return list(json.loads(str(facts[name])))


def _which(facts: Facts) -> str:
    """Name the corruptions and severities of a run."""
    names, severities = _listed(facts, "corruptions"), _listed(facts, "severities")
    whole = {len(COMMON): "15 common corruptions",
             len(BY_NAME): "15 common and 4 extra corruptions"}
    is_whole = all(name in names for name in COMMON) and len(names) in whole
    which = whole[len(names)] if is_whole else ", ".join(
        BY_NAME[str(name)].title for name in names)
    return f"{which} at {_severity_words(severities)}"


def _severity_words(severities: Sequence[object]) -> str:
    if len(severities) == len(SEVERITIES):
        return "severities 1 to 5"
    *first, last = map(str, severities)
    return f"severities {', '.join(first)} and {last}" if first else f"severity {last}"


def _variant(facts: Facts) -> str:
    if "corruptions" not in facts:
        return ""
    source = f"seed {facts['seed']}" if "seed" in facts else "from files"
    return f"{_which(facts)}, {source}"


def _done(facts: Facts) -> str:
    if "corruptions" not in facts:
        return ""
    if "corrupted" in facts:
        return (f"{_which(facts)}, read from files as they are, resized where a file is not of "
                f"the model's size (digest {str(facts['corrupted'])[:12]})")
    side = int(json.loads(str(facts.get("preprocessing", '{"img_size": 224}')))["img_size"])
    version = strengths_for(side)
    limits = [f"{each.name} from {each.least} pixels on" for each in PUBLISHED[:-1]]
    stored = f", stored as JPEG of quality {version.jpeg} as published" if version.jpeg else ""
    return (f"{_which(facts)}, made of the model's crop in 8 bits by the formulae of Hendrycks and "
            f"Dietterich (ICLR 2019){stored}, seed {facts['seed']}; the strengths are those of "
            f"{version.name} (for crops of other sizes those of "
            f"{', of '.join(limits)}, else of {PUBLISHED[-1].name})")


def _notes(entries: Sequence[Entry]) -> Iterator[str]:
    if any("mce" in entry.values for entry in entries):
        yield "AlexNet's errors are those published for the files of ImageNet-C."
    else:
        yield ("There is no mCE, which is relative to AlexNet's errors: those are known for "
               "ImageNet, the 15 common corruptions and all severities together alone.")
    yield "Means have the interval of one rate over as many images, which is wide enough for them."


CORRUPT = Experiment(
    name="corrupt",
    files="corruptions",
    help="""Common corruptions: noise, blur, weather and digital artefacts at five severities.

    Measures top-1 on clean images and on the 15 corruptions of Hendrycks and Dietterich (ICLR
    2019), made here or read from --corrupted, and on ImageNet their mCE. Writes
    OUT/corruptions.csv, .tex, .md, and a heat map as .svg and .png.
    """,
    settings=CorruptionSettings,
    prepare=CorruptMeasurement,
    records=Records(
        columns={"image": "string", "label": "int32", "corruption": "string", "severity": "int32",
                 "pred": "int32", "prob_label": "float32", "error": "string"},
        key=("image", "corruption", "severity"),
        read=("image", "label", "corruption", "severity", "pred", "error")),
    summarise=_summaries,
    outcomes=_outcomes,
    layout=Layout(
        rates=_RATES,
        values=("clean_top1", "clean_error", "mean_error", "mce", "relative_mce",
                *list(_GROUPS)[1:], "corruption", "error", *_BY_SEVERITY, "ce", "relative_ce"),
        clean="clean_top1", heads=_heads, title=_title, legend=_legend,
        parts=("corruption",), order=_order,
        shared=("clean_top1", "clean_error", *_GROUPS, "mce", "relative_mce"),
        details=(Measure("error", "error"),
                 *(Measure(name, f"severity {name[-1]}", rare=True) for name in _BY_SEVERITY),
                 Measure("ce", "CE", rare=True), Measure("relative_ce", "rel. CE", rare=True)),
        part_noun="Corruption", part_words=_part_words,
        variant=_variant, variant_noun="Corruptions", done=_done, notes=_notes),
    plots=(Plot(suffix="", draw=draw, title="Errors by corruption and severity"),),
)
