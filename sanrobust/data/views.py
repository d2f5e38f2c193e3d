"""The rotations and the flip as exact maps of square tensors: pixels move, none is computed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sanrobust.registry import Registry

_MAPS: Registry[Callable[[Tensor], Tensor]] = Registry("view", listing="the views of Table 9")
_MAPS.add("none", lambda images: images)
_MAPS.add("cw90", lambda images: torch.rot90(images, -1, (-2, -1)))
_MAPS.add("cw180", lambda images: torch.rot90(images, 2, (-2, -1)))
_MAPS.add("cw270", lambda images: torch.rot90(images, 1, (-2, -1)))
_MAPS.add("updown", lambda images: images.flip(-2))

VIEWS = _MAPS.names()


def view(name: str, images: Tensor) -> Tensor:
    """Return the named view of a batch (Zhao et al. 2020, Table 9).

    ``images`` is (B, 3, S, S) of any dtype, and so is the result. ``cw`` turns clockwise by that
    many degrees; ``updown`` reverses the rows, which is not the turn by 180 degrees. ``none``
    returns the tensor itself. Raises UnknownNameError for a name that is not in VIEWS.
    """
    return _MAPS.get(name)(images)
