"""How far an attack may go.

L-inf radii are in units of 1/255, the step between two 8-bit values, and L2 radii in the pixel
range [0, 1].
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
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
        eps: radius of the ball in the unit of its norm, in [0, 255]; 0 changes nothing.
        step: length of one step in that unit, in [0, 255]; above 0 where a step can move; None for
            an attack that chooses its steps.
        iters: number of steps; 0 scores the start; None for an attack that takes none.

    Raises UsageError for any other value.
    """

    eps: float
    step: float | None = None
    iters: int | None = None

    def __post_init__(self) -> None:
        # 8 and 8.0 are one budget and must have one spelling in a run's specification.
        object.__setattr__(self, "eps", _level(self.eps, "eps"))
        if self.step is not None:
            object.__setattr__(self, "step", _level(self.step, "step"))
        if self.iters is not None:
            iters = whole_number(self.iters, "iters", least=0, example="--iters 2")
            object.__setattr__(self, "iters", iters)
        if self.step == 0 and self.iters is not None and self.eps > 0 and self.iters > 0:
            raise UsageError("step must be above 0 when eps and iters are", seen="it is 0",
                             hint="give a step such as 2, or --iters 0 to score the start alone")

    @property
    def on_grid(self) -> bool:
        """Whether eps and step are whole, so that 8-bit images stay 8-bit images."""
        return self.eps.is_integer() and (self.step or 0.).is_integer()

    def shortfall(self, unit: str = "/255") -> str | None:
        """Say why a walk from the clean image cannot reach the ball's surface, or None.

        Args:
            unit: what is put behind a length.
        """
        if not self.iters or self.step is None or self.step * self.iters >= self.eps:
            return None
        reach = self.step * self.iters
        return (f"{self.iters} steps of {self.step:g}{unit} walk {reach:g}{unit} at most and never "
                f"reach eps = {self.eps:g}{unit}")

    def as_dict(self) -> dict[str, object]:
        """Return the fields as plain values for a run's specification."""
        return {"eps": self.eps, "step": self.step, "iters": self.iters}

    def __str__(self) -> str:
        parts = {"eps": self.eps, "step": self.step, "iters": self.iters}
        return " ".join(f"{name}={value:g}" for name, value in parts.items() if value is not None)


def as_budget(value: object, *, levels: bool = True) -> Budget:
    """Return a budget given as a `Budget`, as (eps, step, iters) or as a mapping of these names.

    Levels are numbers of 1/255 or texts as `parse_level` reads them. As there, a level strictly
    between 0 and 1 is refused, since ``8/255`` is 0.031 in Python; ``Budget(0.5, 0.5, 1)`` says
    that it is meant.

    Args:
        value: what was given.
        levels: whether its lengths are in units of 1/255, not in the pixel range.

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
    return Budget(eps=_given(eps, "eps", levels=levels),
                  step=_given(step, "step", levels=levels), iters=iters)


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


def as_budgets(values: object, of_radius: Callable[[float], Budget] | None = None, *,
               levels: bool = True) -> tuple[Budget, ...]:
    """Return the budgets of a sequence, each in a form that `as_budget` takes; one may stand alone.

    Args:
        values: what was given.
        of_radius: completes a radius that is given alone; None where none may be.
        levels: whether lengths are in units of 1/255, not in the pixel range.

    Raises UsageError for anything else.
    """
    def one(value: object) -> Budget:
        if of_radius is not None and _is_radius(value):
            return of_radius(_given(value, "eps", levels=levels))
        return as_budget(value, levels=levels)

    if isinstance(values, (Budget, Mapping)) or of_radius is not None and _is_radius(values):
        return (one(values),)
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise UsageError("budgets must be a sequence of budgets", seen=f"it is {values!r}",
                         hint="give for example budgets=[(8, 2, 4)]")
    return tuple(map(one, values))


def _is_radius(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class BudgetParts:
    """Parts of budgets, until norm and attack are known; None for what was not given.

    Attributes:
        eps: a radius, several, or text with commas between them.
        step, iters: length of a step and number of steps, of each.
    """

    eps: object = None
    step: object = None
    iters: int | None = None

    def read(self, *, levels: bool) -> tuple[tuple[float, ...], float | None]:
        """Return the radii and the step.

        Args:
            levels: whether they are in units of 1/255, not in the pixel range.

        Raises UsageError as `parse_level` does.
        """
        several = self.eps.split(",") if isinstance(self.eps, str) else self.eps
        if several is None or not isinstance(several, Iterable):
            several = () if several is None else (several,)
        elif not (several := list(several)):
            raise UsageError("eps must be a radius, or several", seen="there is none",
                             hint="give for example eps=8, or leave it out")
        step = None if self.step is None else _given(self.step, "--step", levels=levels)
        return tuple(_given(each, "--eps", levels=levels) for each in several), step


def typed_budgets(eps: str | None, step: str | None, iters: int | None) -> BudgetParts | None:
    """Return what was typed of budgets; None, which leaves the choice to the attack, for nothing.
    """
    typed = BudgetParts(eps, step, iters)
    return None if typed == BudgetParts() else typed


def parse_length(text: str, option: str) -> float:
    """Read a length in the pixel range such as ``0.5`` or ``128/255``; raises UsageError."""
    numerator, slash, denominator = text.strip().partition("/")
    if not _NUMBER.fullmatch(numerator) or (slash and denominator != str(LEVELS)):
        raise _not_a_length(text, option)
    return _level(float(numerator) / (LEVELS if slash else 1), option, levels=False)


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


def _given(value: object, name: str, *, levels: bool) -> float:
    if isinstance(value, str):
        return (parse_level if levels else parse_length)(value, name)
    level = _level(value, name, levels=levels)
    if levels and 0 < level < 1:
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


def _not_a_length(text: object, option: str) -> UsageError:
    return UsageError(f"{option} must be a length in the pixel range, from 0 to {LEVELS}",
                      seen=f"{shown_value(text)} was seen",
                      hint=f"type for example {option} 0.5")


def _level(level: object, name: str, *, levels: bool = True) -> float:
    try:
        number = float(level) if isinstance(level, Real) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(level, bool) or not 0 <= number <= LEVELS:
        raise (_not_a_level if levels else _not_a_length)(level, name)
    return number


# The two columns of Table 10 in the SAN paper (Zhao et al. 2020), in its order.
TABLE10 = (Budget(8, 4, 2), Budget(8, 2, 4))
