"""Names of architectures and of models, with one canonical spelling for each; no torch.

A name is ``ARCH``, ``ARCH(option=value,...)`` or either followed by ``.TAG``, the tag of its
weights: ``san10-pair(relation=hadamard,footprint=5).untrained-small``. Within the parentheses
order, spaces and case are free. The canonical spelling has a fixed order, no spaces and no option
at its default; it is what records, tables, files and facts hold.

Options whose default differs between the forms for ImageNet and for small images (footprint, and
heads of SASA) are kept as typed, so that a name means the same wherever it is read. ``width`` is
always that of the form for ImageNet, 64 by default, of which the other form has an eighth: half
the width is ``width=32`` in both.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from sanrobust.design import DEFAULTS, Attention
from sanrobust.errors import UnknownNameError, shown_value
from sanrobust.kernels import relations
from sanrobust.registry import closest, unknown_name

LISTING = "sanrobust zoo list"
SAN_DEPTHS = ("san10", "san15", "san19")
RESNETS = ("resnet26", "resnet38", "resnet50")
SASA_RESNETS = ("sasa26", "sasa38", "sasa50")
FAMILIES: Mapping[str, Attention] = {
    "pair": "pairwise", "patch": "patchwise", "scalar": "scalar", "sasa": "sasa"}
STAGES = 5
WIDTH = 64
"""Channels of the stem in the paper's networks; `width` scales all layers with it."""

_MOST_WIDTH = 8 * WIDTH
_NUMBER = re.compile(r"[+-]?[0-9]{1,99}(\.[0-9]{0,99})?")
_SIDES = ("3", "5", "7", "9", "11")
_POSITIONS = ("none", "absolute", "relative")
_SWITCH = ("yes", "no")


@dataclass(frozen=True)
class Option:
    """One option of an architecture.

    Attributes:
        name: what stands before the ``=``.
        values: legal values; of each item where the value is a list.
        default: the value that the canonical spelling leaves out; None where it depends on the
            form.
        items: how many values, joined by ``-``.
        unit: what numbers are multiples of; 0 for values to be listed one by one.
    """

    name: str
    values: tuple[str, ...]
    default: str | None = None
    items: int = 1
    unit: int = 0

    @property
    def legal(self) -> str:
        """The legal values in words."""
        if self.unit:
            return f"a multiple of {self.unit} from {self.values[0]} to {self.values[-1]}"
        listed = ", ".join(self.values)
        return listed if self.items == 1 else f"{self.items} of {listed}, joined by -"

    def read(self, text: str) -> str | None:
        """Return the canonical spelling of the value ``text``; None when it is illegal."""
        folded = {value.casefold(): value for value in self.values}
        items = text.split("-") if self.items > 1 else [text]
        found = [folded.get(item.strip().casefold()) for item in items]
        known = [item for item in found if item is not None]
        return "-".join(known) if len(known) == len(found) == self.items else None

    def nearest(self, text: str) -> str | None:
        """Return the legal value that an illegal ``text`` may have meant; None without a guess."""
        if not self.unit:
            return closest(text, self.values) if self.items == 1 else None
        if _NUMBER.fullmatch(text) is None:
            return None
        wanted = int(float(text))
        return min(self.values, key=lambda value: abs(int(value) - wanted))


@dataclass(frozen=True)
class ModelName:
    """A name in its parts.

    Attributes:
        network: one of ``NETWORKS``.
        options: names and values in canonical order, defaults left out.
        tag: of the weights; None for an architecture alone.
    """

    network: str
    options: tuple[tuple[str, str], ...] = ()
    tag: str | None = None

    @property
    def architecture(self) -> str:
        """Canonical spelling without the tag."""
        chosen = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.network}({chosen})" if chosen else self.network

    def value(self, option: str) -> str | None:
        """Return the value of ``option``: the one chosen, else its default."""
        defaults = {each.name: each.default for each in options(self.network)}
        return dict(self.options).get(option, defaults.get(option))

    def __str__(self) -> str:
        return self.architecture if self.tag is None else f"{self.architecture}.{self.tag}"


