"""Targeted projected gradient descent in the L-inf ball (Madry et al. 2018), budgets together.

Letters: B images, H rows, W columns, K classes, N steps.
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
from sanrobust.attacks.randomness import symmetric_noise
from sanrobust.attacks.result import BudgetResult, distance, zero_share
from sanrobust.attacks.targets import TargetRule
from sanrobust.errors import ModelError, UsageError

if TYPE_CHECKING:
    from sanrobust.attacks.losses import Loss

Classifier = guards.Classifier


def targeted_pgd(model: Classifier, images: Tensor, labels: Tensor, ids: Sequence[str], *,
                 budgets: Sequence[Budget], targets: TargetRule | Tensor, loss: str = "ce",
                 seed: int = 0, random_start: bool = False,
                 restarts: int = 1) -> list[BudgetResult]:
    """Attack a batch once per budget: ``x <- clip(x - step * sign(grad loss(model(x), target)))``.

    The first forward pass of a zero start is the clean one, and all budgets share it and its
    gradient. Each image keeps its best restart: the first that ends on the target, else the one
    with the lowest cross entropy toward it.

    Args:
        model: pixels in [0, 1] to logits (B, K), in eval mode; its state is not changed.
        images: (B, 3, H, W) float32 in [0, 1].
        labels: (B,) int64, the true classes.
        ids: B image ids; with ``seed`` they decide random targets and starts.
        budgets: radius, step and number of steps, in units of 1/255.
        targets: a rule, or (B,) int64 wrong classes.
        loss: what the walk descends, a name of `sanrobust.attacks.losses.LOSSES`.
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
    guards.check_batch(images, labels, ids)
    guards.check_eval(model)
    # Tensors made in inference mode carry no gradient, copies made outside it do.
    with torch.inference_mode(False), torch.enable_grad(), guards.sealed(model):
        images, labels = images.detach().clone(), labels.detach().to(images.device)
        share = not random_start and any(budget.iters for budget in budgets)
        clean = _forward(model, images, with_graph=share)
        num_classes = clean.logits.shape[1]
        # Once a batch, before the first step: targets may be chosen by these logits.
        guards.check_finite(clean.logits)
        guards.check_labels(labels, num_classes)
        chosen = (targets.choose(ids, labels, clean.logits.detach(), seed=seed)
                  if isinstance(targets, TargetRule) else targets.detach().to(images.device))
        guards.check_targets(chosen, labels, num_classes)
        objective = _Objective(model, chosen, labels, descend, num_classes)
        first = objective.score(clean, with_gradient=share)
        starts = _Starts(ids, seed, restarts if random_start else 0)
        return [_attack(objective, images, first, budget, starts) for budget in budgets]


@dataclass(frozen=True)
class _Forward:
    """A forward pass: where (B, 3, H, W) and the logits (B, K), with their graph if asked for."""

    pixels: Tensor
    logits: Tensor


@dataclass(frozen=True)
class _Point:
    """An iterate: its pixels, logits, cross entropy toward the target, and gradient if needed."""

    pixels: Tensor
    logits: Tensor
    target_loss: Tensor
    gradient: Tensor | None


@dataclass(frozen=True)
class _Starts:
    """Random starts of a batch; none of them means the clean image."""

    ids: Sequence[str]
    seed: int
    count: int

    def noise(self, images: Tensor, index: int) -> Tensor:
        """Return noise uniform in [-1, 1), (B, 3, H, W), made on the CPU image by image."""
        shape = tuple(images.shape[1:])
        drawn = [torch.from_numpy(symmetric_noise(shape, self.seed, image_id, index))
                 for image_id in self.ids]
        return torch.stack(drawn).to(images.device)


@dataclass(frozen=True)
class _Objective:
    """The model seen from the attack: an iterate in, its logits, loss and gradient out."""

    model: Classifier
    targets: Tensor
    labels: Tensor
    loss: Loss
    num_classes: int

    def point(self, pixels: Tensor, *, with_gradient: bool) -> _Point:
        """Run the model once, forward and if asked for backward."""
        run = _forward(self.model, pixels, with_graph=with_gradient, num_classes=self.num_classes)
        return self.score(run, with_gradient=with_gradient)

    def score(self, run: _Forward, *, with_gradient: bool) -> _Point:
        """Finish a forward pass; its graph is freed when it has served the gradient.

        The numbers are checked here, once a step, as each look at them waits for the device.
        """
        gradient = None
        if with_gradient:
            # The sum, not the mean: an image's gradient must not depend on its batch.
            total = self.loss(run.logits, self.targets, self.labels).sum()
            gradient = torch.autograd.grad(total, run.pixels)[0]
        logits = run.logits.detach()
        guards.check_finite(logits, gradient)
        toward = cross_entropy(logits, self.targets, self.labels)
        return _Point(run.pixels.detach(), logits, toward, gradient)

    def hits(self, point: _Point) -> Tensor:
        """Return whether each image is classified as its target, (B,) bool."""
        return point.logits.argmax(1) == self.targets


