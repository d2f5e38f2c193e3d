"""Pure functions from per-image records to the numbers of the tables.

Rates, drops and intervals are in percent (drops and differences in points) and unrounded. An
image counts once: one that failed in any of its rows is left out of all of them, so every view
and every budget of a run is measured on the same images. Where images failed, each rate also
stands over all images, the failed ones counted against the model (``_all``): as wrong, and as
reached by the attack. Images
that the experiment itself leaves out, such as those whose label is the target, are not failed but
``excluded``; they are in no rate.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

import pandas as pd
from scipy.stats import binomtest, norm
from scipy.stats import t as student

from sanrobust.errors import OutputError
from sanrobust.chunks import EXCLUDED

COLUMNS = {
    "rotate": ("image", "label", "view", "pred", "top5_hit", "error"),
    "pgd": ("image", "label", "eps", "step", "iters", "clean_pred", "adv_pred", "hit", "hit_any",
            "linf", "zero_gradient", "error"),
}
"""What the summary of an experiment reads of its records."""
_ATTACKERS = ("success", "success_any")
VIEWS = ("none", "cw90", "cw180", "cw270", "updown")
_REBUILD = "rebuild the records: run the same command with --fresh"

Budget = tuple[float | None, float | None, int | None]
Summary = dict[str, float | int | str | None]


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


def rotation_summary(records: pd.DataFrame, *, views: Sequence[str] = VIEWS) -> Summary:
    """Summarise the records of one model under rotation and flip (paper, Table 9).

    Args:
        records: one row per image and view, with the `COLUMNS` of ``rotate``.
        views: names that every image must have; the first is the one that drops refer to.

    Returns what `_counts` does, and per view ``V_top1`` and ``V_top5`` with ``_low`` and
    ``_high`` (95 % Wilson), ``_all`` where images failed and, but for the first view, ``_drop``.
    Raises OutputError when an image counts twice or lacks a view.
    """
    table = _per_image(records, records["view"].tolist(), views, noun="view")
    summary = _counts(table)
    for measure in ("top1", "top5"):
        for view in views:
            name = f"{view}_{measure}"
            rows = table.rows[view]
            _put_rate(summary, name, _rotation_hits(rows, measure), failed=table.failed)
            if view != views[0]:
                summary[f"{name}_drop"] = _minus(summary[f"{views[0]}_{measure}"], summary[name])
    return summary


def pgd_summaries(records: pd.DataFrame) -> list[Summary]:
    """Summarise the records of one model under attack, one dict per budget (paper, Table 10).

    Args:
        records: one row per image and budget, with the `COLUMNS` of ``pgd``, of which
            zero_gradient may be absent; eps, step and linf in 1/255.

    Each dict has what `_counts` returns, the budget, and in percent of the evaluated images, with
    ``_low`` and ``_high`` (95 % Wilson) and ``_all`` where images failed: ``clean_top1``;
    ``success`` (classified as the target on the last iterate) and ``success_any`` (on any
    iterate); ``top1_adv`` (top-1 on the last iterate) and ``top1_fb`` (top-1 when an attack that
    failed leaves the clean image). ``mean_linf`` is the mean size of the perturbations in 1/255.
    ``no_gradient`` is the percentage of images at which the gradient was exactly zero in every
    pixel at every step, ``zero_gradient`` the mean percentage of pixels where it was. What the
    attack does not report is nan, or None in the budget. Raises OutputError when an image counts
    twice or lacks a budget.
    """
    keys = _budgets(records)
    # An image that failed before the attack began may not know the attack's budget.
    attacked = [key for key, sound in zip(keys, records["error"].isna()) if sound]
    budgets = sorted(set(attacked or keys), key=_budget_order)
    table = _per_image(records, keys, budgets, noun="budget")
    return [_pgd_summary(table, budget) for budget in budgets]


@dataclass(frozen=True)
class PairedDifference:
    """How two models differ on the same images.

    Attributes:
        n: images that both models evaluated.
        only_a, only_b: images on which the outcome holds for one model alone.
        difference: rate of a minus rate of b, in points; nan without images.
        low, high: its interval, in points (Bonett and Price 2012).
        p_value: exact two-sided McNemar test that neither model is better.
    """

    n: int
    only_a: int
    only_b: int
    difference: float
    low: float
    high: float
    p_value: float


def rotation_outcomes(records: pd.DataFrame, *, view: str,
                      measure: Literal["top1", "top5"] = "top1") -> pd.Series[bool]:
    """Return per image whether the label was among the model's top 1 or 5 in ``view``.

    The result is a nullable Series indexed by image; an image that failed is NA. Raises
    OutputError when an image counts twice or the records lack the view.
    """
    table = _per_image(records, records["view"].tolist(), [view], noun="view", more=True)
    return _with_failed(_rotation_hits(table.rows[view], measure), records)


def pgd_outcomes(records: pd.DataFrame, *, budget: Budget,
                 measure: Literal["success", "success_any", "top1_adv", "top1_fb"] = "success",
                 ) -> pd.Series[bool]:
    """Return per image whether ``measure`` (see `pgd_summaries`) holds under ``budget``.

    The result is a nullable Series indexed by image; an image that failed, or of which the
    attack does not report the measure, is NA. Raises OutputError when an image counts twice or
    the records lack the budget.
    """
    table = _per_image(records, _budgets(records), [budget], noun="budget", more=True)
    outcomes = _pgd_hits(table.rows[budget])[measure]
    return _with_failed(outcomes, records)


def paired_difference(outcomes_a: pd.Series[bool], outcomes_b: pd.Series[bool], *,
                      confidence: float = 0.95) -> PairedDifference:
    """Compare two models image by image: far sharper than two separate intervals.

    Args:
        outcomes_a, outcomes_b: results of `rotation_outcomes` or `pgd_outcomes` on the same
            images; those that are NA for either model are left out.
        confidence: coverage of the interval, in (0, 1).

    Raises OutputError when the two do not speak of the same images.
    """
    if set(outcomes_a.index) != set(outcomes_b.index):
        odd = sorted(map(str, set(outcomes_a.index) ^ set(outcomes_b.index)))
        raise OutputError("a paired comparison needs the same images for both models",
                          seen=f"{len(odd)} of them have only one ({odd[0]})",
                          hint="run both models on the same data and --num-samples")
    both = pd.DataFrame({"a": outcomes_a, "b": outcomes_b}).dropna().astype(bool)
    only_a = int((both["a"] & ~both["b"]).sum())
    only_b = int((both["b"] & ~both["a"]).sum())
    n = len(both)
    if n == 0:
        return PairedDifference(0, 0, 0, math.nan, math.nan, math.nan, math.nan)
    low, high = _paired_interval(only_a, only_b, n, confidence)
    discordant = only_a + only_b
    p_value = float(binomtest(only_a, discordant).pvalue) if discordant else 1.0
    return PairedDifference(n, only_a, only_b, 100 * (only_a - only_b) / n, low, high, p_value)


def _paired_interval(only_a: int, only_b: int, n: int, confidence: float) -> tuple[float, float]:
    # One image is added to each discordant cell; plain Wald is far too narrow when they are few.
    a, b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = float(norm.ppf((1 + confidence) / 2)) * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return 100 * max(a - b - half, -1.0), 100 * min(a - b + half, 1.0)


@dataclass(frozen=True)
class _PerImage:
    """Records split by view or budget; each part is indexed by image, without failed images."""

    rows: Mapping[Hashable, pd.DataFrame]
    evaluated: pd.Index[str]
    failed: int
    excluded: int
    reasons: Mapping[str, int]


def _per_image(records: pd.DataFrame, keys: Sequence[Hashable], wanted: Sequence[Hashable], *,
               noun: str, more: bool = False) -> _PerImage:
    """Split records by ``keys`` and check that every image has each wanted one once.

    Args:
        more: accept keys that are not wanted.
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
    return _PerImage({key: part.loc[evaluated] for key, part in parts.items()}, evaluated,
                     int((~excluded).sum()), int(excluded.sum()), _reasons(told[~excluded]))


