"""Budgets and the way their numbers are typed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from sanrobust.attacks.budget import TABLE10, Budget, as_budget, as_budgets, parse_level
from sanrobust.errors import UsageError


@pytest.mark.parametrize(("text", "level"), [
    ("8", 8.0), ("8.0", 8.0), ("8/255", 8.0), ("0", 0.0), ("0/255", 0.0), ("0.0", 0.0), ("1", 1.0),
    ("1.5", 1.5), (" 8 ", 8.0), ("255", 255.0), ("0.5/255", 0.5), ("8.", 8.0), (".5/255", 0.5),
])
def test_a_level_is_read_in_units_of_one_255th(text: str, level: float) -> None:
    assert parse_level(text, "--eps") == level


@pytest.mark.parametrize("text", ["0.031", "0.03137", ".5", "0.999", "0.01", "1e-2"])
def test_a_level_in_units_of_the_pixel_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--eps must be"):
        parse_level(text, "--eps")


def test_the_refusal_of_a_fraction_says_what_to_type() -> None:
    with pytest.raises(UsageError) as caught:
        parse_level("0.031", "--eps")
    assert str(caught.value) == ("--eps must be in units of 1/255, but 0.031 was seen: "
                                 "type 8 or 8/255 (or 0.031/255 if that is meant)")


@pytest.mark.parametrize("text", [
    "-1", "-8/255", "256", "300/255", "nan", "inf", "-inf", "eight", "", " ", "8/256", "8/255/255",
    "/255", "8/", "1_0", "0x8", "1e1", "٨", "8 255", "+8", ".",
])
def test_what_is_no_level_is_refused_with_the_option_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--step must be a number of 1/255 from 0 to 255, but"):
        parse_level(text, "--step")


@pytest.mark.parametrize("value", [
    Budget(8, 2, 4), (8, 2, 4), [8.0, 2.0, 4], ("8/255", "2", 4), np.array([8, 2, 4]),
    {"eps": 8, "step": 2, "iters": 4}, (np.float32(8), np.int64(2), np.int8(4)),
], ids=["budget", "tuple", "list", "texts", "array", "mapping", "numpy"])
def test_a_budget_is_taken_as_people_write_it(value: object) -> None:
    budget = as_budget(value)
    assert budget == Budget(8, 2, 4) and repr(budget) == repr(Budget(8, 2, 4))
    assert as_budgets([value, (8, 4, 2)]) == (Budget(8, 2, 4), Budget(8, 4, 2))


@pytest.mark.parametrize("value", [
    None, 8, "8,2,4", b"824", (8, 2), (8, 2, 4, 1), {}, {"eps": 8, "step": 2},
    {"eps": 8, "step": 2, "iters": 4, "seed": 0}, {"eps": 8, "steps": 2, "iters": 4},
    (8, 2, 4.0), (8, 2, "4"), (8, None, 4), (float("nan"), 2, 4), (10 ** 400, 2, 4), (True, 2, 4),
    (8, 2, np.float64(4)), (8j, 2, 4),
], ids=repr)
def test_what_is_no_budget_is_refused_in_a_sentence(value: object) -> None:
    with pytest.raises(UsageError):
        as_budget(value)
    with pytest.raises(UsageError):
        as_budgets([value])


def test_a_radius_of_the_pixel_range_is_refused_from_python_too() -> None:
    with pytest.raises(UsageError) as caught:
        as_budget((8 / 255, 2 / 255, 4))
    assert str(caught.value) == ("eps must be in units of 1/255, but 0.0313725 was seen: "
                                 "give 8, or Budget(...) if 0.0313725/255 is meant")
    assert Budget(0.5, 0.5, 1).eps == 0.5


@pytest.mark.parametrize("values", [None, 8, "8", 8.0], ids=repr)
def test_what_is_no_sequence_of_budgets_is_refused(values: object) -> None:
    with pytest.raises(UsageError, match="budgets must be a sequence of budgets"):
        as_budgets(values)


def test_table10_is_eight_over_four_by_two_and_two_by_four() -> None:
    assert TABLE10 == (Budget(8.0, 4.0, 2), Budget(8.0, 2.0, 4))


def test_whole_and_fractional_spellings_are_one_budget() -> None:
    assert Budget(8, 4, 2).as_dict() == Budget(8.0, 4.0, 2).as_dict() == {
        "eps": 8.0, "step": 4.0, "iters": 2}
    assert repr(Budget(8, 4, 2)) == repr(Budget(8.0, 4.0, 2))


@pytest.mark.parametrize(("eps", "step", "iters"), [
    (0, 0, 0), (0, 0, 3), (0, 2, 2), (8, 0, 0), (255, 255, 1)])
def test_odd_budgets_are_legal(eps: float, step: float, iters: int) -> None:
    assert Budget(eps, step, iters).iters == iters


@pytest.mark.parametrize(("eps", "step", "iters", "rule"), [
    (-1, 4, 2, "eps must be"), (256, 4, 2, "eps must be"), (float("nan"), 4, 2, "eps must be"),
    (8, float("inf"), 2, "step must be"), (8, -2, 2, "step must be"), (8, 4, -1, "iters must be"),
    (8, 4, 2.0, "iters must be"), (8, 4, True, "iters must be"), (True, 4, 2, "eps must be"),
    (8, 0, 2, "step must be above 0"),
])
def test_an_illegal_budget_is_refused(eps: float, step: float, iters: int, rule: str) -> None:
    with pytest.raises(UsageError, match=f"^{rule}"):
        Budget(eps, step, iters)


def test_a_walk_that_cannot_reach_the_surface_says_so() -> None:
    assert [budget.shortfall() for budget in TABLE10] == [None, None]
    assert Budget(8, 4, 0).shortfall() is None
    assert Budget(8, 2, 2).shortfall() == (
        "2 steps of 2/255 walk 4/255 at most and never reach eps = 8/255")


def test_settings_load_neither_torch_nor_numpy() -> None:
    # A fresh interpreter, since this one has them loaded already.
    probe = ("import sys; import sanrobust.attacks.settings; "
             "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'torchattacks')))")
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
