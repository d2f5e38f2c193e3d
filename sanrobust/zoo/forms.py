"""Every architecture as a configuration, for ImageNet and for small images; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace

from sanrobust.errors import ModelError, UnknownNameError
from sanrobust.zoo.families.base import Architecture, ModelName
from sanrobust.zoo.families.catalog import family_of
from sanrobust.zoo.names import architecture, options, parse

ARCHITECTURES: tuple[str, ...] = (
    "resnet26", "san10-pair", "san10-patch",
    "resnet38", "san15-pair", "san15-patch",
    "resnet50", "san19-pair", "san19-patch",
)
"""The nine networks of the paper's Tables 9 and 10, in their order."""


def imagenet_config(arch: str, num_classes: int = 1000) -> Architecture:
    """Return the configuration of ``arch`` as published for ImageNet (the paper's Table 1).

    Args:
        arch: name of an architecture, with or without options (`sanrobust.zoo.names`).
        num_classes: length of the logits.

    Raises UnknownNameError for any other name.
    """
    return _config(arch, num_classes, small=False)


def small_config(arch: str, num_classes: int = 10) -> Architecture:
    """Return ``arch`` for 32x32 images: the paper's depths, an eighth of its form's widths.

    The option ``width=w`` is that of the form for ImageNet: this one has w / 8. A ResNet starts
    with a 3x3 convolution of stride 1 and no pooling, and so does a SASA network without an
    attention stem, whose footprints are 5. SASA has four heads.

    Args:
        arch: as for `imagenet_config`.
        num_classes: length of the logits.

    Raises UnknownNameError for any other name, or one with footprints too large for such images.
    """
    return _config(arch, num_classes, small=True)


def _config(arch: str, num_classes: int, *, small: bool) -> Architecture:
    name = architecture(arch)
    config: Architecture = name.family.form(name, small=small)
    return replace(config, num_classes=num_classes)


def smallest_input(config: Architecture) -> int:
    """Return the shortest side in pixels that an image may have."""
    return family_of(config).smallest_input(config)


def require_side(height: int, width: int, side: int) -> None:
    """Raise ModelError when an image of ``height`` x ``width`` pixels has a side below ``side``."""
    if min(height, width) < side:
        raise ModelError(
            f"this network needs images of at least {side}x{side} pixels",
            seen=f"these are {height}x{width}",
            hint=f"use --img-size {side} or larger, or a model made for small images",
        )


def mismatch(arch: str, config: Architecture) -> str | None:
    """Return how ``config`` contradicts the name ``arch``, as a clause; None when it does not.

    What its options decide must be as in one of the architecture's forms; sizes that no option
    names are free, as weights from elsewhere may have any.
    """
    try:
        name = parse(arch)
    except UnknownNameError as error:
        return error.seen
    for form in _forms(name):
        if type(form) is type(config) and all(
                getattr(form, field) == getattr(config, field) for field in _decided(name, form)):
            return None
    return f"the network described is no {arch}"


def _forms(name: ModelName) -> Iterator[Architecture]:
    for small in (False, True):
        with suppress(UnknownNameError):  # options may be legal in the other form alone
            yield name.family.form(name, small=small)


def _decided(name: ModelName, form: Architecture) -> set[str]:
    """Return the fields of ``form`` that options of the network decide."""
    chosen = set(dict(name.options))
    free = {field: bool(chosen.intersection(by)) for field, by in name.family.free.items()}
    decided = {"design", *(option.name for option in options(name.network))}
    return {field.name for field in fields(form)
            if free.get(field.name, field.name in decided)}
