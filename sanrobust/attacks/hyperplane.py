"""The shortest way to a hyperplane that stays within the pixel range.

Letters: B images, N entries of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanrobust.attacks.norms import row_sum


def way_to(pixels: Tensor, normal: Tensor, offset: Tensor, *, euclidean: bool) -> Tensor:
    """Return the shortest change that brings each point to its hyperplane, (B, N).

    Every entry runs against its part of the normal, at speed 1 (L-inf) or at the speed of that part
    (L2), until it meets 0 or 1; the plane is met where the sum of what all have won is the
    distance. Source of the problem: Croce & Hein (2020, arXiv 1907.02044), section 3.1.

    Args:
        pixels: (B, N) in [0, 1].
        normal: (B, N).
        offset: (B,), value of ``normal . pixels`` minus that of the plane.
        euclidean: whether the L2 length is to be short, not the L-inf one.

    Where the pixel range does not reach the plane, the change leads as near as it allows.
    """
    normal = normal * torch.where(offset >= 0, 1.0, -1.0).unsqueeze(1)
    weight = normal.abs()
    # Up to 0 or up to 1; the ones and zeros are numbers, as choices take several times as long.
    room = (pixels - normal.clone().le_(0)).abs_()
    if euclidean:
        # An entry of weight 0 has no moment: it wins nothing, whether it runs or not.
        time = _time(offset.abs(), weight.square(), weight * room, room / weight)
        walked = torch.where(weight > 0, torch.minimum(time * weight, room), 0)
    else:
        time = _time(offset.abs(), weight, weight * room, room)
        walked = torch.minimum(time, room)
    return normal.sign().neg_().mul_(walked)


def _time(distance: Tensor, gain: Tensor, most: Tensor, moment: Tensor) -> Tensor:
    """Return when the sum of all entries' wins is the distance, (B, 1); infinity where never.

    An entry wins ``gain`` (B, N) in a unit of time until its ``moment``, when it has won ``most``.
    The sum is concave in time, so that Newton's steps from the left never pass the solution; they
    end when no further entry has stopped, with each image at its own step.
    """
    aim, both = distance.unsqueeze(1), torch.cat([most, gain])
    time, stopped = torch.zeros_like(aim), moment.clone().le_(0)
    for _ in range(moment.shape[1] + 1):
        parts = torch.cat([stopped, 1 - stopped]).mul_(both)
        won, running = row_sum(parts).unsqueeze(1).chunk(2)
        later = torch.where(running > 0, (aim - won) / running, float("inf"))
        time = torch.where((running > 0) | (won < aim), torch.maximum(time, later), time)
        before, stopped = stopped, moment.clone().le_(time)
        if torch.equal(stopped, before):
            break
    return time
