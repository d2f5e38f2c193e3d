"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random squares, no gradient.

A query tries one square of new changes at a random place; it is kept where the margin falls. The
squares shrink by a fixed schedule. Each image draws its own places, signs and orientations.
Letters: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sanrobust.attacks.losses import margin
from sanrobust.attacks.norms import TINY, column, row_sum
from sanrobust.attacks.problem import Outcome, Problem
from sanrobust.attacks.randomness import Draws

SHARE = 0.8
"""Part of the image that the first squares cover (p)."""
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the part is halved (section 4.1 of the paper)."""
_SCHEDULED = 10_000
_GRID = 5
"""Squares on a side of the first change in L2."""


@dataclass(frozen=True)
class Square:
    """A random search.

    Attributes:
        queries: of an image after the first.
        rescaled: whether the squares shrink as over 10,000 queries, however many there are, which
            is the paper's schedule; AutoAttack's 5,000 take the first half of it.
        purpose: what its draws are for.
        restart: which of several.
    """

    queries: int
    rescaled: bool
    purpose: str
    restart: int = 0

    def __call__(self, problem: Problem) -> Outcome:
        """Attack a problem; an image is done as soon as its label is lost.

        An image that keeps its label is left at its lowest margin.
        """
        outcome = Outcome.of(problem)
        index = torch.arange(len(problem.ids), device=problem.images.device)
        draws = Draws(problem.ids, problem.seed, f"{self.purpose}:{self.restart}",
                      problem.images.device)
        search = _LinfSquares() if problem.norm.levels else _L2Squares()
        best = problem.look(search.first(problem, draws), margin, with_gradient=False)
        for query in range(self.queries + 1):
            outcome.note(index, best)
            rest = outcome.leave(index, best, query + 1)
            if len(rest) < len(index):
                index, problem, best = index[rest], problem.part(rest), best.part(rest)
                draws = draws.part(rest)
            if query == self.queries or not len(index):
                break
            at = int(query / self.queries * _SCHEDULED) if self.rescaled else query
            tried = problem.look(search.next(problem, best.pixels, share_at(at), draws), margin,
                                 with_gradient=False)
            best = best.where((tried.loss < best.loss) | tried.wrong, tried)
        if len(index):
            outcome.take(index, best)
        return outcome


def share_at(query: int) -> float:
    """Return which part of the image a square covers at a query."""
    return SHARE * 0.5 ** sum(query > limit for limit in _HALVED_AT)


class _LinfSquares:
    """Squares of one colour: plus or minus the radius in each channel."""

    def first(self, problem: Problem, draws: Draws) -> Tensor:
        """Return vertical stripes of random signs."""
        _, channels, _, width = problem.images.shape
        signs = draws.signs(channels * width).view(-1, channels, 1, width)
        return (problem.images + signs * problem.radius).clamp_(0, 1)

    def next(self, problem: Problem, pixels: Tensor, share: float, draws: Draws) -> Tensor:
        """Return the pixels with one square of new signs each."""
        _, channels, height, width = pixels.shape
        side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
        inside = _window(draws, side, height, width)
        signs = draws.signs(channels).view(-1, channels, 1, 1)
        return problem.project(pixels + inside * signs * (2 * problem.radius))


class _L2Squares:
    """Squares of two bumps of opposite sign, which take the length of what they replace."""

    def first(self, problem: Problem, draws: Draws) -> Tensor:
        """Return a grid of bumps in random signs, of the whole radius."""
        change = torch.zeros_like(problem.images)
        count, channels, height, width = change.shape
        side = max(height // _GRID, 1)
        offset = max((height - side * _GRID) // 2, 0)
        for row in range(offset, min(offset + side * (height // side), height - side + 1), side):
            for left in range(offset, min(offset + side * (width // side), width - side + 1), side):
                signs = draws.signs(channels).view(count, channels, 1, 1)
                change[:, :, row:row + side, left:left + side] = self._bumps(side, draws) * signs
        return _at_radius(problem, change)

    def next(self, problem: Problem, pixels: Tensor, share: float, draws: Draws) -> Tensor:
        """Return the pixels with the change of one square moved into another."""
        change = pixels - problem.images
        count, channels, height, width = change.shape
        side = max(round(math.sqrt(share * height * width)), 3)
        side = min(side + (side + 1) % 2, height, width)
        rows, left = draws.places(height - side), draws.places(width - side)
        here = _inside(rows, left, side, height, width)
        there = _window(draws, side, height, width)
        spare = (problem.radius ** 2 - _square_sum(change).sum(1)).clamp_min(0) / channels
        taken = _square_sum(change * torch.maximum(here, there))
        length = (spare.unsqueeze(1) + taken).sqrt()
        old = _cut(change, rows, left, side)
        old = old / _per_channel(_square_sum(old).sqrt() + TINY)
        signs = draws.signs(channels).view(count, channels, 1, 1)
        new = self._bumps(side, draws) * signs + old
        new = new / _per_channel(_square_sum(new).sqrt() + TINY) * _per_channel(length)
        return _at_radius(problem, _pasted(change * (1 - there), new, rows, left))

    def _bumps(self, side: int, draws: Draws) -> Tensor:
        """Return a bump above its negative, of length 1, turned for half of the images.

        The shape is (B, 1, side, side).
        """
        upright = torch.cat([_bump(side // 2, side), -_bump(side - side // 2, side)])
        upright = upright / upright.square().sum().sqrt()
        upright = upright.to(draws.device)
        lying = draws.signs(1).view(-1, 1, 1, 1) > 0
        return torch.where(lying, upright.T, upright)


def _bump(rows: int, columns: int) -> Tensor:
    """Return nested squares that rise toward the middle (equation 3 of the paper), (rows, columns).
    """
    bump = torch.zeros(rows, columns)
    top, left = rows // 2, columns // 2
    for ring in range(max(rows, columns) // 2 + 1):
        bump[max(top - ring, 0):min(top + ring + 1, rows),
             max(left - ring, 0):min(left + ring + 1, columns)] += 1 / (ring + 1) ** 2
    return bump / bump.square().sum().sqrt().clamp_min(TINY)


def _at_radius(problem: Problem, change: Tensor) -> Tensor:
    """Return the images changed by the whole radius, clipped."""
    unit = change / column(problem.norm.size(change).clamp_min(TINY), change)
    return problem.project((problem.images + unit * problem.radius).clamp_(0, 1))


def _window(draws: Draws, side: int, height: int, width: int) -> Tensor:
    """Return a random square for each image, (B, 1, H, W): 1 inside, 0 outside."""
    return _inside(draws.places(height - side), draws.places(width - side), side, height, width)


def _inside(top: Tensor, left: Tensor, side: int, height: int, width: int) -> Tensor:
    rows = torch.arange(height, device=top.device) - top.unsqueeze(1)
    columns = torch.arange(width, device=left.device) - left.unsqueeze(1)
    down, across = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (down.unsqueeze(2) & across.unsqueeze(1)).unsqueeze(1).float()


def _cut(change: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Return the square of each image, (B, C, side, side)."""
    rows, columns = _grid(change, top, left, side)
    return change.gather(2, rows.expand(-1, change.shape[1], -1, change.shape[3])
                         ).gather(3, columns.expand(-1, change.shape[1], side, -1))


def _pasted(change: Tensor, square: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Return the changes with each image's square replaced."""
    side = square.shape[-1]
    rows = top.view(-1, 1, 1) + torch.arange(side, device=top.device).view(1, -1, 1)
    columns = left.view(-1, 1, 1) + torch.arange(side, device=left.device).view(1, 1, -1)
    flat = (rows * change.shape[3] + columns).flatten(1).unsqueeze(1)
    pasted = change.flatten(2).scatter(2, flat.expand(-1, change.shape[1], -1), square.flatten(2))
    return pasted.view_as(change)


def _grid(change: Tensor, top: Tensor, left: Tensor, side: int) -> tuple[Tensor, Tensor]:
    steps = torch.arange(side, device=change.device)
    return ((top.unsqueeze(1) + steps).view(len(top), 1, side, 1),
            (left.unsqueeze(1) + steps).view(len(left), 1, 1, side))


def _square_sum(change: Tensor) -> Tensor:
    """Return the sum of squares of each channel, (B, C)."""
    return row_sum(change.square().flatten(2).flatten(0, 1)).view(change.shape[:2])


def _per_channel(values: Tensor) -> Tensor:
    return values.view(*values.shape, 1, 1)
