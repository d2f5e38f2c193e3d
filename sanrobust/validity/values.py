"""What a check says: a verdict per line, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OK, LOOK, WRONG, NOT_JUDGED = "ok", "look", "wrong", "not judged"
WORDS = (OK, LOOK, WRONG, NOT_JUDGED)
"""Nothing to do; to be looked at; the attack's numbers cannot be believed; resting on another."""

Numbers = Mapping[str, float | int | str | None]


@dataclass(frozen=True)
class Finding:
    """What one line has found.

    Attributes:
        verdict: one of `WORDS`.
        seen: the numbers behind it, a clause.
        advice: what to do next; empty where there is nothing to do.
        numbers: the same unrounded, rates in percent.
    """

    verdict: str
    seen: str
    advice: str = ""
    numbers: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A line of the check of one model.

    Attributes:
        model, data: of which model, on which images.
        line: name of the line.
        finding: what it says.
    """

    model: str
    data: str
    line: str
    finding: Finding
