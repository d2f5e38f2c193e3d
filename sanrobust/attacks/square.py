"""Square attack (Andriushchenko et al. 2020, arXiv 1912.00049): random squares, no gradient.

A query tries one square of new changes at a random place; it is kept where the margin falls. The
squares shrink by a fixed schedule. Each image draws its own places, signs and orientations.
Letters: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from sanrobust.attacks.losses import margin
from sanrobust.attacks.norms import TINY, column, row_sum
from sanrobust.attacks.problem import AttackOutcome, Point, Problem
from sanrobust.attacks.randomness import WORD, Draws
from sanrobust.errors import NonFiniteError

SHARE = 0.8
"""Part of the image that the first squares cover (p)."""
_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries after which the part is halved (section 4.1 of the paper)."""
_SCHEDULED = 10_000
_GRID = 5
"""Squares on a side of the first change in L2."""
_WITHOUT_GRADIENT = 4
"""How many times as many images have room where nothing is kept for a gradient."""
_IN_VAIN = 0.5
"""How many queries of an image are kept at most, on an average, of those made at once."""
_REMEMBERED = 20
"""Passes over which it is averaged how many are kept."""


@dataclass(frozen=True)
class Square:
    """A random search.

    Where there is room in a pass, an image's next queries are made together, as if none of them
    were kept; those behind the first that is kept are made anew. So no result depends on the room.

    Attributes:
        queries: of an image after the first.
        rescaled: whether the squares shrink as over 10,000 queries, however many there are, which
            is the paper's schedule; AutoAttack's 5,000 take the first half of it.
        purpose: what its draws are for.
    """

    queries: int
    rescaled: bool
    purpose: str

    def __call__(self, problem: Problem) -> AttackOutcome:
        """Attack a problem; an image is done as soon as its label is lost.

        An image that keeps its label is left at its lowest margin.
        """
        outcome = AttackOutcome.of(problem)
        draws = Draws(problem.ids, problem.seed, self.purpose, problem.images.device)
        search = _LinfSquares() if problem.norm.levels else _L2Squares()
        first = problem.look(search.first(problem, draws), margin, with_gradient=False)
        index = torch.arange(len(problem.ids), device=problem.images.device)
        outcome.note(index, first)
        state = _State(problem, first.copy(), draws, index, torch.zeros_like(index))
        room, kept = problem.pass_size or _WITHOUT_GRADIENT * problem.room, 1.0
        ahead = images = 0
        for turn in count():
            if not len(state.left(outcome, self.queries)):
                break
            # Seldom another, as many a network is slow in its first pass of a shape.
            if len(state.index) != images or turn % _REMEMBERED == 0:
                images = len(state.index)
                ahead = _ahead(images, room, problem.pass_size or 1, kept)
            plan = _Plan.of(state.made, self.queries, ahead)
            try:
                tried = self._try(search, state, plan)
            except NonFiniteError:  # of a query that is in vain, perhaps
                if ahead == 1:
                    raise
                plan = _Plan.of(state.made, self.queries, 1)
                tried = self._try(search, state, plan)
            kept += (state.go_on(outcome, plan, tried, search) - kept) / _REMEMBERED
        return outcome

    def _try(self, search: _Search, state: _State, plan: _Plan) -> Point:
        """Ask the model about the squares that are next, of which a query may be several away."""
        problem = state.repeated(plan.image)
        drawn = state.draws.ahead(plan.image, plan.turn, search.words(problem.images.shape[1]))
        shares = [share_at(int(query / self.queries * _SCHEDULED) if self.rescaled else query)
                  for query in plan.query.tolist()]
        pixels = search.next(problem, state.best.pixels.index_select(0, plan.image), shares, drawn)
        return problem.look(pixels, margin, with_gradient=False)


@dataclass
class _State:
    """The images that still search, (b,) int64, their best points and how many queries each made.

    ``asked`` is what was last made of `repeated`.
    """

    problem: Problem
    best: Point
    draws: Draws
    index: Tensor
    made: Tensor
    asked: tuple[Tensor, Problem] | None = None

    def repeated(self, image: Tensor) -> Problem:
        """Return the problem of the images (L,) int64 asked about, most often the same again."""
        if self.asked is None or not torch.equal(self.asked[0], image):
            self.asked = image, self.problem.part(image)
        return self.asked[1]

    def left(self, outcome: AttackOutcome, queries: int) -> Tensor:
        """Enter what is at its end, and return which images go on."""
        on = outcome.leave(self.index, self.best, self.made + 1)
        spent = self.made[on] >= queries
        if spent.any():
            end = on[spent]
            outcome.take(self.index[end], self.best.part(end))
            on = on[~spent]
        if len(on) < len(self.index):
            self.problem, self.best, self.asked = self.problem.part(on), self.best.part(on), None
            self.draws, self.index, self.made = self.draws.part(on), self.index[on], self.made[on]
        return self.index

    def go_on(self, outcome: AttackOutcome, plan: _Plan, tried: Point, search: _Search) -> float:
        """Keep the first of an image's tries that serves; return which part of those made has."""
        before = self.best.loss[plan.image]
        serves = (tried.loss < before) | tried.wrong
        used = plan.used(serves)
        final = plan.first + used - 1
        mine = (plan.turn < used[plan.image]).nonzero().squeeze(1)
        outcome.noted.append((self.index[plan.image[mine]],
                              torch.where(serves, tried.loss, before)[mine]))
        better = serves[final].nonzero().squeeze(1)
        self.best.put(better, tried, final[better])
        self.draws.skip(used * search.words(tried.pixels.shape[1]))
        self.made = self.made + used
        return len(better) / len(mine)


