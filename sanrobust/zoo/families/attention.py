"""What families with self-attention share: options, and the operator that these name; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import lcm

from sanrobust.design import DEFAULTS, Attention, AttentionConfig
from sanrobust.errors import UnknownNameError
from sanrobust.zoo.families.base import ModelName, Option

SIDES = ("3", "5", "7", "9", "11")
POSITIONS = ("none", "absolute", "relative")
CONTENT = Option("content", ("yes", "no"), "yes")
SMALL_HEADS = 4


def settle_content(typed: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse attention that would compare nothing."""
    if typed.get("content") == "no" and typed.get("position", "relative") != "relative":
        raise UnknownNameError("attention without content must have relative position",
                               seen=f"position is {typed['position']}, so that nothing would "
                                    "be compared", hint="leave out content=no or position")
    return typed


def operator(name: ModelName, attention: Attention, *, small: bool) -> AttentionConfig:
    """Return the operator that the options name; a small SASA has four heads by default."""
    default = DEFAULTS[attention]
    if small and attention == "sasa":
        default = replace(default, heads=SMALL_HEADS)
    chosen: dict[str, object] = {}
    for option, value in name.options:
        if hasattr(default, option):
            chosen[option] = (value == "yes" if option == "content"
                              else int(value) if value.isdecimal() else value)
    return replace(default, **chosen)  # type: ignore[arg-type]


def require_heads(name: ModelName, design: AttentionConfig,
                  channels: Callable[[int], int]) -> None:
    """Each head must have channels, and as many for row as for column offsets.

    ``channels`` tells of a width how many are compared where they are fewest.
    """
    if design.attention not in ("scalar", "sasa"):
        return
    width = name.number("width")
    own, needed = channels(width), _shared_by(design.heads, design)
    if own % needed == 0:
        return
    legal = {option.name: option.values for option in name.family.options(name.network)}
    heads = [each for each in legal["heads"] if own % _shared_by(int(each), design) == 0]
    widths = sorted((int(each) for each in legal["width"] if channels(int(each)) % needed == 0),
                    key=lambda each: abs(each - width))
    ways = [f"width={each}" for each in widths[:1]]
    if heads:
        ways += [f"heads={heads[0]}" if len(heads) == 1 else f"heads one of {', '.join(heads)}"]
    raise UnknownNameError(
        f"channels that {name.network} compares must be a multiple of {needed} for "
        f"{design.heads} heads with position {design.position}",
        seen=f"{name.architecture} has {own} in this form", hint=f"use {' or '.join(ways)}")


def _shared_by(heads: int, design: AttentionConfig) -> int:
    """Return what must divide the channels that ``heads`` compare at the design's position."""
    if design.position == "absolute":
        return lcm(heads, 4)  # sines and cosines of rows and of columns
    return heads * (2 if design.position == "relative" else 1)
