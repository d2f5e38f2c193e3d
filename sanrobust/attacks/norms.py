"""Norms of a perturbation: how long it is, which step is steepest, and where its ball ends.

Every sum over an image is made of additions of halves, element by element, so that no number of an
image depends on what else is in its batch, on any device and with any number of threads.

Letters: B images, N entries of an image. Radii and lengths are in the pixel range [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from sanrobust.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    Projection = Callable[[Tensor], Tensor]

TINY = 1e-12


class Norm(Protocol):
    """A norm and the geometry that goes with it.

    Attributes:
        name: what ``--norm`` takes.
        levels: whether radii are given in units of 1/255, not in the pixel range.
        words: what its ball is called.
    """

    name: str
    levels: bool
    words: str

    def size(self, change: Tensor) -> Tensor:
        """Return the length of each change (B, ...), (B,)."""
        ...

    def dual(self, gradient: Tensor) -> Tensor:
        """Return the length of each gradient (B, ...) in the dual norm, (B,)."""
        ...

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the step of length 1 that climbs steepest, of the gradient's shape."""
        ...

    def projection(self, images: Tensor, radius: float) -> Projection:
        """Return what moves pixels, in place, to the nearest points of the ball around ``images``
        that are in [0, 1].
        """
        ...


class Linf:
    """The largest change of an entry."""

    name, levels, words = "linf", True, "the L-inf ball"

    def size(self, change: Tensor) -> Tensor:
        """Return the largest absolute entry of each change, (B,)."""
        return change.flatten(1).abs().amax(1)

    def dual(self, gradient: Tensor) -> Tensor:
        """Return the sum of absolute entries of each gradient, (B,)."""
        return row_sum(gradient.flatten(1).abs())

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient's sign."""
        return gradient.sign()

    def projection(self, images: Tensor, radius: float) -> Projection:
        """Clip every entry."""
        low, high = (images - radius).clamp_(0, 1), (images + radius).clamp_(0, 1)
        return lambda pixels: pixels.clamp_(low, high)


class L2:
    """The Euclidean length of a change."""

    name, levels, words = "l2", False, "the L2 ball"

    def size(self, change: Tensor) -> Tensor:
        """Return the Euclidean length of each change, (B,)."""
        return row_sum(change.flatten(1).square()).sqrt()

    dual = size

    def direction(self, gradient: Tensor) -> Tensor:
        """Return the gradient divided by its length; zero where it has none."""
        return gradient / column(self.size(gradient).clamp_min(TINY), gradient)

    def projection(self, images: Tensor, radius: float) -> Projection:
        """Shorten what is longer than the radius, then clip, which shortens it further."""
        def project(pixels: Tensor) -> Tensor:
            change = pixels.sub_(images)
            share = (radius / self.size(change).clamp_min(TINY)).clamp_max(1)
            return change.mul_(column(share, change)).add_(images).clamp_(0, 1)

        return project


NORMS: Registry[Norm] = Registry("norm", listing="sanrobust pgd --help")
NORMS.add(Linf.name, Linf())
NORMS.add(L2.name, L2())


def row_sum(rows: Tensor) -> Tensor:
    """Return the sums of (B, N), (B,), the same whatever B is: halves are added to halves."""
    width = rows.shape[1]
    while width > 1:
        half = width // 2
        summed = rows[:, :half] + rows[:, half:2 * half]
        if width % 2:  # the odd entry joins the first
            summed[:, 0] += rows[:, width - 1]
        rows, width = summed, half
    return rows.squeeze(1)


def column(values: Tensor, like: Tensor) -> Tensor:
    """Return values (B,) in a form that multiplies images (B, ...) one by one."""
    return values.view(-1, *[1] * (like.ndim - 1))