@dataclass(frozen=True)
class _Plan:
    """Queries to make at once, each as if those of its image before it were not kept.

    Attributes:
        image: (L,) int64, of which image each is; those of an image together, in their order.
        turn: (L,) int64, how many of its image come before it.
        query: (L,) int64, how many its image has then made.
        first: (b,) int64, where those of each image begin.
        count: (b,) int64, how many each image has.
    """

    image: Tensor
    turn: Tensor
    query: Tensor
    first: Tensor
    count: Tensor

    @classmethod
    def of(cls, made: Tensor, queries: int, ahead: int) -> _Plan:
        """Return the next ``ahead`` queries of each image, or all that it has left."""
        count = (queries - made).clamp_max(ahead)
        first = count.cumsum(0) - count
        image = torch.arange(len(made), device=made.device).repeat_interleave(count)
        turn = torch.arange(len(image), device=made.device) - first[image]
        return cls(image, turn, made[image] + turn, first, count)

    def used(self, serves: Tensor) -> Tensor:
        """Return how many of each image's queries count, (b,): up to the first that serves."""
        turns = torch.where(serves, self.turn + 1, len(self.image))
        return self.count.scatter_reduce(0, self.image, turns, "amin")


def _ahead(images: int, room: int, pass_size: int, kept: float) -> int:
    """Return how many queries of each image are made at once, where ``kept`` of them are kept.

    What lies behind one that is kept is made in vain, so few are made where many are kept, but
    always as many as fill up a pass.
    """
    few = max(int(_IN_VAIN / max(kept, _IN_VAIN / room)), 1)
    filled = -(-images * few // pass_size) * pass_size // images
    return max(min(filled, room // images), 1)


@cache
def share_at(query: int) -> float:
    """Return which part of the image a square covers at a query."""
    return SHARE * 0.5 ** sum(query > limit for limit in _HALVED_AT)


class _Search(Protocol):
    """Which squares are tried in a norm."""

    def words(self, channels: int) -> int:
        """Return how many words of 64 bits a query draws."""
        ...

    def first(self, problem: Problem, draws: Draws) -> Tensor:
        """Return where the search begins."""
        ...

    def next(self, problem: Problem, pixels: Tensor, shares: Sequence[float], draws: Draws
             ) -> Tensor:
        """Return the pixels (B, 3, H, W) with one square each that covers its share of B."""
        ...


class _LinfSquares:
    """Squares of one colour: plus or minus the radius in each channel."""

    def words(self, channels: int) -> int:
        """Return what places and signs take."""
        return 2 + _sign_words(channels)

    def first(self, problem: Problem, draws: Draws) -> Tensor:
        """Return vertical stripes of random signs."""
        _, channels, _, width = problem.images.shape
        signs = draws.signs(channels * width).view(-1, channels, 1, width)
        return (problem.images + signs * problem.radius).clamp_(0, 1)

    def next(self, problem: Problem, pixels: Tensor, shares: Sequence[float], draws: Draws
             ) -> Tensor:
        """Return the pixels with one square of new signs each."""
        _, channels, height, width = pixels.shape
        sides = {share: min(max(round(math.sqrt(share * height * width)), 1), height, width)
                 for share in set(shares)}
        side = torch.tensor([sides[share] for share in shares], device=pixels.device)
        inside = _window(draws, side, height, width)
        signs = draws.signs(channels).view(-1, channels, 1, 1)
        return problem.project((inside * (signs * (2 * problem.radius))).add_(pixels))


class _L2Squares:
    """Squares of two bumps of opposite sign, which take the length of what they replace."""

    def words(self, channels: int) -> int:
        """Return what two places, the signs and the way a bump lies take."""
        return 4 + _sign_words(channels) + _sign_words(1)

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

    def next(self, problem: Problem, pixels: Tensor, shares: Sequence[float], draws: Draws
             ) -> Tensor:
        """Return the pixels with the change of one square moved into another."""
        moved = torch.empty_like(pixels)
        for share in set(shares):
            part = torch.tensor([place for place, each in enumerate(shares) if each == share],
                                device=pixels.device)
            moved[part] = self._next(problem.part(part), pixels[part], share, draws.part(part))
        return moved

    def _next(self, problem: Problem, pixels: Tensor, share: float, draws: Draws) -> Tensor:
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


def _sign_words(count: int) -> int:
    return -(-count // WORD)


def _window(draws: Draws, side: int | Tensor, height: int, width: int) -> Tensor:
    """Return a random square for each image, (B, 1, H, W): 1 inside, 0 outside."""
    return _inside(draws.places(height - side), draws.places(width - side), side, height, width)


def _inside(top: Tensor, left: Tensor, side: int | Tensor, height: int, width: int) -> Tensor:
    sides = side.unsqueeze(1) if isinstance(side, Tensor) else side
    rows = torch.arange(height, device=top.device) - top.unsqueeze(1)
    columns = torch.arange(width, device=left.device) - left.unsqueeze(1)
    down, across = (rows >= 0) & (rows < sides), (columns >= 0) & (columns < sides)
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
