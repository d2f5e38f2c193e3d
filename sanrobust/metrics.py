"""Pure functions from per-image records to the numbers of the tables.

Rates, drops and intervals are in percent (drops and differences in points) and unrounded. An
image counts once: one that failed in any of its rows is left out of all of them, so every part of
a run (a view, a budget) is measured on the same images. Where images failed, each rate also stands
over all images, the failed ones counted against the model (``_all``). Images that the experiment
itself leaves out, such as those whose label is the target, are not failed but ``excluded``; they
are in no rate.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype
from scipy.stats import binomtest, norm, ttest_1samp
from scipy.stats import t as student

from sanrobust.errors import OutputError
from sanrobust.reasons import EXCLUDED

_REBUILD = "rebuild the records: type the command that measured them, with --fresh"

Summary = dict[str, float | int | str | None]
"""A row of a table by column: rates and intervals in percent, unrounded."""


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a rate, in percent (Wilson 1927).

    Args:
        successes: how many of the images succeeded, 0 to ``n``.
        n: how many images there were; 0 gives (nan, nan).
        confidence: coverage, in (0, 1).
    """
    if n == 0:
        return math.nan, math.nan
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def seed_interval(values: Sequence[float], confidence: float = 0.95
                  ) -> tuple[float, float, float]:
    """Return the mean of percentages over training runs and its t-interval, within 0 to 100.

    Args:
        values: one per training run; a single one has no interval, (nan, nan).
        confidence: coverage, in (0, 1).
    """
    mean, runs = fmean(values), len(values)
    if runs < 2:
        return mean, math.nan, math.nan
    half = float(student.ppf((1 + confidence) / 2, runs - 1)) * stdev(values) / math.sqrt(runs)
    return mean, max(0.0, mean - half), min(100.0, mean + half)


def mean_interval(values: pd.Series[float], confidence: float = 0.95
                  ) -> tuple[float, float, float]:
    """Return the mean of values that are never negative and its t-interval, not below 0.

    Args:
        values: one per image; nan is left out, and fewer than two have no interval, (nan, nan).
        confidence: coverage, in (0, 1).
    """
    known = values.dropna()
    mean = float(known.mean())
    if len(known) < 2:
        return mean, math.nan, math.nan
    deviation = float(known.to_numpy("float64").std(ddof=1))
    half = float(student.ppf((1 + confidence) / 2, len(known) - 1)) * deviation / len(known) ** 0.5
    return mean, max(0.0, mean - half), mean + half


