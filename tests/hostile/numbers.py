"""Numbers that are none, or are far from any that can be meant, for every option that takes one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import click

from hostile.case import Case

NOT_NUMBERS = ("", " ", "-", "--", "+", ".", "e5", "0x10", "1_000", "\u0661\u0662", "\uff11", "1e", "1..2",
               "one", "None", "\x1b[2J1", "1\n2", "\udce9", "1;2", "[1]", "1" + "a" * 5000)
# Of these only some options can make sense, which must then refuse them by themselves.
NEVER_MEANT = ("nan", "-nan", "inf", "-inf", "1e400", "-1e400", "9" * 4400, "-" + "9" * 4400,
               "9" * 300, "0." + "9" * 5000 + "x", str(-2 ** 63 - 1), "1e-400x")
_TEXTS = {"batch_size", "eps", "step", "device"}


def commands() -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    """Yield every option that takes a number, and the words of its command."""
    from sanrobust.cli import main
    yield from _below(main, ())


def _below(group: click.Group, words: tuple[str, ...]
           ) -> Iterator[tuple[tuple[str, ...], click.Parameter]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _below(command, (*words, name))
        else:
            for param in command.params:
                if isinstance(param, click.Option) and _takes_number(param):
                    yield (*words, name), param


def _takes_number(param: click.Option) -> bool:
    kind = type(param.type).__name__
    return kind in ("Whole", "Number", "Triple", "Position", "BatchSize") or isinstance(
        param.type, (click.types.IntParamType, click.types.FloatParamType)) \
        or param.name in _TEXTS


def numbers(folder: Path, seed: int) -> Iterator[Case]:
    """Yield each option of each command with each of the texts, in an order of the seed."""
    tried = [(words, param, text) for words, param in commands()
             for text in (*NOT_NUMBERS, *NEVER_MEANT)]
    random.Random(seed).shuffle(tried)
    for words, param, text in tried:
        given = {"--eps": "8", "--step": "2", "--iters": "2"} if words == ("pgd",) else {}
        given[param.opts[-1]] = text
        yield Case(f"{' '.join(words)} {param.opts[-1]} {text[:20]!r}",
                   (*words, *(f"{name}={value}" for name, value in given.items())), folder)
