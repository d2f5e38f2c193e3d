"""White-box targeted PGD (Zhao et al. 2020, section 5.4 and Table 10), and attacks of torchattacks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from sanrobust.attacks.catalog import ATTACKS
from sanrobust.attacks.describe import attack_name, attack_strength, attack_words
from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.versions import MEMBERS
from sanrobust.experiments.base import (Columns, Experiment, Images, Outcome, Plot, Reference,
                                        stacked)
from sanrobust.experiments.budgets import (BUDGET, RECORDS, Budget, budget_order, budget_text,
                                           budget_words, budgets_of, failed_rows, rows_of)
from sanrobust.experiments.curve import draw_curve
from sanrobust.experiments.layout import Entry, Facts, Head, Layout, Listing, Measure, Part

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.experiments.base import Model
    from sanrobust.metrics import PerImage, Summary
    from sanrobust.preprocessing import Preprocessing

RATES = ("clean_top1", "success", "success_any", "top1_adv", "top1_fb")
BROKEN = {f"by_{name.replace('-', '_')}": name for name in ("clean", *MEMBERS)}
"""Columns that say, in percent of the images, which attack of a suite broke them."""


class PgdMeasurement:
    """An attack in all its budgets.

    Args:
        settings: the attack and everything that can change its numbers.

    Raises DataError for a targets file that does not read, UsageError for an attack or option
    that does not exist.
    """

    gradient = True

    def __init__(self, settings: AttackSettings) -> None:
        from sanrobust.attacks.build import build_attack
        self.batched = settings.adapted is None
        self.notes = settings.shortfalls()
        self._settings = settings
        self._rule = settings.rule()
        self._attack = build_attack(settings, self._rule)

    def spec(self) -> Mapping[str, object]:
        """Return the attack's settings; a targets file and another package enter by their hash."""
        settings = self._settings.as_dict(self._rule)
        if self._settings.adapted is not None:
            return settings
        from sanrobust.zoo.code import added_code
        code = added_code(ATTACKS.get(self._settings.attack).run)
        return settings if code is None else {**settings, "attack_code": code}

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Refuse targets that cannot serve these images; say which targets serve none."""
        del preprocessing
        ids = [ref.id for ref in images.refs]
        self._rule.check(ids, [ref.label for ref in images.refs], num_classes)
        return self._rule.remarks(ids)

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Return one row per budget and image; those of excluded images come last."""
        return self.make(model, batch)[0]

    def make(self, model: Model, batch: Batch) -> tuple[Columns, Images]:
        """Do as `measure`; return with the rows the adversarial image of each."""
        split = self._rule.split(batch.labels.tolist())
        tables: list[Columns] = []
        images: list[Tensor | None] = []
        if split.kept:
            kept = batch.part(split.kept)
            for result in self._attack(model, kept.pixels, kept.labels, kept.ids):
                tables.append(rows_of(result, kept.ids, kept.labels, kept.pixels))
                images += result.adversarial
        tables += [self.failed(batch.failed(position, "")) for position, _ in split.excluded]
        columns = stacked(tables)
        return columns, images + [None] * (len(columns["image"]) - len(images))

    def failed(self, image: FailedImage) -> Columns:
        """Return one row per budget that says why the image has no prediction."""
        # What has no target is in no rate, whether it can be read or not.
        reason = self._rule.refusal(image.label) or image.reason
        return failed_rows(image.id, image.label, reason, self._settings.strengths or (None,))


def pgd_summaries(records: pd.DataFrame) -> list[Summary]:
    """Summarise the records of one model under attack, one dict per budget (paper, Table 10).

    Args:
        records: one row per image and budget, with the columns that `PGD` reads, of which
            zero_gradient may be absent; eps, step and linf in 1/255.

    Each dict has what `metrics.counts` returns, the budget, and in percent of the evaluated images,
    with ``_low`` and ``_high`` (95 % Wilson) and ``_all`` where images failed: ``clean_top1``;
    ``success`` (classified as the target on the last iterate) and ``success_any`` (on any
    iterate); ``top1_adv`` (top-1 on the last iterate) and ``top1_fb`` (top-1 when an attack that
    failed leaves the clean image). ``mean_linf`` is the mean size of the perturbations in 1/255.
    ``no_gradient`` is the percentage of images at which the gradient was exactly zero in every
    pixel at every step, ``zero_gradient`` the mean percentage of pixels where it was. What the
    attack does not report is nan, or None in the budget. Raises OutputError when an image counts
    twice or lacks a budget.
    """
    table, budgets = _by_budget(records)
    return [_summary(table, budget) for budget in budgets]


def pgd_outcomes(records: pd.DataFrame, *, budget: Budget,
                 measure: Literal["success", "success_any", "top1_adv", "top1_fb"] = "success",
                 ) -> pd.Series[bool]:
    """Return per image whether ``measure`` (see `pgd_summaries`) holds under ``budget``.

    The result is a nullable Series indexed by image; an image that failed, or of which the
    attack does not report the measure, is NA. Raises OutputError when an image counts twice or
    the records lack the budget.
    """
    from sanrobust import metrics
    table = metrics.per_image(records, budgets_of(records), [budget], noun="budget", more=True)
    return metrics.with_failed(_outcomes(table.rows[budget])[measure], records)


