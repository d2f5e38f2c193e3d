"""Examples of hypothesis as a list, the same for the same seed."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def examples(strategy: SearchStrategy[T], number: int, of: int) -> list[T]:
    """Return up to ``number`` different examples of a strategy for the seed ``of``."""
    found: dict[str, T] = {}

    @seed(of)
    @settings(max_examples=number, database=None, phases=[Phase.generate], deadline=None,
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example: T) -> None:
        found.setdefault(repr(example), example)

    collect()
    return list(found.values())
