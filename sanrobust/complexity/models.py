"""Counting a model by its name; no weights are read and nothing is downloaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from sanrobust.complexity.counter import Cost, count
from sanrobust.complexity.settings import Convention
from sanrobust.errors import ModelError, SanrobustError
from sanrobust.kernels import reference
from sanrobust.kernels.backends import use_backend
from sanrobust.zoo import catalog
from sanrobust.zoo.build import build
from sanrobust.zoo.external import build_external, is_external

_ARCHITECTURE_TAG = "untrained"
# What a network raises that is given an image of a size, or a device, it was not made for.
_REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)


@dataclass(frozen=True)
class Counted:
    """A model's cost.

    Attributes:
        model: its name.
        img_size: side of the image in pixels.
        cost: of that image.
    """

    model: str
    img_size: int
    cost: Cost


def count_model(name: str, *, img_size: int | None = None,
                convention: Convention = "paper") -> Counted:
    """Count the model called ``name``.

    Args:
        name: as in every command: an entry, an architecture alone (its form for ImageNet), or a
            model from elsewhere.
        img_size: side of the image in pixels; None for the model's own.
        convention: what counts.

    Raises UnknownNameError for an unknown name, UsageError for an image too small and ModelError
    where the network cannot be run on such an image.
    """
    network, own_size = _network(name)
    side = own_size if img_size is None else img_size
    try:
        return Counted(name, side, _counted(network, side, convention))
    except SanrobustError:
        raise
    except _REFUSALS as error:
        if side == own_size and not is_external(name):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{name} must take images of {side}x{side} pixels",
                         seen=f"it failed ({first})",
                         hint="choose another size with --img-size") from error


def _network(name: str) -> tuple[nn.Module, int]:
    if is_external(name):
        network, preprocessing = build_external(name)
        return network, preprocessing.img_size
    entry = catalog.find(name, tag=_ARCHITECTURE_TAG)
    with torch.device("meta"):
        return build(entry.architecture), entry.preprocessing.img_size


def _counted(network: nn.Module, side: int, convention: Convention) -> Cost:
    """Count shapes alone, or for real where a network from elsewhere computes with values."""
    ours = all(parameter.is_meta for parameter in network.parameters())
    shapes = network if ours else copy.deepcopy(network).to("meta")
    try:
        with use_backend(reference.NAME):
            return count(shapes, img_size=side, convention=convention)
    except _REFUSALS:
        if ours:
            raise
    return count(network, img_size=side, convention=convention)