def _all_outcomes(records: pd.DataFrame, settings: Mapping[str, object]) -> Iterator[Outcome]:
    del settings
    from sanrobust import metrics
    table, budgets = _by_budget(records)
    for budget in budgets:
        for name, holds in _outcomes(table.rows[budget]).items():
            yield Outcome(name, metrics.with_failed(holds, records),
                          () if name == "clean_top1" else budget)


def _by_budget(records: pd.DataFrame) -> tuple[PerImage, list[Budget]]:
    """Split the records of one model by budget; return the budgets in the order of Table 10."""
    from sanrobust import metrics
    keys = budgets_of(records)
    # An image that failed before the attack began may not know the attack's budget.
    attacked = [key for key, sound in zip(keys, records["error"].isna()) if sound]
    budgets = sorted(set(attacked or keys), key=budget_order)
    return metrics.per_image(records, keys, budgets, noun="budget"), budgets


def _outcomes(rows: pd.DataFrame) -> dict[str, pd.Series[bool]]:
    from sanrobust import metrics
    clean, hit = metrics.predicted(rows, "clean_pred"), metrics.flags(rows, "hit")
    return {
        "clean_top1": clean,
        "success": hit,
        "success_any": metrics.flags(rows, "hit_any"),
        "top1_adv": metrics.predicted(rows, "adv_pred"),
        # An unknown hit must stay unknown, also where the clean image is misclassified.
        "top1_fb": (clean & ~hit).mask(hit.isna()),
    }


def _summary(table: PerImage, budget: Budget) -> Summary:
    import pandas as pd

    from sanrobust import metrics
    rows = table.rows[budget]
    summary = {**metrics.counts(table), **dict(zip(BUDGET, budget))}
    for name, outcomes in _outcomes(rows).items():
        metrics.put_rate(summary, name, outcomes, failed=table.failed,
                         failed_counts=name.startswith("success"))
    summary["mean_linf"] = float(pd.to_numeric(rows["linf"]).mean())
    return {**summary, **_zero_gradients(rows)}


def _zero_gradients(rows: pd.DataFrame) -> Summary:
    """Summarise the parts of the gradient that were exactly zero, per image and step."""
    steps = rows["zero_gradient"].dropna() if "zero_gradient" in rows else rows["linf"].iloc[:0]
    steps = steps[steps.map(len) > 0]
    if not len(steps):
        return {}
    return {"zero_gradient": 100 * float(steps.map(fmean).mean()),
            # Not at some step: where an attack has reached its aim, its loss may be flat.
            "no_gradient": 100 * float((steps.map(min) == 1).mean())}


def _heads(parts: Sequence[Part]) -> list[Head]:
    attacks = (Head(*budget_text(part), (Measure(f"{number}:success", "s. rate", min, rare=True),
                                         Measure(f"{number}:top1_adv", "top-1")))
               for number, part in enumerate(parts))
    return [Head("clean", "", (Measure("clean_top1", "top-1"),)), *attacks]


def _title(entries: Sequence[Entry]) -> str:
    attacks = {entry.variant for entry in entries}
    if attacks <= {"PGD", ""}:
        return "Robustness to white-box targeted PGD attacks"
    return ("Robustness to adversarial attacks" if len(attacks) > 1
            else f"Robustness to {entries[0].variant}")


def _legend(known: Container[str]) -> str:
    radius = "the radius of the ball" if "mean_l2" in known else "the largest change of a pixel"
    parts = {"iters": "n {}the number of iterations", "eps": f"ε {{}}{radius}",
             "step": "ρ {}the step"}
    signs = [words.format("" if place else "is ") for place, words in
             enumerate(words for name, words in parts.items() if name in known)]
    unit = (", both in 1/255" if "eps" in known and "step" in known
            else ", in 1/255" if "eps" in known else "")
    if unit and "mean_l2" in known:
        unit += " in L-inf and in the pixel range [0, 1] in L2"
    # The paper does not say which iterate it scores; our own records tell the two apart.
    when = " on the last iterate" if "success_any" in known else ""
    rate = f"s. rate is the share of images classified as their target{when} (lower is better), "
    accuracy = ("" if "success" not in known else rate) + "top-1 the accuracy under attack"
    said = [", ".join(signs[:-1]) + (" and " if signs[:-1] else "") + signs[-1] + unit] \
        if signs else []
    return f"{'; '.join([*said, accuracy])}."


def _settings(facts: Facts) -> dict[str, object]:
    """Return the settings of an attack as its specification has them, from a row's columns."""
    settings = dict(facts)
    if isinstance(settings.get("options"), str):
        settings["options"] = json.loads(str(settings["options"]))
    return settings


