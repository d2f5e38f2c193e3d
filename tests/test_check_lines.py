"""Every line on attacks: the verdict where attacks break so many images."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from sanrobust.validity.attacked import Pair
from sanrobust.validity.catalog import LINES
from sanrobust.validity.settings import CheckSettings
from sanrobust.validity.subject import Subject


def flags(broken: int, images: int = 64, *, first: int = 0, lost: int = 0) -> NDArray[np.float64]:
    """``broken`` images from ``first`` on, of which the last ``lost`` of all have no numbers."""
    made = np.zeros(images)
    made[first:first + broken] = 1
    made[images - lost:] = np.nan if lost else made[images - lost:]
    return made


def judged(line: str, **made: Any) -> str:
    """The verdict of a line on attacks that break so much."""
    base = made.pop("base", flags(40))
    by_key = made.pop("broken", {})

    def broken(eps: float | None = None, iters: int | None = None, restart: int = 0) -> Any:
        return by_key.get(eps or iters or restart or None, base)

    subject = SimpleNamespace(settings=CheckSettings(),
                              attacks=SimpleNamespace(broken=broken, **made))
    return LINES.get(line).judge(cast(Subject, subject)).verdict


# Twice the steps break the same and so many more; 5 of 64 images are 7.8 points.
@pytest.mark.parametrize(("more", "verdict"), [(0, "ok"), (1, "ok"), (5, "look"), (24, "wrong")])
def test_steps_have_converged_where_twice_as_many_gain_nothing(more: int, verdict: str) -> None:
    assert judged("steps", broken={80: flags(40 + more)}) == verdict


# A quarter, half and twice of eps = 8.
@pytest.mark.parametrize(("small", "large", "verdict"), [
    (0, 60, "ok"), (38, 60, "ok"), (40, 40, "look"), (40, 36, "look"), (40, 20, "wrong")])
def test_more_is_broken_in_a_larger_ball(small: int, large: int, verdict: str) -> None:
    sizes = {2.0: flags(small), 4.0: flags(40), 16.0: flags(large)}
    assert judged("radius", broken=sizes) == verdict


@pytest.mark.parametrize(("at_128", "verdict"), [
    (flags(64), "ok"), (flags(61), "ok"), (flags(59), "look"), (flags(50), "wrong"),
    (flags(60, lost=4), "look"), (flags(0, lost=64), "look")])
def test_without_a_limit_nearly_all_is_broken(at_128: NDArray[np.float64], verdict: str) -> None:
    assert judged("eps 128", broken={128.0: at_128}) == verdict


@pytest.mark.parametrize(("line", "name"), [("noise", "noise"), ("one step", "one_step"),
                                            ("black box", "square")])
# The attack itself breaks the first 40 of 64 images.
@pytest.mark.parametrize(("weak", "verdict"), [
    (flags(10), "ok"), (flags(0), "ok"), (flags(2, first=39), "ok"), (flags(40), "look"),
    (flags(3, first=40), "look"), (flags(8, first=40), "wrong"), (flags(64), "wrong"),
    (flags(0, lost=64), "look")])
def test_weaker_attacks_are_not_stronger(line: str, name: str, weak: NDArray[np.float64],
                                         verdict: str) -> None:
    assert judged(line, **{name: weak}) == verdict


@pytest.mark.parametrize(("second", "verdict"), [
    (flags(40), "ok"), (flags(40, first=2), "ok"), (flags(40, first=6), "look"),
    (flags(10), "wrong")])
def test_restarts_agree(second: NDArray[np.float64], verdict: str) -> None:
    assert judged("restarts", broken={1: second}) == verdict


@pytest.mark.parametrize(("again", "rounded", "verdict"), [
    (40, 40, "ok"), (40, 39, "ok"), (40, 30, "look"), (39, 39, "look"), (30, 30, "wrong")])
def test_what_was_broken_stays_so(again: int, rounded: int, verdict: str) -> None:
    assert judged("stored images", again=(flags(again), flags(rounded))) == verdict


def test_pairs_are_tested_as_mcnemar_does() -> None:
    pair = Pair.of(flags(6, first=38), flags(40))  # 4 by the first alone, 38 by the second alone
    assert (pair.only_weak, pair.only_strong, pair.n) == (4, 38, 64)
    exact = sum(math.comb(42, count) for count in range(4, 43)) / 2 ** 42
    assert pair.p == pytest.approx(exact)
    assert Pair.of(flags(6, lost=10), flags(40)).n == 54
