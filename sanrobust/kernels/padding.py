"""Margins of maps, and their gradients, whose sums have one order on any device.

On a GPU torch adds up the gradient of its reflecting padding in any order, so that two runs of one
training would differ; there the margin is made of flipped strips. Maps are (..., H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reflected(maps: Tensor, margin: int) -> Tensor:
    """Return maps continued by reflection by ``margin`` pixels, fewer than either side has."""
    if not maps.is_cuda:
        return F.pad(maps, (margin,) * 4, mode="reflect")
    return strips(strips(maps, margin, -1), margin, -2)


def reflected_adjoint(padded: Tensor, margin: int) -> Tensor:
    """Return the gradient of the maps for that of ``reflected`` maps, (B, C, H, W)."""
    if padded.is_cuda:
        return strips_adjoint(strips_adjoint(padded, margin, -2), margin, -1)
    height, width = (side - 2 * margin for side in padded.shape[-2:])
    maps = padded.new_empty(*padded.shape[:2], height, width)
    found: Tensor = torch.ops.aten.reflection_pad2d_backward(padded, maps, [margin] * 4)
    return found


def strips(maps: Tensor, margin: int, axis: int) -> Tensor:
    """Continue maps along one axis by what is next to its ends, flipped."""
    before = maps.narrow(axis, 1, margin).flip(axis)
    after = maps.narrow(axis, maps.shape[axis] - 1 - margin, margin).flip(axis)
    return torch.cat((before, maps, after), axis)


def strips_adjoint(padded: Tensor, margin: int, axis: int) -> Tensor:
    """Add the margins along one axis to what they repeat."""
    side = padded.shape[axis] - 2 * margin
    maps = padded.narrow(axis, margin, side).clone()
    maps.narrow(axis, 1, margin).add_(padded.narrow(axis, 0, margin).flip(axis))
    after = padded.narrow(axis, margin + side, margin).flip(axis)
    maps.narrow(axis, side - 1 - margin, margin).add_(after)
    return maps