def reliability(confidences: pd.Series[float], hits: pd.Series[bool], bins: int) -> pd.DataFrame:
    """Return how often predictions are right in each bin of their confidence.

    Args:
        confidences: probability of the prediction, in [0, 1], one per image.
        hits: whether it is right.
        bins: how many there are, of equal width.

    One row per bin, ``low`` < confidence <= ``high``: ``n`` images, and their mean ``confidence``
    and ``accuracy``, nan where there are none; all but n in percent.
    """
    edges = np.arange(bins + 1) / bins
    known = confidences.to_numpy("float64")
    places = np.searchsorted(edges[1:-1], known)
    n = np.bincount(places, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (100 * np.bincount(places, values, bins) / n
                                for values in (known, hits.to_numpy("float64")))
    return pd.DataFrame({"low": 100 * edges[:-1], "high": 100 * edges[1:], "n": n,
                         "confidence": confidence, "accuracy": accuracy})


def calibration_error(table: pd.DataFrame) -> float:
    """Return the expected calibration error of a table of `reliability`, in percent.

    That is the gap between confidence and accuracy, averaged over the bins by their images (Guo et
    al. 2017, equation 3); nan without images.
    """
    gaps = (table["accuracy"] - table["confidence"]).abs() * table["n"]
    images = int(table["n"].sum())
    return float(gaps.sum()) / images if images else math.nan


def class_accuracies(labels: pd.Series[int], predictions: pd.Series[int],
                     hits: pd.Series[bool]) -> pd.DataFrame:
    """Return how often the images of each class are classified right, by its index.

    Args:
        labels, predictions: class indices, one per image.
        hits: whether the prediction is right.

    Columns: ``class``, ``n`` images, ``top1``, ``top1_low`` and ``top1_high`` in percent (95 %
    Wilson), and ``taken_for``: how many wrong predictions were which class, the commonest first.
    """
    rows = pd.DataFrame({"label": labels.to_numpy(), "pred": predictions.to_numpy(),
                         "hit": hits.to_numpy(dtype=bool)})
    found = []
    for label, group in rows.groupby("label"):
        wrong = group["pred"][~group["hit"]].sort_values().tolist()
        taken = {index: wrong.count(index) for index in dict.fromkeys(wrong)}
        summary: Summary = {"n": len(group)}
        put_rate(summary, "top1", group["hit"], failed=0)
        found.append({"class": label, **summary,
                      "taken_for": dict(sorted(taken.items(), key=lambda item: -item[1]))})
    return pd.DataFrame(found, columns=["class", "n", "top1", "top1_low", "top1_high", "taken_for"])


@dataclass(frozen=True)
class PairedDifference:
    """How two models differ on the same images.

    Attributes:
        n: images that both models evaluated.
        only_a, only_b: images on which the outcome holds for one model alone, or more for it.
        rate_a, rate_b: of these images in percent; nan without images.
        difference: rate of a minus rate of b, in points; nan without images.
        low, high: its interval, in points (Bonett and Price 2012; Student's t of means).
        p_value: exact two-sided McNemar test that neither model is better; of means the paired t
            test.
        of_means: whether the outcomes are means of several answers, and no flags.
    """

    n: int
    only_a: int
    only_b: int
    rate_a: float
    rate_b: float
    difference: float
    low: float
    high: float
    p_value: float
    of_means: bool = False


def paired_difference(outcomes_a: pd.Series[Any], outcomes_b: pd.Series[Any], *,
                      confidence: float = 0.95) -> PairedDifference:
    """Compare two models image by image: far sharper than two separate intervals.

    Args:
        outcomes_a, outcomes_b: nullable flags by image, such as `rotation_outcomes` and
            `pgd_outcomes` return, or numbers from -1 to 1, whose means are compared; images that
            are NA for either model are left out.
        confidence: coverage of the interval, in (0, 1).

    Raises OutputError when the two do not speak of the same images.
    """
    if set(outcomes_a.index) != set(outcomes_b.index):
        odd = sorted(map(str, set(outcomes_a.index) ^ set(outcomes_b.index)))
        raise OutputError("a paired comparison needs the same images for both models",
                          seen=f"{len(odd)} of them have only one ({odd[0]})",
                          hint="run both models on the same data and --num-samples")
    both = pd.DataFrame({"a": outcomes_a, "b": outcomes_b}).dropna().astype("float64")
    a, b, n = both["a"], both["b"], len(both)
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    if n == 0:
        nan = math.nan
        return PairedDifference(0, 0, 0, nan, nan, nan, nan, nan, nan)
    rate_a, rate_b = (100 * float(each.sum()) / n for each in (a, b))
    if not all(is_bool_dtype(each.dtype) for each in (outcomes_a, outcomes_b)):
        low, high, p_value = _means_test((a - b).to_numpy(), confidence)
        return PairedDifference(n, only_a, only_b, rate_a, rate_b, rate_a - rate_b, low, high,
                                p_value, of_means=True)
    low, high = _paired_interval(only_a, only_b, n, confidence)
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return PairedDifference(n, only_a, only_b, rate_a, rate_b, 100 * (only_a - only_b) / n, low,
                            high, p_value)


def _paired_interval(only_a: int, only_b: int, n: int, confidence: float) -> tuple[float, float]:
    # One image is added to each discordant cell; plain Wald is far too narrow when they are few.
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return 100 * max(a - b - half, -1.0), 100 * min(a - b + half, 1.0)


def _means_test(change: NDArray[np.float64], confidence: float) -> tuple[float, float, float]:
    """Return the t-interval of a mean in percent, and the p of its being 0."""
    if len(change) < 2 or not change.any():
        return math.nan, math.nan, math.nan if change.any() else 1.0
    with warnings.catch_warnings():  # where all images change alike
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_1samp(change, 0)
        low, high = test.confidence_interval(confidence)
    return 100 * float(low), 100 * float(high), float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for all of them together (Holm 1979); nan stays and counts not."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, least = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[place] = least
    return adjusted


@dataclass(frozen=True)
class PerImage:
    """Records split into parts, each indexed by image, without failed images.

    Attributes:
        rows: the rows of each part by its key.
        evaluated: ids of the images that did not fail.
        failed, excluded: numbers of the others.
        reasons: how many images failed for each reason.
    """

    rows: Mapping[Hashable, pd.DataFrame]
    evaluated: pd.Index[str]
    failed: int
    excluded: int
    reasons: Mapping[str, int]


def per_image(records: pd.DataFrame, keys: Sequence[Hashable], wanted: Sequence[Hashable], *,
              noun: str, more: bool = False) -> PerImage:
    """Split records by ``keys`` and check that every image has each wanted one once.

    Args:
        records: rows with ``image``, ``label``, ``error`` and whatever is measured.
        keys: the part that each row is of.
        wanted: the parts that every image must have.
        noun: what a part is called in messages.
        more: accept keys that are not wanted.

    Raises OutputError when an image counts twice, lacks a part or has two labels.
    """
    numbers = {key: number for number, key in enumerate(wanted)}
    rows = records.assign(_key=[numbers.get(key, -1) for key in keys])
    told = records[records["error"].notna()].drop_duplicates("image").set_index("image")["error"]
    stray = [key for key, image in zip(keys, records["image"])
             if key not in numbers and image not in told.index]
    if stray and not more:
        raise OutputError(f"records must hold only the {noun}s {_listing(wanted)}",
                          seen=f"one is of {stray[0]}", hint=_REBUILD)
    rows = rows[rows["_key"] >= 0]
    _check_once(rows, wanted, noun)
    images = pd.Index(records["image"].unique())
    evaluated = images[~images.isin(told.index)]
    _check_complete(rows, evaluated, wanted, noun)
    parts = {key: rows[rows["_key"] == number].set_index("image")
             for key, number in numbers.items()}
    excluded = told.str.startswith(EXCLUDED)
    return PerImage({key: part.loc[evaluated] for key, part in parts.items()}, evaluated,
                    int((~excluded).sum()), int(excluded.sum()), _reasons(told[~excluded]))


def _reasons(told: pd.Series[str]) -> dict[str, int]:
    """Count failed images by reason, the commonest first; reasons that differ in numbers alone
    are one, told in the words of its first image."""
    kinds: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for reason in told:
        first = kinds.setdefault(re.sub(r"[0-9]+", "#", reason), reason)
        numbers[first] = numbers.get(first, 0) + 1
    return dict(sorted(numbers.items(), key=lambda item: -item[1]))


def counts(table: PerImage) -> Summary:
    """Return ``n`` (images evaluated) and ``failed``; where there are any also ``excluded`` and
    ``reasons``, JSON that counts failed images by reason."""
    summary: Summary = {"n": len(table.evaluated), "failed": table.failed}
    if table.excluded:
        summary["excluded"] = table.excluded
    if table.reasons:
        summary["reasons"] = json.dumps(table.reasons, ensure_ascii=False)
    return summary


def _check_once(rows: pd.DataFrame, wanted: Sequence[Hashable], noun: str) -> None:
    twice = rows[rows.duplicated(["image", "_key"])]
    if len(twice):
        row = twice.iloc[0]
        raise OutputError(f"every image must count once per {noun}",
                          seen=f"{row['image']} has {wanted[row['_key']]} twice", hint=_REBUILD)
    labels = rows.groupby("image", sort=False, observed=True)["label"].nunique()
    if (labels > 1).any():
        raise OutputError("every image must have one label",
                          seen=f"{labels.idxmax()} has {labels.max()}", hint=_REBUILD)


def _check_complete(rows: pd.DataFrame, images: pd.Index[str], wanted: Sequence[Hashable],
                    noun: str) -> None:
    for number, key in enumerate(wanted):
        missing = images[~images.isin(rows.loc[rows["_key"] == number, "image"])]
        if len(missing):
            raise OutputError(f"every image must have each {noun}",
                              seen=f"{len(missing)} lack {key} ({missing[0]})", hint=_REBUILD)


def _listing(names: Sequence[Hashable]) -> str:
    return ", ".join(map(str, names))


def predicted(rows: pd.DataFrame, column: str) -> pd.Series[bool]:
    """Return whether a column's class is the label; raises OutputError where it has none."""
    if rows[column].isna().any():
        image = rows.index[rows[column].isna()][0]
        raise OutputError(f"records without an error must have {column}",
                          seen=f"{image} has none", hint=_REBUILD)
    return (rows[column] == rows["label"]).astype("boolean")


def flags(rows: pd.DataFrame, column: str) -> pd.Series[bool]:
    """Return a column of flags, which must be known for all images or for none.

    Raises OutputError otherwise.
    """
    known = rows[column].astype("boolean")
    if known.isna().any() and not known.isna().all():
        image = rows.index[known.isna()][0]
        raise OutputError(f"records must say {column} for all images or for none",
                          seen=f"{image} says nothing", hint=_REBUILD)
    return known


def put_rate(summary: Summary, name: str, outcomes: pd.Series[bool], *, failed: int,
             failed_counts: bool = False) -> None:
    """Add a rate in percent and its interval; nan when no outcome is known.

    Args:
        summary: where to add it.
        name: of its column.
        outcomes: nullable flags of the images that did not fail.
        failed: number of the others.
        failed_counts: whether the outcome holds for them in the rate over all images.
    """
    successes, n = int(outcomes.sum()), int(outcomes.notna().sum())
    summary[name] = 100 * successes / n if n else math.nan
    summary[f"{name}_low"], summary[f"{name}_high"] = wilson(successes, n)
    if failed and (n or not len(outcomes)):
        against = failed if failed_counts else 0
        summary[f"{name}_all"] = 100 * (successes + against) / (n + failed)


def minus(a: float | int | str | None, b: float | int | str | None) -> float:
    """Return the difference of two numbers of a summary."""
    assert isinstance(a, (int, float)) and isinstance(b, (int, float))
    return a - b


def with_failed(outcomes: pd.Series[Any], records: pd.DataFrame) -> pd.Series[Any]:
    """Return outcomes of all images in the order of their records; of failed ones they are NA."""
    return outcomes.reindex(pd.Index(records["image"].unique(), name="image"))
