"""Auto-PGD: projected gradient descent that chooses its own steps (Croce & Hein 2020).

The step starts at twice the radius and is halved at checkpoints where the loss has not fallen often
enough; the walk then goes on from the best point so far. Letters: B images, N steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanrobust.attacks.norms import column
from sanrobust.attacks.problem import AttackOutcome, Point, Problem

if TYPE_CHECKING:
    from sanrobust.attacks.losses import Loss

MOMENTUM = 0.75
"""Share of the new direction in a step (equation 2 with alpha)."""
RHO = 0.75
"""Part of the steps between checkpoints that must lower the loss (condition 1)."""


@dataclass(frozen=True)
class Walk:
    """An Auto-PGD walk.

    Attributes:
        loss: what it descends.
        iters: steps.
        start: (B, 3, H, W) of the problem, where it begins.
        targets: (B,) int64 of the problem, where the loss has them.
        looks: passes of a random model per step.
    """

    loss: Loss
    iters: int
    start: Tensor
    targets: Tensor | None = None
    looks: int = 1

    def __call__(self, problem: Problem) -> AttackOutcome:
        """Attack a problem; an image is done as soon as its label is lost.

        An image that keeps its label is left at its point of lowest loss.
        """
        outcome = AttackOutcome.of(problem)
        index = torch.arange(len(problem.ids), device=problem.images.device)
        state = _State.at(self._look(problem, self.start, self.targets), problem)
        targets, marks = self.targets, set(checkpoints(self.iters))
        since = 0
        for step in range(self.iters + 1):
            outcome.note(index, state.point)
            rest = outcome.leave(index, state.point, step)
            if len(rest) < len(index):
                index, problem, state = index[rest], problem.part(rest), state.part(rest)
                targets = None if targets is None else targets[rest]
            if step == self.iters or not len(index):
                break
            if step in marks:
                state.halve(step - since)
                since = step
            pixels = state.next(problem, first=step == 0)
            state.move(self._look(problem, pixels, targets))
        if len(index):
            outcome.take(index, state.best)
        return outcome

    def _look(self, problem: Problem, pixels: Tensor, targets: Tensor | None) -> Point:
        return problem.look(pixels, self.loss, targets, looks=self.looks)


def checkpoints(iters: int) -> Iterator[int]:
    """Yield the steps at which the step size is looked at (Croce & Hein 2020, section 3.2)."""
    period, place = max(int(0.22 * iters), 1), 0
    while place + period <= iters:
        place += period
        yield place
        period = max(period - max(int(0.03 * iters), 1), max(int(0.06 * iters), 1))


@dataclass
class _State:
    """Where each image is, where it was before and was best, and how far it steps.

    ``falls`` counts the steps since the last checkpoint after which the loss was lower than after
    the step before; ``lowest`` is the lowest loss at that checkpoint, and ``halved`` whether the
    step was halved there.
    """

    point: Point
    before: Tensor
    best: Point
    step: Tensor
    falls: Tensor
    last: Tensor
    lowest: Tensor
    halved: Tensor

    @classmethod
    def at(cls, point: Point, problem: Problem) -> _State:
        # Halved at first, as the original has it: the first checkpoint asks for falls alone.
        step = torch.full_like(point.loss, 2 * problem.radius)
        return cls(point, point.pixels, point.copy(), step, torch.zeros_like(step), point.loss,
                   point.loss, torch.ones_like(point.wrong))

    def part(self, index: Tensor) -> _State:
        return _State(self.point.part(index), self.before.index_select(0, index),
                      self.best.part(index), self.step[index], self.falls[index], self.last[index],
                      self.lowest[index], self.halved[index])

    def next(self, problem: Problem, *, first: bool) -> Tensor:
        """Return where the next step leads, with the momentum of the last (equation 2)."""
        assert self.point.gradient is not None
        here = self.point.pixels
        move = problem.norm.direction(self.point.gradient).mul_(column(self.step, here))
        aim = problem.project(here - move)
        if first:
            return aim
        drift = here - self.before
        # A quarter is a power of two: to multiply and to add is rounded once however it is done.
        return problem.project(aim.sub_(here).mul_(MOMENTUM).add_(here)
                               .add_(drift, alpha=1 - MOMENTUM))

    def move(self, point: Point) -> None:
        """Go to a new point."""
        # Against the step before, not the best point from which a walk may have gone on: as in the
        # published code.
        self.falls = self.falls + (point.loss < self.last)
        self.last = point.loss
        self.before, self.point = self.point.pixels, point
        better = (point.loss < self.best.loss).nonzero().squeeze(1)
        self.best.put(better, point, better)

    def halve(self, steps: int) -> None:
        """Halve the steps of images that made too little of the last ``steps``."""
        rarely = self.falls <= RHO * steps
        still = ~self.halved & (self.best.loss >= self.lowest)
        self.halved = rarely | still
        self.lowest = self.best.loss.clone()
        self.step = torch.where(self.halved, self.step / 2, self.step)
        self.point = self.point.where(self.halved, self.best)
        self.falls = torch.zeros_like(self.falls)
