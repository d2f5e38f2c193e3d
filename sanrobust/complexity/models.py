"""Counting a model by its name; no weights are read and nothing is downloaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from sanrobust.complexity.counter import Cost, count
from sanrobust.complexity.settings import Convention
from sanrobust.errors import ModelError, SanrobustError, first_line
from sanrobust.kernels import reference
from sanrobust.kernels.backends import use_backend
from sanrobust.zoo import catalog
from sanrobust.zoo.build import build
from sanrobust.zoo.config import Shape
from sanrobust.zoo.external import build_external, is_external

_ARCHITECTURE_TAG = "untrained"


@dataclass(frozen=True)
class Counted:
    """A model's cost.

    Attributes:
        model: its name.
        img_size: side of the image, or its height and width, in pixels.
        cost: of that image.
    """

    model: str
    img_size: int | tuple[int, int]
    cost: Cost


def count_model(name: str, *, img_size: int | None = None,
                convention: Convention = "paper") -> Counted:
    """Count the model called ``name``.

    Args:
        name: as in every command: an entry, an architecture alone (its form for ImageNet), or a
            model from elsewhere.
        img_size: side of the image in pixels; None for the model's own.
        convention: what counts.

    Raises UnknownNameError for an unknown name and ModelError where the network cannot be run on
    such an image.
    """
    network, (channels, *own) = _network(name)
    height, width = own if img_size is None else (img_size, img_size)
    size = height if height == width else (height, width)
    try:
        return Counted(name, size, _counted(name, network, size, channels, convention))
    except SanrobustError:
        raise
    except Exception as error:
        if [height, width] == own and not is_external(name):
            raise
        resized = _resized(name, img_size, channels, convention)
        if resized is not None:
            return resized
        raise ModelError(f"{name} must take images of {height}x{width} pixels",
                         seen=f"it failed ({first_line(error)})",
                         hint="choose another size with --img-size" if [height, width] == own
                         else f"leave out --img-size: its own is {'x'.join(map(str, own))}"
                         ) from error


def _resized(name: str, img_size: int | None, channels: int,
             convention: Convention) -> Counted | None:
    """Count a network that its library builds anew for another size; None where it cannot."""
    if img_size is None or not is_external(name):
        return None
    try:
        network = build_external(name, meta=True, side=img_size)[0]
        return Counted(name, img_size,
                       count(network, img_size=img_size, channels=channels, convention=convention))
    except Exception:  # builders and networks of elsewhere fail in their own ways
        return None


def _network(name: str) -> tuple[nn.Module, Shape]:
    if is_external(name):
        return build_external(name, meta=True)
    entry = catalog.find(name, tag=_ARCHITECTURE_TAG)
    side = entry.preprocessing.img_size
    with torch.device("meta"):
        return build(entry.architecture), (3, side, side)


def _counted(name: str, network: nn.Module, size: int | tuple[int, int], channels: int,
             convention: Convention) -> Cost:
    """Count shapes alone, or for real where a network from elsewhere computes with values."""
    def counted(counting: nn.Module) -> Cost:
        return count(counting, img_size=size, channels=channels, convention=convention)

    try:
        with use_backend(reference.NAME):
            return counted(_without_values(network))
    except Exception:  # a network of elsewhere, or its copy, fails in its own way
        if not is_external(name):
            raise
    return counted(build_external(name)[0] if _is_meta(network) else network)


def _without_values(network: nn.Module) -> nn.Module:
    return network if _is_meta(network) else copy.deepcopy(network).to("meta")


def _is_meta(network: nn.Module) -> bool:
    return all(parameter.is_meta for parameter in network.parameters())
