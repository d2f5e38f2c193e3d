"""Kinds of options that take numbers, each written as a plain decimal number."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import click

from sanrobust.errors import UsageError, shown_value

LARGEST = 2**31 - 1
"""Largest whole number of an option that names no other; it fits every count of C libraries."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}\.?|[0-9]{0,40}\.[0-9]{1,40})(e[+-]?[0-9]{1,3})?",
                     re.IGNORECASE)


class Whole(click.IntRange):
    """A whole number from ``min`` to ``max``, in the digits 0 to 9.

    Raises UsageError for anything else.
    """

    def __init__(self, min: int = 0, max: int = LARGEST, example: int | None = None) -> None:
        super().__init__(min, max)
        self._least, self._most = min, max
        self._example = min if example is None else example

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> int:
        """Parse the text of the option."""
        number = int(value) if _WHOLE.fullmatch(str(value)) else None
        if number is None or not self._least <= number <= self._most:
            refuse(param, f"a whole number from {self._least} to {self._most}", value,
                   str(self._example))
        return number

    def _describe_range(self) -> str:
        if self._most == LARGEST:
            return f"x>={self._least}"
        return super()._describe_range()


class Number(click.FloatRange):
    """A finite number from ``min`` to ``max``, written like 0.5 or 1e-3.

    Raises UsageError for anything else.
    """

    def __init__(self, min: float, max: float, example: str, *, min_open: bool = False) -> None:
        super().__init__(min, max, min_open=min_open)
        above = "above" if min_open else "from"
        self._rule = f"a number {above} {min:g} {'and at most' if min_open else 'to'} {max:g}"
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> float:
        """Parse the text of the option."""
        number = as_number(str(value))
        assert self.min is not None and self.max is not None
        if number is None or not self.min <= number <= self.max \
                or (self.min_open and number == self.min):
            refuse(param, self._rule, value, self._example)
        return number


class Triple(click.ParamType[tuple[float, float, float]]):
    """Three numbers, separated by commas or spaces: one per colour channel."""

    name = "r,g,b"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> tuple[float, float, float]:
        """Parse the text of the option."""
        numbers = [as_number(part) for part in str(value).replace(",", " ").split()]
        match [number for number in numbers if number is not None]:
            case [red, green, blue] if len(numbers) == 3:
                return red, green, blue
        refuse(param, "three numbers", value, "0.5,0.5,0.5")


class Position(click.ParamType[tuple[int, int]]):
    """A pixel: row and column, separated by a comma."""

    name = "y,x"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> tuple[int, int]:
        """Parse the text of the option."""
        parts = [part.strip() for part in str(value).split(",")]
        if len(parts) != 2 or not all(map(_WHOLE.fullmatch, parts)):
            refuse(param, "a row and a column", value, "112,80")
        return int(parts[0]), int(parts[1])


class BatchSize(click.ParamType[int | str]):
    """A number of images, or ``auto``."""

    name = "images|auto"

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> int | str:
        """Parse the text of the option."""
        if value == "auto":
            return "auto"
        if not _WHOLE.fullmatch(str(value)) or not 1 <= int(value) <= LARGEST:
            refuse(param, f"auto or a whole number from 1 to {LARGEST}", value, "64")
        return int(value)


def as_number(text: str) -> float | None:
    """Return the value of a decimal number; None for other text and for what no float holds."""
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if abs(number) != float("inf") else None


def refuse(param: click.Parameter | None, rule: str, value: object, example: str) -> NoReturn:
    """Say what an option must be, what it is and what can be typed; raises UsageError."""
    option = "the value" if param is None else max(param.opts, key=len)
    raise UsageError(f"{option} must be {rule}", seen=f"it is {shown_value(value)}",
                     hint=f"type for example {option} {example}")
