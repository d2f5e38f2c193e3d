"""Accuracy and calibration on clean images: top-1, top-5, each class, ECE, NLL and Brier score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sanrobust.errors import DataError, UsageError, shown_value
from sanrobust.experiments.accuracy.diagrams import BINS, draw, variant
from sanrobust.experiments.accuracy.scoring import (FILE, PRESENT, ClassChoice, checked_classes,
                                                    checked_file, classes_in_words,
                                                    digest_in_words, read_label_sets)
from sanrobust.experiments.base import (Columns, Experiment, Outcome, Plot, Records,
                                        stacked)
from sanrobust.experiments.layout import Entry, Facts, Head, Layout, Measure, Part, Listing
from sanrobust.options import Whole, option, setting
from sanrobust.reasons import EXCLUDED

if TYPE_CHECKING:
    import pandas as pd

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.experiments.base import Model
    from sanrobust.metrics import Summary
    from sanrobust.preprocessing import Preprocessing

MOST_BINS, _WORST_TOLD = 1000, 1.0  # _WORST_TOLD in nats
NLL_SHARE = 0.5
"""Part of the NLL beyond which an image that makes it up alone is told of."""
_CLASSES_SHOWN, _WRONG_SHOWN = 5, 3


@dataclass(frozen=True, kw_only=True)
class AccuracySettings:
    """Which classes and labels are scored, and the bins of the calibration error.

    Raises UsageError for what cannot be meant.
    """

    bins: int = setting(BINS, option(
        "--bins", type=Whole(1, MOST_BINS, example=BINS), show_default=True, metavar="N",
        help="Bins of equal width of the calibration error."))
    classes: str | Sequence[str | int] | None = setting(
        None,
        option("--classes", metavar=f"{PRESENT}|{FILE}PATH|LIST",
               help="Score within these classes alone, as is done on ImageNet-A and -R: those that "
                    "an image is of, those of a file with one in each line, or a list such as "
                    "0,3,8, by name or index. Images of other classes are left out."),
        doc="classes to score within: ``present`` (those that an image is of), ``file:PATH`` (one "
            "in each line), or several of them, by name or index; None for all.")
    real_labels: Path | None = setting(None, option(
        "--real-labels", type=Path, metavar="FILE",
        help="Labels of which any is right: real.json of Beyer et al. 2020, JSON that gives each "
             "image a list, or a CSV with image,label in one or several rows. Images without a "
             "label are left out."))

    def __post_init__(self) -> None:
        if type(self.bins) is not int or not 1 <= self.bins <= MOST_BINS:
            raise UsageError(f"bins must be a whole number from 1 to {MOST_BINS}",
                             seen=f"it is {shown_value(self.bins)}",
                             hint=f"give for example {BINS}")
        object.__setattr__(self, "real_labels", checked_file(self.real_labels))
        if self.classes is not None:
            object.__setattr__(self, "classes", checked_classes(self.classes))


class AccuracyMeasurement:
    """One pass over the images as they are.

    Raises DataError for a file of classes or labels that does not read, UsageError for one of
    fewer than two classes.
    """

    gradient = False
    batched = True
    notes = ()

    def __init__(self, settings: AccuracySettings) -> None:
        self._spec: dict[str, object] = {"bins": settings.bins}
        self._classes = None if settings.classes is None else ClassChoice.read(settings.classes)
        if self._classes is not None:
            self._spec["classes"] = self._classes.identity()
        path = settings.real_labels
        self._real = None if path is None else read_label_sets(path)
        if self._real is not None:
            self._spec["real_labels"] = f"sha256:{self._real.sha256}"
        # Known once `check` has seen the images with the labels of the model that comes next.
        self._scored: Sequence[int] | None = None
        self._names: Sequence[str] = ()

    def spec(self) -> Mapping[str, object]:
        """Return bins, classes and labels; files enter by their hashes."""
        return self._spec

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Refuse classes and labels that cannot serve these images; say how many are left out."""
        del preprocessing
        self._names = images.classes or ()
        self._scored = None if self._classes is None else self._classes.find(images, num_classes)
        if self._real is not None:
            self._real.check([ref.id for ref in images.refs], num_classes)
        left = sum(not self._labels(ref.id, ref.label) for ref in images.refs)
        if left == len(images.refs):
            raise DataError("some image must have a label that is scored",
                            seen=f"none of {images.name} has one",
                            hint="choose other classes or labels, or other images with --data")
        return (f"note: {left} of {len(images.refs)} images have no label that is scored and are "
                "left out",) if left else ()

    def _labels(self, image: str, label: int) -> frozenset[int]:
        """Return the labels of an image that are among the classes scored."""
        labels = frozenset((label,)) if self._real is None else self._real.of(image)
        return labels if self._scored is None else labels.intersection(self._scored)

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Return one row per image; those of excluded images come last."""
        labels = [self._labels(image, label)
                  for image, label in zip(batch.ids, batch.labels.tolist(), strict=True)]
        kept = [place for place, each in enumerate(labels) if each]
        parts = [self.failed(batch.failed(place, "")) for place, each in enumerate(labels)
                 if not each]
        if kept:
            parts.insert(0, self._rows(model, batch.part(kept), [labels[place] for place in kept]))
        return stacked(parts)

    def failed(self, image: FailedImage) -> Columns:
        """Return the row that says why the image has no prediction."""
        reason = image.reason  # what is in no number is so whether it can be read or not
        if not self._labels(image.id, image.label):
            reason = f"{EXCLUDED}it has no label that is scored"
        columns: Columns = {name: [None] for name in ACCURACY.records.columns}
        columns.update(image=[image.id], label=[image.label], error=[reason],
                       label_name=[self._name(image.label)])
        return columns

    def _rows(self, model: Model, batch: Batch, labels: Sequence[frozenset[int]]) -> Columns:
        import torch

        from sanrobust.attacks.guards import check_finite
        with torch.no_grad():
            logits = model(batch.pixels)
        check_finite(logits)
        scored = list(range(logits.shape[1]) if self._scored is None else self._scored)
        scores, own = logits[:, scored], batch.labels.tolist()
        pred = scores.argmax(dim=1, keepdim=True).cpu()
        top5 = scores.topk(min(5, len(scored)), dim=1).indices.cpu()
        right = torch.tensor([[index in each for index in scored] for each in labels])
        # In float32 many a confidence would round to 1 and a small likelihood to 0.
        logs = scores.to("cpu", torch.float64).log_softmax(dim=1)
        likely = logs.masked_fill(~right, -math.inf).logsumexp(dim=1)
        brier = (logs.exp() - right.double()).square().sum(dim=1).tolist()
        classes = [scored[place] for place in pred.squeeze(1).tolist()]
        count = len(own)
        return {
            "image": batch.ids, "label": own, "label_name": [self._name(label) for label in own],
            "pred": classes, "pred_name": [self._name(index) for index in classes],
            "top1_hit": right.gather(1, pred).squeeze(1).tolist(),
            "top5_hit": right.gather(1, top5).any(dim=1).tolist(),
            "confidence": logs.exp().gather(1, pred).squeeze(1).tolist(),
            "prob_label": likely.exp().tolist(), "log_likelihood": likely.tolist(),
            # Of several right labels it is not said which probability each should have.
            "brier": brier if self._real is None else [None] * count,
            "num_classes": [len(scored)] * count, "error": [None] * count,
        }

    def _name(self, index: int) -> str | None:
        return self._names[index] if index < len(self._names) else None


def accuracy_summary(records: pd.DataFrame, *, bins: int = BINS) -> Summary:
    """Summarise the records of one model on clean images.

    Args:
        records: one row per image, with the columns that `ACCURACY` reads.
        bins: number of bins of equal width of the calibration error.

    Returns what `metrics.counts` does; ``top1`` and ``top5`` in percent with ``_low`` and ``_high``
    (95 % Wilson), and ``_all`` where images failed; ``ece``, see `metrics.calibration_error`;
    ``nll``, the mean negative log likelihood in nats, and ``brier`` (Brier 1950, 0 to 2), both with
    95 % t-intervals; ``nll_worst``, that of the worst image; ``num_classes`` that were scored;
    ``reliability``, the bins with images as `metrics.reliability` describes them, and
    ``per_class``, what `class_accuracies` returns, both JSON. Raises OutputError when an image
    counts twice.
    """
    from sanrobust import metrics
    table = metrics.per_image(records, [""] * len(records), [""], noun="prediction")
    rows, summary = table.rows[""], metrics.counts(table)
    for name in ("top1", "top5"):
        metrics.put_rate(summary, name, metrics.flags(rows, f"{name}_hit"), failed=table.failed)
    bars = metrics.reliability(rows["confidence"], rows["top1_hit"], bins)
    summary["ece"] = metrics.calibration_error(bars)
    for name, values in (("nll", -rows["log_likelihood"].astype("float64")),
                         ("brier", rows["brier"].astype("float64"))):
        summary |= zip((name, f"{name}_low", f"{name}_high"), metrics.mean_interval(values))
    summary["nll_worst"] = -float(rows["log_likelihood"].min())
    summary["num_classes"] = int(rows["num_classes"].iloc[0]) if len(rows) else None
    return {**summary, "reliability": _as_json(bars[bars["n"] > 0]),
            "per_class": _as_json(class_accuracies(records))}


def _as_json(table: pd.DataFrame) -> str:
    cells: list[dict[Any, Any]] = table.to_dict(orient="records")
    return json.dumps(cells, ensure_ascii=False)


def class_accuracies(records: pd.DataFrame) -> pd.DataFrame:
    """Return what `metrics.class_accuracies` does for the set's own labels, with the ``name`` of
    each class where it has one, else its index. Images that failed or are excluded do not count."""
    from sanrobust import metrics
    rows = records[records["error"].isna()]
    table = metrics.class_accuracies(rows["label"], rows["pred"], rows["top1_hit"])
    names = {int(index): str(index if name is None else name) for column in ("pred", "label")
             for index, name in {*zip(rows[column], _texts(rows[f"{column}_name"]))}}
    table.insert(1, "name", [names[index] for index in table["class"]])
    return table.assign(taken_for=table["taken_for"].map(
        lambda counts: {names[index]: count for index, count in counts.items()}))


def _texts(column: pd.Series[str]) -> list[str | None]:
    return [text if isinstance(text, str) else None for text in column]


def _summaries(records: pd.DataFrame, settings: Mapping[str, object]) -> list[Summary]:
    return [accuracy_summary(records, bins=int(str(settings["bins"])))]


def _outcomes(records: pd.DataFrame, settings: Mapping[str, object]) -> Iterator[Outcome]:
    del settings
    from sanrobust import metrics
    rows = metrics.per_image(records, [""] * len(records), [""], noun="prediction").rows[""]
    for name in ("top1", "top5"):
        yield Outcome(name, metrics.with_failed(metrics.flags(rows, f"{name}_hit"), records))


def _heads(parts: Sequence[Part]) -> list[Head]:
    del parts
    return [Head("accuracy", "", (Measure("top1", "top-1"), Measure("top5", "top-5"))),
            Head("calibration", "", (Measure("ece", "ECE", min),)),
            Head("probabilities", "", (Measure("nll", "NLL", min, 3),
                                       Measure("brier", "Brier", min, 3)))]


def _title(entries: Sequence[Entry]) -> str:
    del entries
    return "Accuracy and calibration on clean images"


def _legend(known: Container[str]) -> str:
    brier = ", Brier the squared error of all probabilities (0 to 2)" if "brier" in known else ""
    return ("ECE is the gap between confidence and accuracy, averaged over the bins by their "
            f"images, NLL the mean negative log likelihood of the label{brier}; of these lower is "
            "better.")


def _done(facts: Facts) -> str:
    """Say among which classes and by which labels the images were scored."""
    if "bins" not in facts:
        return ""
    number = f"{facts['num_classes']} " if "num_classes" in facts else ""
    which = (f"{classes_in_words(str(facts['classes']))}, without the logits of the others"
             if "classes" in facts else "of the model")
    real = (["right is any of an image's ReaL labels "
             f"({digest_in_words(str(facts['real_labels']))}), whose probabilities are added up"]
            if "real_labels" in facts else [])
    return "; ".join([f"among the {number}classes {which}", *real,
                      f"ECE over {facts['bins']} bins of equal width"])


def _as_reported(facts: Facts) -> bool:
    return not any(isinstance(facts.get(name), str) for name in ("classes", "real_labels"))


def _worst(entry: Entry) -> list[dict[str, Any]]:
    """Return the classes with a wrong prediction, the worst first."""
    classes: list[dict[str, Any]] = json.loads(str(entry.extra.get("per_class", "[]")))
    return sorted((each for each in classes if each["top1"] < 100), key=lambda each: each["top1"])


def _notes(entries: Sequence[Entry]) -> Iterator[str]:
    """Name the worst class of each model, and the models whose NLL tells of one image."""
    told = [f"{worst[0]['name']} with {worst[0]['top1']:.1f} % ({_line(entry, entries)})"
            for entry in entries if (worst := _worst(entry))]
    if told:
        yield f"Class with the lowest top-1: {'; '.join(told)}."
    alone = [f"{_line(entry, entries)}, {_worst_nll(entry):.1f} nats" for entry in entries
             if _worst_nll(entry) > max(_WORST_TOLD, NLL_SHARE * int(str(entry.facts.get("n", 0)))
                                        * entry.values.get("nll", math.inf))]
    if alone:
        yield f"More than half of the NLL comes from a single image: {'; '.join(alone)}."


def _worst_nll(entry: Entry) -> float:
    return float(str(entry.extra.get("nll_worst", 0.0)))


def _line(entry: Entry, entries: Sequence[Entry]) -> str:
    """Return an entry's label, with its scoring and data where there are several."""
    more = [each for name in ("variant", "data") if len({getattr(other, name) for other in entries})
            > 1 for each in [getattr(entry, name)]]
    return ", ".join([entry.label, *more])


