"""How far an attack may go: L-inf budgets in units of 1/255, the step between two 8-bit values."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sanrobust.errors import UsageError

LEVELS = 255
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


@dataclass(frozen=True)
class Budget:
    """Radius, step and number of steps of one attack.

    Attributes:
        eps: radius of the L-inf ball in units of 1/255, in [0, 255]; 0 changes nothing.
        step: length of one step in units of 1/255, in [0, 255]; above 0 where a step can move.
        iters: number of steps; 0 scores the start.

    Raises UsageError for any other value.
    """

    eps: float
    step: float
    iters: int

    def __post_init__(self) -> None:
        # 8 and 8.0 are one budget and must have one spelling in a run's specification.
        object.__setattr__(self, "eps", _level(self.eps, "eps"))
        object.__setattr__(self, "step", _level(self.step, "step"))
        if isinstance(self.iters, bool) or not isinstance(self.iters, int) or self.iters < 0:
            raise UsageError("iters must be a whole number of steps, 0 or more",
                             seen=f"it is {self.iters!r}", hint="type for example --iters 2")
        if self.step == 0 and self.eps > 0 and self.iters > 0:
            raise UsageError("step must be above 0 when eps and iters are", seen="it is 0",
                             hint="give a step such as 2, or --iters 0 to score the start alone")

    @property
    def on_grid(self) -> bool:
        """Whether eps and step are whole, so that 8-bit images stay 8-bit images."""
        return self.eps.is_integer() and self.step.is_integer()

    def shortfall(self) -> str | None:
        """Say why a walk from the clean image cannot reach the ball's surface, or None."""
        reach = self.step * self.iters
        if self.iters == 0 or reach >= self.eps:
            return None
        return (f"{self.iters} steps of {self.step:g}/255 walk {reach:g}/255 at most and never "
                f"reach eps = {self.eps:g}/255")

    def as_dict(self) -> dict[str, object]:
        """Return the fields as plain values for a run's specification."""
        return {"eps": self.eps, "step": self.step, "iters": self.iters}

    def __str__(self) -> str:
        return f"eps={self.eps:g} step={self.step:g} iters={self.iters}"


def parse_level(text: str, option: str) -> float:
    """Read a pixel distance such as ``8``, ``8.0`` or ``8/255`` and return it in units of 1/255.

    A value strictly between 0 and 1 must be written as a fraction of 255 (``0.5/255``), because
    ``0.031`` is nearly always 8/255 in the wrong unit.

    Args:
        text: the value as typed.
        option: the option it was typed for, named in the message.

    Raises UsageError for anything else, for negative values and for values above 255.
    """
    numerator, slash, denominator = text.strip().partition("/")
    if not _NUMBER.fullmatch(numerator) or (slash and denominator != str(LEVELS)):
        raise _not_a_level(text, option)
    level = float(numerator)
    if 0 < level < 1 and not slash:
        likely = max(1, round(level * LEVELS))
        raise UsageError(f"{option} must be in units of 1/255", seen=f"{text} was seen",
                         hint=f"type {likely} or {likely}/255 (or {text}/255 if that is meant)")
    return _level(level, option)


def _not_a_level(text: str, option: str) -> UsageError:
    return UsageError(f"{option} must be a number of 1/255 from 0 to {LEVELS}",
                      seen=f"{text!r} was seen", hint=f"type for example {option} 8 or 8/255")


def _level(level: float, name: str) -> float:
    if (isinstance(level, bool) or not isinstance(level, (int, float))
            or not math.isfinite(level) or not 0 <= level <= LEVELS):
        raise _not_a_level(str(level), name)
    return float(level)


# The two columns of Table 10 in the SAN paper (Zhao et al. 2020), in its order.
TABLE10 = (Budget(8, 4, 2), Budget(8, 2, 4))
