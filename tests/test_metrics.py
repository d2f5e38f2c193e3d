from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from sanrobust.data.views import VIEWS
from sanrobust.errors import OutputError
from sanrobust.experiments.pgd import pgd_outcomes, pgd_summaries
from sanrobust.experiments.rotation import rotation_outcomes, rotation_summary
from sanrobust.metrics import paired_difference, wilson

Z95 = 1.959963984540054
TABLE10 = ((8.0, 4.0, 2), (8.0, 2.0, 4))


def rotation_records(images: int = 4, *, failed: tuple[int, ...] = (),
                     wrong: dict[str, int] | None = None) -> pd.DataFrame:
    """Records in which the first ``wrong[view]`` images are misclassified in that view."""
    rows = []
    for image in range(images):
        for view in VIEWS:
            hit = image >= (wrong or {}).get(view, 0)
            bad = image in failed
            rows.append({"image": f"i{image}", "label": 3, "view": view,
                         "pred": None if bad else (3 if hit else 5),
                         "top5_hit": None if bad else True, "prob_label": None if bad else 0.5,
                         "error": "truncated" if bad else None})
    return pd.DataFrame(rows)


def pgd_records(outcomes: list[tuple[int, int, bool, bool | None]], *,
                budgets: tuple[tuple[float, float | None, int | None], ...] = TABLE10,
                failed: tuple[int, ...] = ()) -> pd.DataFrame:
    """Records from (clean_pred, adv_pred, hit, hit_any) of images with label 0 and target 1."""
    rows = []
    for image, (clean, adv, hit, hit_any) in enumerate(outcomes):
        for eps, step, iters in budgets:
            bad = image in failed
            rows.append({"image": f"i{image}", "label": 0, "target": 1, "eps": eps, "step": step,
                         "iters": iters, "clean_pred": None if bad else clean,
                         "adv_pred": None if bad else adv, "hit": None if bad else hit,
                         "hit_any": None if bad else hit_any, "linf": None if bad else eps,
                         "target_loss": None, "error": "truncated" if bad else None})
    return pd.DataFrame(rows)


