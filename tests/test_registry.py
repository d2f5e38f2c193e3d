"""A table of names: what a mistyped one is answered with."""

from __future__ import annotations

import pytest

from sanrobust.errors import UnknownNameError
from sanrobust.registry import Registry, closest, unknown_name


def test_a_mistyped_name_is_answered_with_the_closest_whatever_its_case() -> None:
    registry: Registry[int] = Registry("model", listing="the list")
    registry.add("Alpha", 1)
    registry.add("beta", 2)
    with pytest.raises(UnknownNameError, match=r"no model named 'alhpa': did you mean Alpha\? see"):
        registry.get("alhpa")
    with pytest.raises(UnknownNameError, match="no model named 'omega': see the list"):
        registry.get("omega")


def test_the_name_that_was_refused_is_never_suggested() -> None:
    # As when a list of names holds more than the table that is asked.
    assert closest("vit-s.in1k", ["vit-s.in1k"]) is None
    assert closest("vit-s.in1k", ["vit-s.in1k", "vit-b.in1k"]) == "vit-b.in1k"
    assert closest("VIT-S.in1k", ["vit-s.in1k"]) == "vit-s.in1k"
    error = unknown_name("model", "vit-s.in1k", ["vit-s.in1k"], listing="the list")
    assert error.hint == "see the list"


def test_a_name_is_added_once() -> None:
    registry: Registry[int] = Registry("model", listing="the list")
    registry.add("one", 1)
    with pytest.raises(ValueError, match="two models are named 'one'"):
        registry.add("one", 2)
    assert (len(registry), registry.names(), list(registry), "one" in registry) == (
        1, ("one",), [1], True)
