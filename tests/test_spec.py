"""A specification has one spelling, and any change of what decides numbers changes it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sanrobust.preprocessing import Preprocessing
from sanrobust.spec import RunSpec

SPEC = RunSpec(experiment="rotate", model="san10-pair.digits", weights="ab" * 32,
               preprocessing=Preprocessing(), data="digits", data_digest="cd" * 32, images=451,
               settings={"b": 1, "a": [1, 2]})


def test_order_of_settings_does_not_change_the_digest() -> None:
    assert replace(SPEC, settings={"a": [1, 2], "b": 1}).digest == SPEC.digest


@pytest.mark.parametrize("change", [
    {"experiment": "pgd"}, {"model": "san10-patch.digits"}, {"weights": "00" * 32},
    {"preprocessing": Preprocessing(img_size=192)}, {"data": "cifar10"},
    {"data_digest": "ee" * 32}, {"images": 450}, {"settings": {"a": [2, 1], "b": 1}},
    {"precision": "float64"},
], ids=lambda change: next(iter(change)))
def test_every_field_changes_the_digest_and_the_folder(change: dict[str, object]) -> None:
    changed = replace(SPEC, **change)  # type: ignore[arg-type]
    assert changed.digest != SPEC.digest
    assert changed.run_id != SPEC.run_id


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "timm/resnet18", "..", "x" * 500,
                                  "pkg.mod:make", "", "naïve model"])
def test_any_model_name_makes_one_harmless_folder(name: str) -> None:
    run_id = replace(SPEC, model=name, data=name).run_id
    assert "/" not in run_id and ".." not in run_id.split("-") and len(run_id) < 128
    assert run_id.startswith("rotate-")


def test_numbers_that_json_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(SPEC, settings={"eps": float("nan")}).canonical()