# Classified as the target; fooled into another class; resisted; misclassified from the start.
MIXED = [(0, 1, True, True), (0, 2, False, True), (0, 0, False, False), (2, 2, False, False)]


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (7, 10), (389, 1000)])
def test_wilson_agrees_with_the_closed_formula(successes: int, n: int) -> None:
    p = successes / n
    centre = (p + Z95 ** 2 / (2 * n)) / (1 + Z95 ** 2 / n)
    half = Z95 / (1 + Z95 ** 2 / n) * math.sqrt(p * (1 - p) / n + Z95 ** 2 / (4 * n ** 2))
    # Both are a handful of double operations on numbers up to 100.
    assert wilson(successes, n) == pytest.approx((100 * (centre - half), 100 * (centre + half)),
                                                 abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 50_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
       st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_contains_the_rate_and_stays_in_percent(counts: tuple[int, int],
                                                       confidence: float) -> None:
    successes, n = counts
    low, high = wilson(successes, n, confidence)
    rate = 100 * successes / n
    # The slack is rounding alone: an all-or-nothing rate is the end of its own interval.
    assert 0 <= low <= rate + 1e-9 and rate - 1e-9 <= high <= 100


def test_wilson_widens_with_confidence() -> None:
    narrow, wide = wilson(30, 100, 0.8), wilson(30, 100, 0.99)
    assert wide[0] < narrow[0] and narrow[1] < wide[1]


def test_wilson_of_no_images_is_nan() -> None:
    assert all(math.isnan(bound) for bound in wilson(0, 0))


def test_rotation_rates_and_drops_count_each_view() -> None:
    summary = rotation_summary(rotation_records(8, wrong={"none": 1, "cw90": 4, "updown": 0}))
    assert (summary["n"], summary["failed"]) == (8, 0)
    assert summary["none_top1"] == 87.5
    assert summary["cw90_top1"] == 50.0 and summary["cw90_top1_drop"] == 37.5
    assert summary["updown_top1_drop"] == -12.5
    assert summary["cw90_top5"] == 100.0 and summary["cw90_top5_drop"] == 0.0
    assert (summary["cw90_top1_low"], summary["cw90_top1_high"]) == wilson(4, 8)
    assert "none_top1_drop" not in summary


def test_rotation_numbers_are_not_rounded() -> None:
    assert rotation_summary(rotation_records(3, wrong={"none": 1}))["none_top1"] == 200 / 3


def test_rotation_does_not_depend_on_the_order_of_records() -> None:
    records = rotation_records(9, wrong={"none": 2, "cw180": 5}, failed=(7,))
    shuffled = records.sample(frac=1, random_state=0)
    assert rotation_summary(shuffled) == rotation_summary(records)


def test_failed_images_are_counted_apart() -> None:
    summary = rotation_summary(rotation_records(4, failed=(0,), wrong={"none": 2}))
    assert (summary["n"], summary["failed"]) == (3, 1)
    assert summary["none_top1"] == pytest.approx(100 * 2 / 3)


def test_an_image_that_failed_in_one_view_counts_in_none() -> None:
    records = rotation_records(2)
    records["error"] = records["error"].astype(object)
    records.loc[2, "error"] = "out of memory"
    summary = rotation_summary(records)
    assert (summary["n"], summary["failed"]) == (1, 1)


def test_no_records_give_nan_rates() -> None:
    summary = rotation_summary(rotation_records(1).iloc[:0])
    assert summary["n"] == 0 and summary["none_top1"] is not None
    assert math.isnan(summary["none_top1"]) and math.isnan(summary["cw90_top5_drop"] or 0)


def test_only_failed_images_give_nan_rates() -> None:
    summary = rotation_summary(rotation_records(2, failed=(0, 1)))
    assert (summary["n"], summary["failed"]) == (0, 2)
    assert math.isnan(summary["cw90_top1_low"] or 0)


def test_rotation_refuses_an_image_counted_twice() -> None:
    records = rotation_records(2)
    with pytest.raises(OutputError, match="i0 has none twice"):
        rotation_summary(pd.concat([records, records.iloc[:1]]))


def test_rotation_refuses_a_missing_view() -> None:
    with pytest.raises(OutputError, match=r"1 lack updown \(i1\)"):
        rotation_summary(rotation_records(2).iloc[:-1])


def test_rotation_refuses_a_view_it_does_not_know() -> None:
    records = rotation_records(1)
    records.loc[0, "view"] = "cw45"
    with pytest.raises(OutputError, match="one is of cw45"):
        rotation_summary(records)


def test_rotation_refuses_an_image_with_two_labels() -> None:
    records = rotation_records(2)
    records.loc[0, "label"] = 4
    with pytest.raises(OutputError, match="i0 has 2"):
        rotation_summary(records)


@pytest.mark.parametrize("column", ["pred", "top5_hit"])
def test_rotation_refuses_a_lost_prediction(column: str) -> None:
    records = rotation_records(2)
    records[column] = records[column].astype(object)
    records.loc[5, column] = None
    with pytest.raises(OutputError, match="i1"):
        rotation_summary(records)


def test_pgd_scores_the_last_iterate_over_all_images() -> None:
    summary = pgd_summaries(pgd_records(MIXED))[0]
    assert (summary["n"], summary["failed"]) == (4, 0)
    assert summary["clean_top1"] == 75.0
    assert summary["success"] == 25.0
    assert summary["success_any"] == 50.0
    assert summary["top1_adv"] == 25.0
    assert (summary["success_low"], summary["success_high"]) == wilson(1, 4)
    assert summary["mean_linf"] == 8.0


def test_pgd_failed_attack_counts_as_the_clean_image() -> None:
    # Of three images that are right when clean the attack takes one; the fourth stays wrong.
    assert pgd_summaries(pgd_records(MIXED))[0]["top1_fb"] == 50.0


def test_pgd_gives_one_summary_per_budget_in_the_order_of_the_paper() -> None:
    summaries = pgd_summaries(pgd_records(MIXED, budgets=TABLE10[::-1]))
    assert [(s["eps"], s["step"], s["iters"]) for s in summaries] == list(TABLE10)


def test_pgd_accepts_an_attack_that_reports_neither_steps_nor_iterates() -> None:
    silent = [(clean, adv, hit, None) for clean, adv, hit, _ in MIXED]
    summary, = pgd_summaries(pgd_records(silent, budgets=((8.0, None, None),)))
    assert summary["step"] is None and summary["iters"] is None
    assert summary["success"] == 25.0
    assert math.isnan(summary["success_any"] or 0) and math.isnan(summary["success_any_low"] or 0)


def test_pgd_accepts_an_attack_without_any_budget() -> None:
    records = pgd_records(MIXED).drop_duplicates("image").assign(eps=None, step=None, iters=None)
    summary, = pgd_summaries(records)
    assert (summary["eps"], summary["step"], summary["iters"]) == (None, None, None)
    assert summary["top1_adv"] == 25.0
    assert int(pgd_outcomes(records, budget=(None, None, None)).sum()) == 1


def test_pgd_counts_an_image_that_failed_before_its_budget_was_known() -> None:
    records = pgd_records(MIXED, budgets=((8.0, None, None),), failed=(1,))
    records.loc[1, "eps"] = None
    summary, = pgd_summaries(records)
    assert (summary["eps"], summary["n"], summary["failed"]) == (8.0, 3, 1)


def test_pgd_of_an_untargeted_attack_keeps_what_it_knows() -> None:
    records = pgd_records(MIXED).assign(hit=None, hit_any=None, target=None)
    summary = pgd_summaries(records)[0]
    assert summary["top1_adv"] == 25.0
    assert math.isnan(summary["success"] or 0) and math.isnan(summary["top1_fb"] or 0)


def test_pgd_counts_failed_images_apart_in_every_budget() -> None:
    for summary in pgd_summaries(pgd_records(MIXED, failed=(2,))):
        assert (summary["n"], summary["failed"]) == (3, 1)
        assert summary["top1_adv"] == 0.0


def test_pgd_of_no_records_has_no_budgets() -> None:
    assert pgd_summaries(pgd_records(MIXED).iloc[:0]) == []


def test_pgd_refuses_an_image_counted_twice() -> None:
    records = pgd_records(MIXED)
    with pytest.raises(OutputError, match=r"i3 has \(8.0, 2.0, 4\) twice"):
        pgd_summaries(pd.concat([records, records.iloc[-1:]]))


def test_pgd_refuses_an_image_without_one_of_the_budgets() -> None:
    with pytest.raises(OutputError, match=r"1 lack \(8.0, 4.0, 2\) \(i0\)"):
        pgd_summaries(pgd_records(MIXED).iloc[1:])


def test_pgd_refuses_a_flag_that_some_images_lack() -> None:
    records = pgd_records(MIXED)
    records["hit"] = records["hit"].astype(object)
    records.loc[0, "hit"] = None
    with pytest.raises(OutputError, match="hit for all images or for none, but i0"):
        pgd_summaries(records)


def test_outcomes_average_to_the_summary() -> None:
    records = pgd_records(MIXED, failed=(3,))
    summary = pgd_summaries(records)[1]
    for measure in ("success", "success_any", "top1_adv", "top1_fb"):
        outcomes = pgd_outcomes(records, budget=TABLE10[1], measure=measure)
        assert 100 * float(outcomes.mean()) == pytest.approx(summary[measure])
        assert pd.isna(outcomes["i3"])


def test_rotation_outcomes_are_per_image_in_one_view() -> None:
    records = rotation_records(3, wrong={"cw90": 2}, failed=(0,))
    outcomes = rotation_outcomes(records, view="cw90")
    assert pd.isna(outcomes["i0"]) and not outcomes["i1"] and outcomes["i2"]
    assert rotation_outcomes(records, view="cw90", measure="top5")["i1"]


def test_outcomes_refuse_a_budget_that_was_not_run() -> None:
    with pytest.raises(OutputError, match="4 lack"):
        pgd_outcomes(pgd_records(MIXED), budget=(4.0, 1.0, 8))


def flags(values: list[bool | None]) -> pd.Series[bool]:
    index = [f"i{number}" for number in range(len(values))]
    return pd.Series(values, index=index, dtype="boolean")


def test_mcnemar_agrees_with_the_binomial_sum() -> None:
    a, b = flags([True] * 9 + [False] * 11), flags([True] * 2 + [False] * 15 + [True] * 3)
    result = paired_difference(a, b)
    assert (result.n, result.only_a, result.only_b) == (20, 7, 3)
    assert result.difference == pytest.approx(20.0)
    # Two-sided exact test of 7 against 3 at even odds: both tails of Binomial(10, 1/2).
    assert result.p_value == pytest.approx(2 * binom.cdf(3, 10, 0.5))


def test_paired_interval_agrees_with_its_formula() -> None:
    a, b = flags([True] * 9 + [False] * 11), flags([True] * 2 + [False] * 15 + [True] * 3)
    p, q = 8 / 22, 4 / 22
    half = Z95 * math.sqrt((p + q - (p - q) ** 2) / 22)
    result = paired_difference(a, b)
    assert (result.low, result.high) == pytest.approx((100 * (p - q - half), 100 * (p - q + half)))


def test_paired_difference_changes_sign_with_the_order_of_the_models() -> None:
    rng = np.random.default_rng(0)
    a, b = flags(list(rng.random(50) < 0.6)), flags(list(rng.random(50) < 0.4))
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert forward.difference == -backward.difference
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))
    assert forward.p_value == backward.p_value


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_interval_contains_the_difference(pairs: list[tuple[bool, bool]]) -> None:
    result = paired_difference(flags([a for a, _ in pairs]), flags([b for _, b in pairs]))
    assert -100 <= result.low <= result.difference <= result.high <= 100