def _variant(facts: Facts) -> str:
    if "attack" not in facts:
        return ""
    settings = _settings(facts)
    words = (attack_name(settings), attack_strength(settings))
    return ", ".join(word for word in words if word)


def _done(facts: Facts) -> str:
    return attack_words(_settings(facts)) if "attack" in facts else ""


def _blind(entries: Sequence[Entry]) -> Iterator[str]:
    """Warn of attacks that were blind: where the gradient is zero they cannot move."""
    several = len({entry.variant for entry in entries}) > 1
    blind = {f"{entry.label}, {entry.variant}" if several else entry.label: max(shares)
             for entry in entries
             if (shares := [value for key, value in entry.values.items()
                            if key.endswith("no_gradient") and value > 0])}
    if blind:
        told = "; ".join(f"{label} {share:.1f} %" for label, share in blind.items())
        yield ("Images at which the gradient was exactly zero in every pixel at every step, so "
               f"that the attack could not see: {told}; what it did not reach there is no sign of "
               "robustness.")


def _broken(entries: Sequence[Entry]) -> Iterator[Listing]:
    """Yield a table of what broke the images, where attacks of a suite were told apart."""
    rows = [(entry, part, {name: entry.values.get(f"{part}:{column}", 0.0)
                           for column, name in BROKEN.items()})
            for entry in entries
            for part in sorted({key.partition(":")[0] for key in entry.values if ":by_" in key})]
    broke = [{name for name, share in shares.items() if share > 0} for *_, shares in rows]
    if any(len(names - {"clean"}) > 1 for names in broke):
        names = [name for name in BROKEN.values() if any(name in each for each in broke)]
        lines = tuple((entry.label, entry.variant, str(int(part) + 1),
                       *(f"{shares[name]:.1f}" for name in names),
                       f"{entry.values.get(f'{part}:top1_adv', math.nan):.1f}")
                      for entry, part, shares in rows)
        yield Listing("What broke the images, in percent of them, by the number of the budget",
                      ("Method", "Attack", "Budget", *names, "none"), lines, stubs=3)


def _summaries(records: pd.DataFrame, settings: Mapping[str, object]) -> list[Summary]:
    summaries = pgd_summaries(records)
    keys = budgets_of(records)
    for summary in summaries:
        rows = records[[key == tuple(summary[name] for name in BUDGET) for key in keys]]
        # In L2 an attack of torchattacks has its radius elsewhere.
        if settings.get("norm") == "l2" and "radius" not in settings:
            summary["mean_l2"] = float(rows["l2"].mean())
        if "broken_by" in rows:
            told = rows["broken_by"].value_counts()
            summary.update({column: 100 * float(told[name]) / len(rows)
                            for column, name in BROKEN.items() if name in told})
    return summaries


def _table10() -> pd.DataFrame:
    from sanrobust import paper
    return paper.pgd()


def _fits(row: Mapping[str, object]) -> bool:
    return attack_name(row) == "PGD" and not row.get("momentum")


def _note() -> str:
    return "Table 10."


PGD = Experiment(
    name="pgd",
    files="pgd",
    help="""Attacks: targeted PGD (the paper's Table 10), AutoAttack and its parts, others.

    Without options it is white-box targeted PGD in the L-inf ball, and both budgets of Table 10 run
    in one pass. The other attacks lead away from the label, in linf or l2; apgd-*, fab*, square and
    autoattack end with each image that is misclassified. An attack of torchattacks takes its
    strength from -A. Writes OUT/pgd.csv, .tex and .md, and with three radii or more a plot.
    """,
    settings=AttackSettings,
    prepare=PgdMeasurement,
    records=RECORDS,
    makes_images=True,
    summarise=_summaries,
    outcomes=_all_outcomes,
    told_by_rows=("budgets",),
    layout=Layout(
        rates=RATES,
        values=("clean_top1", *BUDGET, *RATES[1:]),
        extra=("mean_linf",),
        rare={"mean_l2": "mean_l2", **{name: name for name in BROKEN},
              "zero_gradient": "no_gradient", "no_gradient": "no_gradient"},
        clean="clean_top1", ranked="top1_adv", heads=_heads, title=_title, legend=_legend,
        parts=BUDGET, order=budget_order, shared=("clean_top1",),
        details=(Measure("clean_top1", "clean top-1"), Measure("success", "s. rate"),
                 Measure("success_any", "s. rate, any iterate"), Measure("top1_adv", "top-1"),
                 Measure("top1_fb", "top-1, failed attack = clean")),
        part_noun="Budget", part_words=budget_words, listings=_broken,
        variant=_variant, variant_noun="Attack", done=_done, notes=_blind,
        failed_as="as wrong, and as reached by the attack"),
    reference=Reference(rows=_table10, fits=_fits, note=_note),
    plots=(Plot(suffix="_radii", draw=draw_curve,
                title="Accuracy under attack against the radius"),),
)
