"""How images are wanted: what is accepted, and what stays as it was in a run's identity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from conftest import Command
from sanrobust.errors import UsageError
from sanrobust.preprocessing import LARGEST_SIDE, Preprocessing


@pytest.mark.parametrize(("field", "value", "option"), [
    ("img_size", 0, "--img-size"), ("img_size", 32.5, "--img-size"),
    ("img_size", True, "--img-size"), ("img_size", LARGEST_SIDE + 1, "--img-size"),
    ("crop_pct", 0, "--crop-pct"), ("crop_pct", math.nan, "--crop-pct"),
    ("crop_pct", math.inf, "--crop-pct"), ("crop_pct", 5e-324, "--crop-pct"),
    ("crop_pct", 1e-5, "--crop-pct"), ("crop_pct", 1e9, "--crop-pct"),
    ("interpolation", "random", "--interpolation"), ("crop_mode", "centre", "--crop-mode"),
    ("mean", (math.nan, 0, 0), "--mean"), ("mean", ("a", "b", "c"), "--mean"),
    ("mean", (0.5, 0.5), "--mean"), ("mean", 0.5, "--mean"), ("std", (1, math.inf, 1), "--std"),
    ("std", (1, 0, 1), "--std"),
])
def test_a_value_that_cannot_be_meant_names_its_option(field: str, value: Any,
                                                       option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option} must be "):
        Preprocessing(**{field: value})


def test_a_central_crop_is_spelled_as_before_there_were_others() -> None:
    assert Preprocessing().as_dict() == {
        "img_size": 224, "crop_pct": 0.875, "interpolation": "bilinear",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert Preprocessing(crop_mode="squash").as_dict()["crop_mode"] == "squash"


def test_numbers_of_any_type_are_spelled_alike() -> None:
    assert repr(Preprocessing(np.int64(32), 1, mean=[0, 0, 0], std=(1, 1, 1)).as_dict()) == repr(
        Preprocessing(32, 1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).as_dict())


@pytest.mark.parametrize("words", [
    ("--mean", "nan,0,0"), ("--std", "1,inf,1"), ("--crop-pct", "1e-320"),
    ("--img-size", "2147483648"), ("--no-normalize", "--mean", "0,0,0"),
    ("--no-normalize", "--std", "1,1,1"),
])
def test_an_option_that_cannot_be_meant_is_one_sentence(command: Command,
                                                        words: tuple[str, ...]) -> None:
    result = command("rotate", "-m", "resnet26.digits", "--num-samples", "1", *words)
    assert result.exit_code == 2 and f"{words[0]} must " in result.output
