"""Numbers that are none, or are far from any that can be meant, for every option that takes one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import click

from hostile.case import Case

# No option can mean one of these.
TEXTS = (
    "", " ", "-", "--", "+", ".", "e5", "0x10", "1_000", "\u0661\u0662", "\uff11", "1e", "1..2",
    "one", "None", "\x1b[2J1", "1\n2", "\udce9", "1;2", "[1]", "1" + "a" * 5000, "nan", "-nan",
    "inf", "-inf", "infinity", "1e400", "-1e400", "1e99999999999", "9" * 4400, "-" + "9" * 4400,
    "9" * 300, "0." + "9" * 5000 + "x", str(-2**63 - 1), str(2**63), "1e-400x", "1/0", "8/255/255",
)
# Options that are texts to click and numbers to us.
_NUMBERS_TOO = ("eps", "step", "device")
_OWN_KINDS = ("Whole", "Number", "Triple", "Position", "BatchSize")


def numbers(folder: Path, seed: int) -> Iterator[Case]:
    """Yield each option of each command with each of the texts, in an order of the seed."""
    from sanrobust.cli import main
    tried = [(words, option, text) for words, option in _options(main, ()) for text in TEXTS]
    random.Random(seed).shuffle(tried)
    for words, option, text in tried:
        given = {"--eps": "8", "--step": "2", "--iters": "2"} if words == ("pgd",) else {}
        given[option] = text
        yield Case(f"{' '.join(words)} {option} {text[:20]!r}",
                   (*words, *(f"{name}={value}" for name, value in given.items())), folder)


def _options(group: click.Group, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _options(command, (*words, name))
        for param in command.params:
            if isinstance(param, click.Option) and _takes_number(param):
                yield (*words, name), max(param.opts, key=len)


def _takes_number(param: click.Option) -> bool:
    return param.name in _NUMBERS_TOO or type(param.type).__name__ in _OWN_KINDS
