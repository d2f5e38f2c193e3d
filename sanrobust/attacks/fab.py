"""Fast adaptive boundary attack (Croce & Hein 2020, arXiv 1907.02044): toward the nearest boundary.

The boundary is taken as the plane that the gradient tells, the next point lies a little beyond it
and a little nearer to the image, and from behind the boundary the walk returns toward the image.
Letters: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sanrobust.attacks import guards
from sanrobust.attacks.hyperplane import way_to
from sanrobust.attacks.losses import pair
from sanrobust.attacks.norms import TINY, column, row_sum
from sanrobust.attacks.problem import AttackOutcome, Point, Problem, forward

ALPHA = 0.1
"""Largest share of the way from the image itself in a step (alpha_max)."""
BEYOND = 1.05
"""How far a step goes on behind the plane (eta)."""
BACK = 0.9
"""What is left of the way from the image after a step back (beta)."""
_SHORT = 1e-8


@dataclass(frozen=True)
class Fab:
    """A boundary walk.

    Attributes:
        iters: steps.
        start: (B, 3, H, W) of the problem, where it begins: at the images, or near them.
        targets: (B,) int64 of the problem, the class beyond the boundary; None for the nearest of
            all, which takes K - 1 gradients a step.
    """

    iters: int
    start: Tensor
    targets: Tensor | None = None

    def __call__(self, problem: Problem) -> AttackOutcome:
        """Attack a problem; an image is done at the first point in the ball that loses the label.

        An image that keeps its label in the ball stays as it is.
        """
        outcome = AttackOutcome.of(problem)
        index = torch.arange(len(problem.ids), device=problem.images.device)
        targets, pixels = self.targets, self.start
        for step in range(self.iters):
            point = self._nearest(problem, pixels, targets)
            outcome.note(index, point)
            pixels = _beyond(problem, point)
            # Where it is, a loss that needs no gradient: only the class counts.
            there = problem.look(pixels, pair, targets, with_gradient=False)
            inside = problem.norm.size(pixels - problem.images) <= problem.radius
            rest = outcome.leave(index, replace(there, wrong=there.wrong & inside), step + 1)
            pixels = _back(problem, there)
            if len(rest) < len(index):
                index, problem = index[rest], problem.part(rest)
                pixels = pixels.index_select(0, rest)
                targets = None if targets is None else targets[rest]
            if not len(index):
                break
        return outcome

    def _nearest(self, problem: Problem, pixels: Tensor, targets: Tensor | None) -> Point:
        if targets is not None:
            return problem.look(pixels, pair, targets)
        return nearest_boundary(problem, pixels)


def nearest_boundary(problem: Problem, pixels: Tensor) -> Point:
    """Return the point with the value and gradient of the wrong class whose plane is nearest.

    ``loss`` is the label's logit minus that of the class. One pass forward, K - 1 backward.
    """
    run = forward(problem.model, pixels, with_graph=True, num_classes=problem.num_classes)
    logits = run.logits.detach()
    labels = problem.labels
    found: Point | None = None
    shortest = logits.new_full(labels.shape, float("inf"))
    for place in range(1, problem.num_classes):
        classes = (labels + place) % problem.num_classes  # each wrong class once
        values = pair(run.logits, classes, labels)
        gradient = torch.autograd.grad(values.sum(), run.pixels,
                                       retain_graph=place + 1 < problem.num_classes)[0]
        guards.check_finite(logits, gradient)
        value = values.detach()
        way = value.abs() / problem.norm.dual(gradient).clamp_min(TINY)
        point = Point(run.pixels.detach(), logits, value, gradient, logits.argmax(1) != labels)
        found = point if found is None else found.where(way < shortest, point)
        shortest = torch.minimum(way, shortest)
    assert found is not None
    return found


def _beyond(problem: Problem, point: Point) -> Tensor:
    """Return points behind the plane, drawn toward the image (equation 9)."""
    assert point.gradient is not None
    normal = point.gradient.flatten(1)
    here, image = point.pixels.flatten(1), problem.images.flatten(1)
    offset = point.loss - row_sum(normal * (here - image))
    ways = way_to(torch.cat([here, image]), torch.cat([normal, normal]),
                  torch.cat([point.loss, offset]), euclidean=not problem.norm.levels)
    from_here, from_image = ways.chunk(2)
    near = problem.norm.size(from_here).clamp_min(_SHORT)
    far = problem.norm.size(from_image).clamp_min(_SHORT)
    share = (near / (near + far)).clamp_max(ALPHA).unsqueeze(1)
    mixed = (here + BEYOND * from_here) * (1 - share) + (image + BEYOND * from_image) * share
    return mixed.clamp_(0, 1).view_as(point.pixels)


def _back(problem: Problem, there: Point) -> Tensor:
    """Return where the walk goes on: behind the boundary it turns toward the image."""
    nearer = problem.images + (there.pixels - problem.images) * BACK
    return torch.where(column(there.wrong, nearer), nearer, there.pixels)