def _reasons(told: pd.Series[str]) -> dict[str, int]:
    """Count failed images by reason, the commonest first; reasons that differ in numbers alone
    are one, told in the words of its first image."""
    kinds: dict[str, str] = {}
    counts: dict[str, int] = {}
    for reason in told:
        first = kinds.setdefault(re.sub(r"[0-9]+", "#", reason), reason)
        counts[first] = counts.get(first, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _counts(table: _PerImage) -> Summary:
    """Return ``n`` (images evaluated) and ``failed``; where there are any also ``excluded`` and
    ``reasons``, JSON that counts failed images by reason."""
    counts: Summary = {"n": len(table.evaluated), "failed": table.failed}
    if table.excluded:
        counts["excluded"] = table.excluded
    if table.reasons:
        counts["reasons"] = json.dumps(table.reasons, ensure_ascii=False)
    return counts


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


def _predicted(rows: pd.DataFrame, column: str) -> pd.Series[bool]:
    if rows[column].isna().any():
        image = rows.index[rows[column].isna()][0]
        raise OutputError(f"records without an error must have {column}",
                          seen=f"{image} has none", hint=_REBUILD)
    return (rows[column] == rows["label"]).astype("boolean")


def _flags(rows: pd.DataFrame, column: str) -> pd.Series[bool]:
    """Return a column of flags that an attack reports for all images or for none."""
    flags = rows[column].astype("boolean")
    if flags.isna().any() and not flags.isna().all():
        image = rows.index[flags.isna()][0]
        raise OutputError(f"records must say {column} for all images or for none",
                          seen=f"{image} says nothing", hint=_REBUILD)
    return flags


def _rotation_hits(rows: pd.DataFrame, measure: str) -> pd.Series[bool]:
    if measure == "top1":
        return _predicted(rows, "pred")
    _predicted(rows, "pred")
    return _flags(rows, "top5_hit")


def _pgd_hits(rows: pd.DataFrame) -> dict[str, pd.Series[bool]]:
    clean, hit = _predicted(rows, "clean_pred"), _flags(rows, "hit")
    return {
        "clean_top1": clean,
        "success": hit,
        "success_any": _flags(rows, "hit_any"),
        "top1_adv": _predicted(rows, "adv_pred"),
        # An unknown hit must stay unknown, also where the clean image is misclassified.
        "top1_fb": (clean & ~hit).mask(hit.isna()),
    }


def _pgd_summary(table: _PerImage, budget: Budget) -> Summary:
    rows = table.rows[budget]
    summary = {**_counts(table), "eps": budget[0], "step": budget[1], "iters": budget[2]}
    for name, outcomes in _pgd_hits(rows).items():
        _put_rate(summary, name, outcomes, failed=table.failed)
    summary["mean_linf"] = float(pd.to_numeric(rows["linf"]).mean())
    return {**summary, **_zero_gradients(rows)}


def _zero_gradients(rows: pd.DataFrame) -> Summary:
    """Summarise the parts of the gradient that were exactly zero, per image and step."""
    steps = rows["zero_gradient"].dropna() if "zero_gradient" in rows else pd.Series(dtype=object)
    steps = steps[steps.map(len) > 0]
    if not len(steps):
        return {}
    return {"zero_gradient": 100 * float(steps.map(fmean).mean()),
            # Not at some step: where an attack has reached its aim, its loss may be flat.
            "no_gradient": 100 * float((steps.map(min) == 1).mean())}


def _put_rate(summary: Summary, name: str, outcomes: pd.Series[bool], *, failed: int) -> None:
    """Add a rate in percent and its interval; nan when no outcome is known."""
    successes, n = int(outcomes.sum()), int(outcomes.notna().sum())
    summary[name] = 100 * successes / n if n else math.nan
    summary[f"{name}_low"], summary[f"{name}_high"] = wilson(successes, n)
    if failed and (n or not len(outcomes)):
        against = failed if name in _ATTACKERS else 0
        summary[f"{name}_all"] = 100 * (successes + against) / (n + failed)


def _minus(a: float | int | str | None, b: float | int | str | None) -> float:
    assert isinstance(a, (int, float)) and isinstance(b, (int, float))
    return a - b


def _with_failed(outcomes: pd.Series[bool], records: pd.DataFrame) -> pd.Series[bool]:
    return outcomes.reindex(pd.Index(records["image"].unique(), name="image"))


def _budgets(records: pd.DataFrame) -> list[Budget]:
    """Return each row's budget with None, which equals itself, for what the attack lacks."""
    columns = (records[name].astype("Float64") for name in ("eps", "step", "iters"))
    return [(None if pd.isna(eps) else float(eps), None if pd.isna(step) else float(step),
             None if pd.isna(iters) else int(iters)) for eps, step, iters in zip(*columns)]


def _budget_order(budget: Budget) -> tuple[float, ...]:
    """Sort as in Table 10: by eps, then by the number of iterations; what is unknown last."""
    eps, step, iters = budget
    return tuple(math.inf if part is None else part for part in (eps, iters, step))