def parse(name: str) -> ModelName:
    """Return the parts of ``name`` as typed.

    Raises UnknownNameError with the closest match and the legal options or values.
    """
    head, opened, rest = name.strip().partition("(")
    if not opened:
        _require_parentheses(name, ")" not in head)
        network, dot, tag = head.partition(".")
        return ModelName(_network(network.strip()), (), tag if dot else None)
    inside, closed, after = (part.strip() for part in rest.rpartition(")"))
    network, misplaced, tag = head.strip().partition(".")
    _require_parentheses(name, bool(closed) and not set("()") & set(inside))
    if misplaced and network not in NETWORKS:
        network = _network(head.strip())  # refuses it, with what is close
    if misplaced or not (after == "" or after.startswith(".")):
        raise UnknownNameError("options must stand between architecture and tag",
                               seen=f"the name is {shown_value(name)}",
                               hint=f"type {network}({inside}).{tag or 'TAG'}")
    network = _network(network)
    return ModelName(network, _canonical_options(network, _typed_options(network, inside)),
                     after[1:] if after else None)


def canonical(name: str) -> str:
    """Return the one spelling of ``name``; raises UnknownNameError as `parse` does."""
    return str(parse(name))


def architecture(name: str) -> ModelName:
    """Return the parts of the name of an architecture.

    Raises UnknownNameError for one that cannot be, or that has a tag.
    """
    parsed = parse(name)
    if parsed.tag is not None:
        raise UnknownNameError("an architecture must be named without weights",
                               seen=f"{name} has the tag {shown_value(parsed.tag)}",
                               hint=f"type {quoted(parsed.architecture)}")
    return parsed


def quoted(name: str) -> str:
    """Return ``name`` as a shell wants it typed: parentheses need quotes."""
    return shlex.quote(name)


def options(network: str) -> tuple[Option, ...]:
    """Return the options of one of ``NETWORKS`` in canonical order."""
    return _OPTIONS[network]()


def _width(unit: int) -> Option:
    values = tuple(str(width) for width in range(unit, _MOST_WIDTH + 1, unit))
    return Option("width", values, str(WIDTH), unit=unit)


# A quarter of a stage's channels attends, in planes of eight.
_SAN_WIDTH = _width(32)


def _san_options(family: Attention) -> tuple[Option, ...]:
    places = (Option("footprint", _SIDES), Option("footprints", _SIDES, items=STAGES))
    if family == "scalar":
        return (*places, Option("position", ("none",), "none"),
                Option("heads", ("1", "2", "4"), str(DEFAULTS[family].heads)), _SAN_WIDTH)
    if family == "sasa":
        return (*places, Option("position", _POSITIONS, DEFAULTS[family].position),
                Option("heads", ("1", "2", "4", "8")), Option("content", _SWITCH, "yes"),
                _SAN_WIDTH)
    return _vector_options(family, places)


def _vector_options(family: relations.Family, places: tuple[Option, ...]) -> tuple[Option, ...]:
    default = DEFAULTS[family]
    position = Option("position", _POSITIONS, default.position)
    return (
        Option("relation", relations.names(family), default.relation),
        Option("mapping", ("L", "LRL", "LRLRL"), default.mapping),
        Option("transforms", ("3", "2", "1"), str(default.transforms)),
        *places,
        *([position] if family == "pairwise" else []),
        _SAN_WIDTH,
    )


_SASA_OPTIONS = (
    Option("stem", ("conv", "attention"), "conv"),
    Option("footprint", _SIDES),
    Option("position", _POSITIONS, DEFAULTS["sasa"].position),
    Option("heads", ("1", "2", "4", "8", "16", "32")),
    Option("content", _SWITCH, "yes"),
    Option("convolutions", ("0", "1", "2", "3"), "0"),
    _width(16),  # rows and columns of eight heads
)
_RESNET_OPTIONS = (Option("kernel", ("3", "5", "7"), "3"),
                   _width(8))  # the form for small images has an eighth