def test_equal_models_do_not_differ() -> None:
    outcomes = flags([True, False, True])
    result = paired_difference(outcomes, outcomes)
    assert result.difference == 0 and result.p_value == 1 and result.low < 0 < result.high


def test_images_that_failed_for_one_model_are_left_out_of_the_pair() -> None:
    result = paired_difference(flags([True, None, True]), flags([False, True, None]))
    assert (result.n, result.only_a, result.only_b) == (1, 1, 0)


def test_pairs_match_by_image_not_by_position() -> None:
    outcomes = flags([True, False, False])
    assert paired_difference(outcomes, outcomes.iloc[::-1]).only_a == 0


def test_no_common_image_gives_nan() -> None:
    assert math.isnan(paired_difference(flags([None]), flags([True])).difference)


def test_paired_difference_refuses_other_images() -> None:
    with pytest.raises(OutputError, match=r"1 of them have only one \(i2\)"):
        paired_difference(flags([True, True]), flags([True, True, True]))


def test_zero_gradients_are_counted_where_no_step_saw_any() -> None:
    parts = [[1.0, 1.0], [0.5, 1.0], [0.0, 0.5], None]
    records = pgd_records(MIXED, budgets=((8.0, 4.0, 2),)).assign(zero_gradient=parts)
    (summary,) = pgd_summaries(records)
    assert summary["no_gradient"] == pytest.approx(100 / 3)
    assert summary["zero_gradient"] == pytest.approx(100 * (1 + 0.75 + 0.25) / 3)
    (unknown,) = pgd_summaries(records.assign(zero_gradient=[None] * len(parts)))
    assert "no_gradient" not in unknown


def test_excluded_images_are_not_failed_and_reasons_are_counted() -> None:
    records = rotation_records(5)
    reasons = {"i1": "excluded: the image's label is the fixed target 3", "i4": "not finite",
               "i2": "damaged (3 bytes lost)", "i3": "damaged (17 bytes lost)"}
    records["error"] = records["image"].map(reasons)
    summary = rotation_summary(records)
    assert (summary["n"], summary["failed"], summary["excluded"]) == (1, 3, 1)
    assert json.loads(str(summary["reasons"])) == {"damaged (3 bytes lost)": 2, "not finite": 1}
    assert summary["none_top1_all"] == pytest.approx(float(str(summary["none_top1"])) / 4)