class _Ball:
    """The legal images around a batch: where a walk starts and how it moves among them."""

    def __init__(self, images: Tensor, budget: Budget, *, snap: bool) -> None:
        self._images = images
        self._eps = budget.eps / LEVELS
        self._step = budget.step / LEVELS
        self._low = (images - self._eps).clamp_(0, 1)
        self._high = (images + self._eps).clamp_(0, 1)
        self.on_grid = _on_grid(images) & (snap and budget.on_grid)
        self._snaps = bool(self.on_grid.any())

    def start(self, noise: Tensor | None) -> Tensor:
        """Return the clean images, or the images moved by ``eps * noise``."""
        return self._images if noise is None else self.project(noise.mul(self._eps) + self._images)

    def step(self, pixels: Tensor, gradient: Tensor) -> Tensor:
        """Move every pixel by one step against its gradient's sign and project."""
        return self.project(gradient.sign().mul_(-self._step).add_(pixels))

    def project(self, pixels: Tensor) -> Tensor:
        """Clip to the ball and to [0, 1], in place; an 8-bit image is kept exactly one."""
        clipped = pixels.clamp_(self._low, self._high)
        if not self._snaps:
            return clipped
        snapped = _snapped(clipped)
        return torch.where(self.on_grid.view(-1, 1, 1, 1), snapped, clipped)


def _forward(model: Classifier, pixels: Tensor, *, with_graph: bool,
             num_classes: int | None = None) -> _Forward:
    leaf = pixels.detach().requires_grad_(with_graph)
    version = leaf._version
    with torch.set_grad_enabled(with_graph):
        logits = model(leaf)
    if leaf._version != version:
        raise ModelError("the model must leave its input as it is", seen="it changed it in place",
                         hint="normalise into a new tensor")
    guards.check_form(logits, len(pixels), num_classes)
    if with_graph and not logits.requires_grad:
        raise ModelError("the model must be differentiable in its input",
                         seen="its logits carry no gradient", hint="remove no_grad and detach")
    return _Forward(leaf, logits.float())


def _attack(objective: _Objective, images: Tensor, first: _Point, budget: Budget,
            starts: _Starts) -> BudgetResult:
    ball = _Ball(images, budget, snap=starts.count == 0)
    if starts.count == 0:
        best = _walk(objective, ball, first, first, budget)
    else:
        for index in range(starts.count):
            start = objective.point(ball.start(starts.noise(images, index)),
                                    with_gradient=budget.iters > 0)
            found = _walk(objective, ball, first, start, budget)
            best = found if index == 0 else _better(best, found)
    guards.check_adversarial(best.adversarial, images, budget.eps)
    return best


def _walk(objective: _Objective, ball: _Ball, clean: _Point, start: _Point,
          budget: Budget) -> BudgetResult:
    point = start
    losses, zeros = [start.target_loss], []
    hit = hit_any = objective.hits(start)
    for step in range(budget.iters):
        assert point.gradient is not None
        zeros.append(zero_share(point.gradient))
        moved = ball.step(point.pixels, point.gradient)
        point = objective.point(moved, with_gradient=step + 1 < budget.iters)
        losses.append(point.target_loss)
        hit = objective.hits(point)
        hit_any = hit if step == 0 else hit_any | hit
    linf = distance(point.pixels, clean.pixels)
    return BudgetResult(
        budget=budget, eps=budget.eps, adversarial=point.pixels, clean_logits=clean.logits,
        adv_logits=point.logits, targets=objective.targets, hit=hit, hit_any=hit_any,
        linf=torch.where(ball.on_grid, linf.round(), linf), target_loss=torch.stack(losses, 1),
        zero_gradient=torch.stack(zeros, 1) if zeros else linf.new_empty(len(linf), 0),
    )


def _better(old: BudgetResult, new: BudgetResult) -> BudgetResult:
    """Keep the better restart of each image; the earlier one when they tie."""
    assert old.hit is not None and old.hit_any is not None and old.target_loss is not None
    assert new.hit is not None and new.hit_any is not None and new.target_loss is not None
    closer = new.target_loss[:, -1] < old.target_loss[:, -1]
    take = ~old.hit & (new.hit | closer)

    def pick(ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(take.view(-1, *[1] * (ours.ndim - 1)), theirs, ours)

    return replace(
        old, adversarial=pick(old.adversarial, new.adversarial),
        adv_logits=pick(old.adv_logits, new.adv_logits), hit=pick(old.hit, new.hit),
        hit_any=old.hit_any | new.hit_any, linf=pick(old.linf, new.linf),
        target_loss=pick(old.target_loss, new.target_loss),
        zero_gradient=pick(old.zero_gradient, new.zero_gradient),
    )


def _levels(images: Tensor) -> Tensor:
    # A tensor divisor: CUDA multiplies by the reciprocal of a plain number, which misses the
    # float32 quotient k/255 of the CPU for some k.
    return images.new_full((1,), LEVELS)


def _on_grid(images: Tensor) -> Tensor:
    """Return which images are exactly k/255 everywhere, (B,) bool."""
    return (_snapped(images) == images).flatten(1).all(1)


def _snapped(images: Tensor) -> Tensor:
    return (images * LEVELS).round_().div_(_levels(images))
