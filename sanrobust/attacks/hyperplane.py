"""The shortest way to a hyperplane that stays within the pixel range.

Letters: B images, N entries of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def way_to(pixels: Tensor, normal: Tensor, offset: Tensor, *, euclidean: bool) -> Tensor:
    """Return the shortest change that brings each point to its hyperplane, (B, N).

    Every entry runs against its part of the normal, at speed 1 (L-inf) or at the speed of that part
    (L2), until it meets 0 or 1; the plane is met where the sum of what all have won is the
    distance. That sum grows piecewise linearly, so that sorting the entries by when they stop
    gives the moment. Source of the problem: Croce & Hein (2020, arXiv 1907.02044), section 3.1.

    Args:
        pixels: (B, N) in [0, 1].
        normal: (B, N).
        offset: (B,), value of ``normal . pixels`` minus that of the plane.
        euclidean: whether the L2 length is to be short, not the L-inf one.

    Where the pixel range does not reach the plane, the change leads as near as it allows.
    """
    normal = torch.where(offset.unsqueeze(1) >= 0, normal, -normal)
    distance = offset.abs().double()
    weight = normal.abs()
    room = torch.where(normal > 0, pixels, 1 - pixels)
    speed = weight if euclidean else torch.ones_like(weight)
    moment = torch.where(weight > 0, room / speed, float("inf"))
    moments, order = moment.sort(dim=1, stable=True)
    gain = (weight * speed).gather(1, order).double()
    most = (weight * room).gather(1, order).double()
    # Won by those that have stopped before each moment, and speed of those that still run then.
    stopped = torch.cumsum(most, 1) - most
    running = _rest(gain)
    won = stopped + torch.where(gain > 0, moments.double(), 0) * running
    met = (won < distance.unsqueeze(1)).sum(1, keepdim=True)
    reached = met < moments.shape[1]
    met = met.clamp_max(moments.shape[1] - 1)
    time = ((distance.unsqueeze(1) - stopped.gather(1, met))
            / running.gather(1, met).clamp_min(1e-300)).clamp_min(0)
    time = torch.where(reached, time, float("inf")).to(pixels.dtype)
    walked = torch.where(weight > 0, torch.minimum(time * speed, room), 0)
    return -normal.sign() * walked


def _rest(values: Tensor) -> Tensor:
    """Return the sum of each entry and all behind it, (B, N)."""
    return torch.cumsum(values.flip(1), 1).flip(1)
