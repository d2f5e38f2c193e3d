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

import shlex
from collections.abc import Mapping

from sanrobust.errors import UnknownNameError, shown_value
from sanrobust.registry import closest, unknown_name
from sanrobust.zoo.families.base import ModelName, Option
from sanrobust.zoo.families.catalog import networks

LISTING = "sanrobust zoo list"


def parse(name: str) -> ModelName:
    """Return the parts of ``name`` as typed.

    Raises UnknownNameError with the closest match and the legal options or values.
    """
    head, opened, rest = name.strip(" ").partition("(")
    if not opened:
        _require_parentheses(name, ")" not in head)
        network, dot, tag = head.partition(".")
        return _named(network.strip(" "), "", tag if dot else None)
    inside, closed, after = (part.strip(" ") for part in rest.rpartition(")"))
    network, misplaced, tag = head.strip(" ").partition(".")
    _require_parentheses(name, bool(closed) and not set("()") & set(inside))
    if misplaced and network not in networks():
        network = _network(head.strip(" "))  # refuses it, with what is close
    if misplaced or not (after == "" or after.startswith(".")):
        raise UnknownNameError("options must stand between architecture and tag",
                               seen=f"the name is {shown_value(name)}",
                               hint=f"type {network}({inside}).{tag or 'TAG'}")
    return _named(network, inside, after[1:] if after else None)


def _named(text: str, inside: str, tag: str | None) -> ModelName:
    network = _network(text)
    return ModelName(networks()[network], network,
                     _canonical_options(network, _typed_options(network, inside)), tag)


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
    """Return the options of a network in canonical order."""
    return networks()[network].options(network)


def _network(text: str) -> str:
    known = tuple(networks())
    if text in known:
        return text
    # Two swapped characters (san01) beat any one that is near by other measures (san19).
    swapped = [each for each in known if sorted(each) == sorted(text)]
    match = closest(text, swapped or known)
    raise unknown_name("architecture", text, [match] if match else known,
                       listing=f"the list {', '.join(known)}")


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
        key, equals, text = (each.strip(" ") for each in part.partition("="))
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
    """Order the options and leave out defaults."""
    chosen = networks()[network].settle(typed)
    return tuple((option.name, chosen[option.name]) for option in options(network)
                 if option.name in chosen and chosen[option.name] != option.default)


def _unknown_option(network: str, key: str, legal: Mapping[str, Option]) -> UnknownNameError:
    elsewhere = any(key == option.name for other in networks() for option in options(other))
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
