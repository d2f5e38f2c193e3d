"""How far an attack may go: L-inf budgets in units of 1/255, the step between two 8-bit values."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real

from sanrobust.errors import UsageError, shown_value

LEVELS = 255
_LARGEST_USUAL = 64  # in 1/255; of a larger part of the pixel range no attack is made
FIELDS = ("eps", "step", "iters")
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
        iters = whole_number(self.iters, "iters", least=0, example="--iters 2")
        object.__setattr__(self, "iters", iters)
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


def as_budget(value: object) -> Budget:
    """Return a budget given as a `Budget`, as (eps, step, iters) or as a mapping of these names.

    Levels are numbers of 1/255 or texts as `parse_level` reads them. As there, a level strictly
    between 0 and 1 is refused, since ``8/255`` is 0.031 in Python; ``Budget(0.5, 0.5, 1)`` says
    that it is meant.

    Raises UsageError for anything else.
    """
    if isinstance(value, Budget):
        return value
    if isinstance(value, Mapping):
        fields = [value[name] for name in FIELDS if name in value]
        known = len(value) == len(FIELDS)
    else:
        known = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
        fields = list(value) if known else []  # type: ignore[call-overload]
    if not known or len(fields) != len(FIELDS):
        raise UsageError("a budget must be (eps, step, iters), a mapping of them or a Budget",
                         seen=f"it is {shown_value(value)}",
                         hint="give for example budgets=[(8, 2, 4)]")
    eps, step, iters = fields
    return Budget(eps=_given_level(eps, "eps"), step=_given_level(step, "step"), iters=iters)


def whole_number(value: object, name: str, *, least: int, example: str) -> int:
    """Return a whole number, of numpy too, as an int; raises UsageError for anything else.

    Args:
        value: what was given.
        name: what it is, for the message.
        least: the smallest legal value.
        example: what can be typed instead.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number, {least} or more",
                         seen=f"it is {shown_value(value)}", hint=f"type for example {example}")
    return number


def as_budgets(values: object) -> tuple[Budget, ...]:
    """Return the budgets of a sequence, each in a form that `as_budget` takes; one may stand alone.

    Raises UsageError for anything else.
    """
    if isinstance(values, (Budget, Mapping)):
        return (as_budget(values),)
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise UsageError("budgets must be a sequence of budgets", seen=f"it is {values!r}",
                         hint="give for example budgets=[(8, 2, 4)]")
    return tuple(as_budget(value) for value in values)


def typed_budgets(eps: str | None, step: str | None, iters: int | None
                  ) -> tuple[Budget, ...] | None:
    """Return the one budget that was typed, or None, which leaves the choice to the attack.

    Raises UsageError for a part of a budget, and as `parse_level` does.
    """
    typed = dict(zip(FIELDS, (eps, step, iters)))
    missing = [f"--{name}" for name, value in typed.items() if value is None]
    if len(missing) == len(FIELDS):
        return None
    if eps is None or step is None or iters is None:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError("--eps, --step and --iters must come together",
                         seen=f"{' and '.join(missing)} {verb} missing",
                         hint="type for example --eps 8 --step 2 --iters 4")
    return (Budget(eps=parse_level(eps, "--eps"), step=parse_level(step, "--step"), iters=iters),)


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
        likely = _likely(level)
        hint = (f"type {likely} or {likely}/255 (or {text}/255 if that is meant)"
                if likely <= _LARGEST_USUAL else
                f"type {text}/255 (or {likely}/255 if the pixel range was the unit)")
        raise UsageError(f"{option} must be in units of 1/255", seen=f"{text} was seen", hint=hint)
    return _level(level, option)


def _given_level(value: object, name: str) -> float:
    if isinstance(value, str):
        return parse_level(value, name)
    level = _level(value, name)
    if 0 < level < 1:
        raise UsageError(f"{name} must be in units of 1/255", seen=f"{level:g} was seen",
                         hint=f"give {_likely(level)}, or Budget(...) if {level:g}/255 is meant")
    return level


def _likely(level: float) -> int:
    """Return the whole level that a value of the pixel range is nearly always meant to be."""
    return max(1, round(level * LEVELS))


def _not_a_level(text: object, option: str) -> UsageError:
    return UsageError(f"{option} must be a number of 1/255 from 0 to {LEVELS}",
                      seen=f"{shown_value(text)} was seen",
                      hint=f"type for example {option} 8 or 8/255")


def _level(level: object, name: str) -> float:
    try:
        number = float(level) if isinstance(level, Real) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(level, bool) or not 0 <= number <= LEVELS:
        raise _not_a_level(level, name)
    return number


# The two columns of Table 10 in the SAN paper (Zhao et al. 2020), in its order.
TABLE10 = (Budget(8, 4, 2), Budget(8, 2, 4))
