"""An entry as plain values that travel with its weights, and back; no torch.

Facts come from files, so what they describe is held to what the zoo could have written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sanrobust.design import DEFAULTS, AttentionConfig
from sanrobust.errors import CheckpointError, UsageError
from sanrobust.files import UNFIT_FOR_TEXT
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo.entry import Entry, WeightsSource
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.families.catalog import families
from sanrobust.zoo.forms import mismatch

_MOST_BLOCKS = 1000
_MOST_CHANNELS = 1 << 16
_LARGEST_FOOTPRINT = 63
_LONGEST_NAME = 255  # of a class: what a file system takes for a folder


def facts(entry: Entry) -> dict[str, object]:
    """Return an entry as plain values for JSON, without its weights' whereabouts and its tag."""
    return {
        "arch": entry.arch,
        "architecture": {"kind": entry.architecture.kind, **asdict(entry.architecture)},
        "preprocessing": entry.preprocessing.as_dict(),
        "data": entry.data,
        **({} if entry.classes is None else {"classes": list(entry.classes)}),
        "num_classes": entry.architecture.num_classes,
        **{key: getattr(entry, key) for key in ("top1", "top5", "licence", "reference", "note")},
    }


def entry_from_facts(values: Mapping[str, Any], *, tag: str, weights: WeightsSource) -> Entry:
    """Rebuild an entry from what `facts` wrote.

    Facts written before architectures had options load too. Raises CheckpointError when the
    values cannot be an entry, or their network is not the one that their name means.
    """
    try:
        wanted = values["preprocessing"]
        preprocessing = Preprocessing(**{**wanted, "mean": tuple(wanted["mean"]),
                                         "std": tuple(wanted["std"])})
        arch, architecture = require_text(values["arch"]), _architecture(values["architecture"])
        contradiction = mismatch(arch, architecture)
        if contradiction is not None:
            raise ValueError(contradiction)
        return Entry(arch=arch, tag=tag, architecture=architecture, weights=weights,
                     preprocessing=preprocessing, data=require_text(values["data"]),
                     classes=_classes(values.get("classes"), architecture.num_classes),
                     top1=_percent(values.get("top1")), top5=_percent(values.get("top5")),
                     **{key: require_text(values.get(key, "")) for key in
                        ("licence", "reference", "note")})
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise CheckpointError("the facts stored with weights must describe a model of the zoo",
                              seen=f"they do not ({type(error).__name__}: {error})",
                              hint="add the weights again with --like and the model's name") \
            from error


def require_text(value: object) -> str:
    """Return ``value``; raises TypeError unless it is text."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _architecture(values: Mapping[str, Any]) -> Architecture:
    form: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                            for key, value in values.items()}
    kind = form.pop("kind")
    family = next((each for each in families() if each.name == kind), None)
    if family is None:
        raise ValueError(f"there is no kind of network called {kind!r}")
    if "design" in form:
        form["design"] = AttentionConfig(**form["design"])
    elif "attention" in form:  # written before networks had a design
        form["design"] = DEFAULTS[form.pop("attention")]
    architecture: Architecture = family.config(**form)
    _require_sane(architecture)
    return architecture


def _require_sane(architecture: Architecture) -> None:
    """A file may ask for a network that no machine can hold."""
    hash(architecture)  # lists in place of numbers raise TypeError
    sides = architecture.sizes.sides
    sizes = (*architecture.layers, *architecture.sizes.channels, architecture.num_classes)
    if not all(type(size) is int and 1 <= size <= _MOST_CHANNELS for size in sizes):
        raise ValueError(f"sizes must be whole numbers between 1 and {_MOST_CHANNELS}")
    if sum(architecture.layers) > _MOST_BLOCKS:
        raise ValueError(f"at most {_MOST_BLOCKS} blocks")
    if not all(type(side) is int and 1 <= side <= _LARGEST_FOOTPRINT for side in sides):
        raise ValueError(f"footprints must be whole numbers between 1 and {_LARGEST_FOOTPRINT}")
    for name, hint in get_type_hints(type(architecture)).items():
        value = getattr(architecture, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            raise ValueError(f"{value!r} is no {name}")


def _classes(values: object, count: int) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise TypeError("the names of the classes are no list")
    names = tuple(require_text(value) for value in values)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{count} classes must have as many different names")
    if not all(0 < len(name) <= _LONGEST_NAME for name in names) \
            or any(map(UNFIT_FOR_TEXT.search, names)):
        raise ValueError("the name of a class must be a short text without control characters")
    return names


def _percent(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise TypeError(f"{value!r} is not a percentage")
    return float(value)
