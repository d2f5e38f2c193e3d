"""What can be typed: kinds of options, and the fields of frozen dataclasses that options fill.

A setting that `setting` makes is at once a field of its dataclass, a keyword of a Python function,
and one or several options of a command; `take_settings` turns what was typed into the keywords.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import click

from sanrobust.errors import UsageError, shown_value

LARGEST = 2**31 - 1
"""Largest whole number of an option that names no other; it fits every count of C libraries."""
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}\.?|[0-9]{0,40}\.[0-9]{1,40})(e[+-]?[0-9]{1,3})?",
                     re.IGNORECASE)
_OPTIONS, _READ, _DOC = "sanrobust.options", "sanrobust.read", "sanrobust.doc"


@dataclasses.dataclass(frozen=True)
class Option:
    """How a value is typed: flags and other attributes as `click.option` takes them."""

    flags: tuple[str, ...]
    attributes: Mapping[str, Any]

    def built(self, default: Any) -> click.Option:
        """Return it as click's, with this default unless it has one of its own."""
        return click.Option(self.flags, **{"default": default, **self.attributes})


def option(*flags: str, **attributes: Any) -> Option:
    """Describe an option as `click.option` does; the default is that of its setting."""
    return Option(flags, attributes)


def setting(default: Any, *options: Option, read: Callable[..., Any] | None = None,
            doc: str = "") -> Any:
    """Make a field of a dataclass that is typed as one or several options.

    Args:
        default: value of the field where nothing is typed.
        options: how it is typed; several have None where they are not typed, and go to ``read``
            together.
        read: turns what was typed into the field's value; None takes it as it is.
        doc: what the field is, for readers of Python; empty where the option's help says it.
    """
    help_text = str(options[0].attributes.get("help", "")) if options else ""
    return dataclasses.field(default=default, metadata={
        _OPTIONS: options, _READ: read, _DOC: doc or help_text})


def settings_options(kind: type) -> Iterator[click.Option]:
    """Yield the options that fill the fields of a dataclass, in their order."""
    for field in dataclasses.fields(kind):
        yield from _options(field)


def _options(field: dataclasses.Field[Any]) -> list[click.Option]:
    several: tuple[Option, ...] = field.metadata.get(_OPTIONS, ())
    return [each.built(field.default if len(several) == 1 else None) for each in several]


def settings_docs(kind: type) -> dict[str, str]:
    """Return what each field of a dataclass is, by its name."""
    return {field.name: str(field.metadata.get(_DOC, "")) for field in dataclasses.fields(kind)}


def take_settings(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Take the values of `settings_options` out of a command's parameters, as keywords of ``kind``.
    """
    keywords = {}
    for field in dataclasses.fields(kind):
        typed = [values.pop(str(each.name)) for each in _options(field)]
        read = field.metadata.get(_READ)
        if typed:
            keywords[field.name] = read(*typed) if read else typed[0]
    return keywords


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


def parse_pairs(pairs: tuple[str, ...], option: str) -> dict[str, str]:
    """Turn repeated ``key=value`` texts into a dict; raises UsageError for another form."""
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key or key in parsed:
            raise UsageError(f"{option} must be key=value, each key once",
                             seen=f"it is {shown_value(pair)}",
                             hint=f"type for example {option} eps=8/255")
        parsed[key] = value
    return parsed


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