# Made when asked for, as relations can be registered at any time.
_OPTIONS: Mapping[str, Callable[[], tuple[Option, ...]]] = {
    **dict.fromkeys(RESNETS, lambda: _RESNET_OPTIONS),
    **{f"{depth}-{kind}": partial(_san_options, family)
       for kind, family in FAMILIES.items() for depth in SAN_DEPTHS},
    **dict.fromkeys(SASA_RESNETS, lambda: _SASA_OPTIONS),
}
NETWORKS = tuple(_OPTIONS)
"""Every network that can be named, each with options of its own."""


def _network(text: str) -> str:
    if text in NETWORKS:
        return text
    # Two swapped characters (san01) beat any one that is near by other measures (san19).
    swapped = [known for known in NETWORKS if sorted(known) == sorted(text)]
    match = closest(text, swapped or NETWORKS)
    raise unknown_name("architecture", text, [match] if match else NETWORKS,
                       listing=f"the list {', '.join(NETWORKS)}")


def _require_parentheses(name: str, balanced: bool) -> None:
    if not balanced:
        raise UnknownNameError("options must stand in one pair of parentheses",
                               seen=f"the name is {shown_value(name)}",
                               hint="type for example 'san10-pair(relation=hadamard,footprint=5)'")


def _typed_options(network: str, inside: str) -> dict[str, str]:
    """Read ``a=b,c=d``; each option is known to ``network``, each value legal."""
    typed: dict[str, str] = {}
    legal = {option.name: option for option in options(network)}
    for part in inside.split(",") if inside else []:
        key, equals, text = (each.strip() for each in part.partition("="))
        key = key.casefold()
        if not equals or not key:
            raise UnknownNameError(f"options of {network} must be written option=value",
                                   seen=f"one is {shown_value(part)}", hint=_own_options(legal))
        if key not in legal:
            raise _unknown_option(network, key, legal)
        if key in typed:
            raise UnknownNameError("an option must be given once", seen=f"{key} is given twice",
                                   hint=f"leave out {key}={typed[key]} or {key}={text}")
        value = legal[key].read(text)
        if value is None:
            raise _illegal_value(network, legal[key], text)
        typed[key] = value
    return typed


def _canonical_options(network: str, typed: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Order the options, leave out defaults and write a list of equal footprints as one."""
    if "footprint" in typed and "footprints" in typed:
        raise UnknownNameError("footprints must be given once",
                               seen=f"footprint={typed['footprint']} is all stages but the first, "
                                    "footprints is each",
                               hint="leave out one of the two")
    chosen = dict(typed)
    first, *later = chosen.get("footprints", "").split("-")
    if first == "3" and len(set(later)) == 1:
        del chosen["footprints"]
        chosen["footprint"] = later[0]
    if chosen.get("content") == "no" and chosen.get("position", "relative") != "relative":
        raise UnknownNameError("attention without content must have relative position",
                               seen=f"position is {chosen['position']}, so that nothing would "
                                    "be compared", hint="leave out content=no or position")
    return tuple((option.name, chosen[option.name]) for option in options(network)
                 if option.name in chosen and chosen[option.name] != option.default)


def _unknown_option(network: str, key: str, legal: Mapping[str, Option]) -> UnknownNameError:
    elsewhere = any(key == option.name for other in NETWORKS for option in options(other))
    match = None if elsewhere else closest(key, legal)
    seen = f"{key} means nothing to it" if elsewhere else f"there is none called {shown_value(key)}"
    suggestion = f"did you mean {match}? " if match else ""
    return UnknownNameError(f"options of {network} must be its own", seen=seen,
                            hint=f"{suggestion}{_own_options(legal)}")


def _own_options(legal: Mapping[str, Option]) -> str:
    return f"they are {', '.join(legal)}" if legal else "it has none"


def _illegal_value(network: str, option: Option, text: str) -> UnknownNameError:
    match = option.nearest(text)
    example = "-".join([option.values[0]] * option.items)
    one_of = "one of " if option.items == 1 and not option.unit else ""
    return UnknownNameError(
        f"{option.name} of {network} must be {one_of}{option.legal}",
        seen=f"it is {shown_value(text)}",
        hint=f"did you mean {match}?" if match
        else f"type for example '{network}({option.name}={example})'")