def _listings(entries: Sequence[Entry]) -> Iterator[Listing]:
    """List the worst classes of each model and what their images were taken for."""
    lines = [(_line(entry, entries), each["name"], _taken(each["taken_for"]), str(each["n"]),
              f"{each['top1']:.1f}", f"[{each['top1_low']:.1f}, {each['top1_high']:.1f}]")
             for entry in entries for each in _worst(entry)[:_CLASSES_SHOWN]]
    if lines:
        yield Listing(f"The up to {_CLASSES_SHOWN} classes with the lowest top-1, and what their "
                      "images were taken for; the CSV has all:",
                      ("Method", "Class", "Taken for", "Images", "top-1", "95 % Wilson interval"),
                      tuple(lines), stubs=3)


def _taken(counts: Mapping[str, int]) -> str:
    told = [f"{name} ({count})" for name, count in list(counts.items())[:_WRONG_SHOWN]]
    more = len(counts) - len(told)
    return ", ".join([*told, f"{more} more"] if more else told)


ACCURACY = Experiment(
    name="accuracy",
    files="accuracy",
    help="""Accuracy and calibration on clean images.

    Measures top-1 and top-5, the accuracy of each class and what its images are taken for, the
    expected calibration error (ECE), the negative log likelihood (NLL) and the Brier score, within
    a part of the classes or by ReaL labels if asked for. Writes OUT/accuracy.csv, .tex, .md and
    the reliability diagrams OUT/accuracy.svg and .png.
    """,
    settings=AccuracySettings,
    prepare=AccuracyMeasurement,
    records=Records(
        columns={"image": "string", "label": "int32", "label_name": "string", "pred": "int32",
                 "pred_name": "string", "top1_hit": "bool", "top5_hit": "bool",
                 "confidence": "float64", "prob_label": "float64", "log_likelihood": "float64",
                 "brier": "float64", "num_classes": "int32", "error": "string"},
        key=("image",),
        read=("image", "label", "label_name", "pred", "pred_name", "top1_hit", "top5_hit",
              "confidence", "log_likelihood", "brier", "num_classes", "error")),
    summarise=_summaries,
    outcomes=_outcomes,
    layout=Layout(
        rates=("top1", "top5"),
        values=("top1", "top5", "ece", "nll", "nll_low", "nll_high", "brier", "brier_low",
                "brier_high"),
        extra=("nll_worst", "reliability", "per_class"),
        clean="top1", heads=_heads, title=_title, legend=_legend, variant=variant,
        variant_noun="Scoring", done=_done, notes=_notes, listings=_listings,
        units="Rates and ECE in percent, NLL in nats.",
        intervals="95 % intervals (Wilson's for rates, Student's for means)",
        excluded_as="Images without a label that is scored, and so in no number",
        as_reported=_as_reported),
    plots=(Plot(suffix="", draw=draw, title="Reliability diagrams"),),
)
