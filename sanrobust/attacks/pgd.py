"""Projected gradient descent (Madry et al. 2018), toward a target or away from the label.

FGSM (Goodfellow et al. 2015), BIM (Kurakin et al. 2017) and MI-FGSM (Dong et al. 2018) are settings
of it. Letters: B images, H rows, W columns, K classes, N steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanrobust.attacks import guards
from sanrobust.attacks.budget import LEVELS, Budget
from sanrobust.attacks.losses import LOSSES, cross_entropy
from sanrobust.attacks.norms import NORMS, TINY, Norm, column
from sanrobust.attacks.problem import Forward, forward, gradient_of, prepared
from sanrobust.attacks.randomness import starts
from sanrobust.attacks.result import BudgetResult, distance, zero_share
from sanrobust.attacks.targets import TargetRule
from sanrobust.errors import UsageError

if TYPE_CHECKING:
    from sanrobust.attacks.losses import Loss

Classifier = guards.Classifier


def pgd(model: Classifier, images: Tensor, labels: Tensor, ids: Sequence[str], *,
        budgets: Sequence[Budget], targets: TargetRule | Tensor | None, loss: str = "ce",
        norm: str = "linf", momentum: float = 0.0, seed: int = 0, random_start: bool = False,
        restarts: int = 1) -> list[BudgetResult]:
    """Attack a batch once per budget: ``x <- project(x - step * direction(grad loss(model(x))))``.

    The first forward pass of a zero start is the clean one, and all budgets share it and its
    gradient. Each image keeps its best restart: the first that ends where it should, else the one
    with the lowest cross entropy toward the target, or with the highest of the label.

    Args:
        model: pixels in [0, 1] to logits (B, K), in eval mode; its state is not changed.
        images: (B, 3, H, W) float32 in [0, 1].
        labels: (B,) int64, the true classes.
        ids: B image ids; with ``seed`` they decide random targets and starts.
        budgets: radius, step and number of steps, in the units of the norm.
        targets: a rule, or (B,) int64 wrong classes; None runs away from the labels.
        loss: what the walk descends, a name of `sanrobust.attacks.losses.LOSSES`.
        norm: of the ball, a name of `sanrobust.attacks.norms.NORMS`.
        momentum: share of the last direction that a step keeps (Dong et al. 2018, equation 6).
        seed: seed of random targets and random starts.
        random_start: start uniformly in the ball instead of at the clean image.
        restarts: number of random starts.

    Returns:
        One result per budget, in their order.

    Raises NonFiniteError when logits or gradients are not finite, and ProtocolError, ModelError,
    UsageError or DataError when another rule of the experiment is broken.
    """
    if restarts < 1 or (restarts > 1 and not random_start):
        raise UsageError("restarts must be 1, or more with a random start",
                         seen=f"restarts is {restarts}", hint="set random_start=True")
    descend = LOSSES.get(loss)
    with prepared(model, images, labels, ids) as (images, labels):
        share = not random_start and any(budget.iters for budget in budgets)
        clean = forward(model, images, with_graph=share)
        num_classes = clean.logits.shape[1]
        # Once a batch, before the first step: targets may be chosen by these logits.
        guards.check_finite(clean.logits)
        guards.check_labels(labels, num_classes)
        chosen = _chosen(targets, ids, labels, clean.logits.detach(), seed)
        objective = _Objective(model, chosen, labels, descend, num_classes)
        first = objective.score(clean, with_gradient=share)
        begin = _Starts(ids, seed, restarts if random_start else 0)
        walk = _Walk(objective, first, NORMS.get(norm), momentum)
        return [walk.attacked(budget, begin) for budget in budgets]


targeted_pgd = pgd
"""The name that `pgd` had in version 0.1.0."""


def _chosen(targets: TargetRule | Tensor | None, ids: Sequence[str], labels: Tensor,
            logits: Tensor, seed: int) -> Tensor | None:
    """Return a wrong class for each image; None where none is aimed at."""
    if targets is None or isinstance(targets, TargetRule) and targets.untargeted:
        return None
    chosen = (targets.choose(ids, labels, logits, seed=seed) if isinstance(targets, TargetRule)
              else targets.detach().to(labels.device))
    guards.check_targets(chosen, labels, logits.shape[1])
    return chosen


@dataclass(frozen=True)
class _Point:
    """An iterate: its pixels, logits, cross entropy toward the aim, and gradient if needed."""

    pixels: Tensor
    logits: Tensor
    toward: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class _Starts:
    """Random starts of a batch; none of them means the clean image."""

    ids: Sequence[str]
    seed: int
    count: int


@dataclass(frozen=True)
class _Objective:
    """The model seen from the attack: an iterate in, its logits, loss and gradient out."""

    model: Classifier
    targets: Tensor | None
    labels: Tensor
    loss: Loss
    num_classes: int

    def point(self, pixels: Tensor, *, with_gradient: bool) -> _Point:
        """Run the model once, forward and if asked for backward."""
        run = forward(self.model, pixels, with_graph=with_gradient, num_classes=self.num_classes)
        return self.score(run, with_gradient=with_gradient)

    def score(self, run: Forward, *, with_gradient: bool) -> _Point:
        """Finish a forward pass; its graph is freed when it has served the gradient.

        The numbers are checked here, once a step, as each look at them waits for the device.
        """
        gradient = None
        if with_gradient:
            gradient = gradient_of(self.loss(run.logits, self.targets, self.labels), run)
        logits = run.logits.detach()
        guards.check_finite(logits, gradient)
        toward = cross_entropy(logits, self.targets, self.labels)
        return _Point(run.pixels.detach(), logits, toward, gradient)

    def reached(self, point: _Point) -> Tensor:
        """Return whether each image is where it should be, (B,) bool: on its target, or wrong."""
        predicted = point.logits.argmax(1)
        return predicted != self.labels if self.targets is None else predicted == self.targets


class _Ball:
    """The legal images around a batch: where a walk starts and how it moves among them."""

    def __init__(self, images: Tensor, budget: Budget, norm: Norm, *, snap: bool) -> None:
        unit = LEVELS if norm.levels else 1
        self.norm = norm
        self._images = images
        self.radius = budget.eps / unit
        self._nearest = norm.projection(images, self.radius)
        self._step = (budget.step or 0) / unit
        self.on_grid = _on_grid(images) & (snap and norm.levels and budget.on_grid)
        self._snaps = bool(self.on_grid.any())

    def start(self, noise: Tensor | None) -> Tensor:
        """Return the clean images, or the images moved by ``noise`` times the radius."""
        return self._images if noise is None else self.project(noise.mul(self.radius)
                                                               + self._images)

    def step(self, pixels: Tensor, gradient: Tensor) -> Tensor:
        """Move every image by one step down its gradient and project."""
        return self.project(self.norm.direction(gradient).mul_(-self._step).add_(pixels))

    def project(self, pixels: Tensor) -> Tensor:
        """Clip to the ball and to [0, 1]; an 8-bit image is kept exactly one."""
        clipped = self._nearest(pixels)
        if not self._snaps:
            return clipped
        return torch.where(self.on_grid.view(-1, 1, 1, 1), _snapped(clipped), clipped)


@dataclass(frozen=True)
class _Track:
    """Where one walk of a batch has led, and what it was like on the way.

    ``toward`` (B, N + 1) and ``zeros`` (B, N) are of each point and step; ``at`` (B,) is the first
    point that was where it should be, -1 for none, ``later`` (B,) whether one after the start was.
    """

    end: _Point
    reached: Tensor
    at: Tensor
    later: Tensor
    toward: Tensor
    zeros: Tensor


@dataclass(frozen=True)
class _Walk:
    """Fixed steps from the clean point of a batch, or from random ones around it."""

    objective: _Objective
    clean: _Point
    norm: Norm
    momentum: float

    def attacked(self, budget: Budget, begin: _Starts) -> BudgetResult:
        """Return what the best of the starts has come to."""
        images = self.clean.pixels
        ball = _Ball(images, budget, self.norm, snap=begin.count == 0)
        best = self._track(ball, self.clean, budget.iters or 0) if begin.count == 0 else None
        for index in range(begin.count):
            noise = starts(images, begin.ids, begin.seed, index)
            start = self.objective.point(ball.start(noise), with_gradient=bool(budget.iters))
            found = self._track(ball, start, budget.iters or 0)
            best = found if best is None else _better(best, found)
        assert best is not None
        guards.check_ball(best.end.pixels, images, ball.radius, self.norm)
        return self._result(best, budget, ball)

    def _track(self, ball: _Ball, start: _Point, iters: int) -> _Track:
        point, toward, zeros = start, [start.toward], []
        reached = later = self.objective.reached(start)
        at = torch.where(reached, 0, -1)
        direction: Tensor | None = None
        for step in range(iters):
            assert point.gradient is not None
            zeros.append(zero_share(point.gradient))
            direction = self._kept(direction, point.gradient)
            moved = ball.step(point.pixels, direction)
            point = self.objective.point(moved, with_gradient=step + 1 < iters)
            toward.append(point.toward)
            reached = self.objective.reached(point)
            later = reached if step == 0 else later | reached
            at = torch.where((at < 0) & reached, step + 1, at)
        empty = point.toward.new_empty(len(reached), 0)
        return _Track(point, reached, at, later, torch.stack(toward, 1),
                      torch.stack(zeros, 1) if zeros else empty)

    def _kept(self, direction: Tensor | None, gradient: Tensor) -> Tensor:
        """Return the gradient, with what is kept of earlier ones where there is momentum."""
        if not self.momentum:
            return gradient
        size = NORMS.get("linf").dual(gradient).clamp_min(TINY)
        unit = gradient / column(size, gradient)
        return unit if direction is None else direction * self.momentum + unit

    def _result(self, best: _Track, budget: Budget, ball: _Ball) -> BudgetResult:
        linf = distance(best.end.pixels, self.clean.pixels)
        targets = self.objective.targets
        free = targets is None
        return BudgetResult(
            budget=budget, eps=budget.eps, adversarial=best.end.pixels,
            clean_logits=self.clean.logits, adv_logits=best.end.logits, targets=targets,
            hit=None if free else best.reached, hit_any=None if free else best.later,
            linf=torch.where(ball.on_grid, linf.round(), linf),
            target_loss=None if free else best.toward, zero_gradient=best.zeros,
            broken_at=[None if at < 0 else at for at in best.at.tolist()] if free else None,
            losses=best.toward.tolist() if free else None)


def _better(old: _Track, new: _Track) -> _Track:
    """Keep the better restart of each image; the earlier one when they tie."""
    take = ~old.reached & (new.reached | (new.toward[:, -1] < old.toward[:, -1]))

    def pick(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(take.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)

    end = replace(old.end, pixels=pick(old.end.pixels, new.end.pixels),
                  logits=pick(old.end.logits, new.end.logits))
    return _Track(end, pick(old.reached, new.reached), pick(old.at, new.at),
                  old.later | new.later, pick(old.toward, new.toward),
                  pick(old.zeros, new.zeros))


def _levels(images: Tensor) -> Tensor:
    # A tensor divisor: CUDA multiplies by the reciprocal of a plain number, which misses the
    # float32 quotient k/255 of the CPU for some k.
    return images.new_full((1,), LEVELS)


def _on_grid(images: Tensor) -> Tensor:
    """Return which images are exactly k/255 everywhere, (B,) bool."""
    return (_snapped(images) == images).flatten(1).all(1)


def _snapped(images: Tensor) -> Tensor:
    return (images * LEVELS).round_().div_(_levels(images))
