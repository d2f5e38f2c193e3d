"""The attack inside adversarial training (Madry et al. 2018): PGD in L-inf from a random start.

Letters: B images, S pixels of a side, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sanrobust.attacks.budget import LEVELS
from sanrobust.attacks.losses import cross_entropy
from sanrobust.attacks.norms import NORMS
from sanrobust.training.recipes import Recipe


def draw_noise(shape: tuple[int, ...], recipe: Recipe, epoch: int, step: int) -> Tensor:
    """Return where the images of a step start in their balls, uniform in [-1, 1], on the CPU."""
    seed = ((recipe.seed * 100_003 + epoch) * 1_000_003 + step + 1) % (1 << 63)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def attacked(model: nn.Module, pixels: Tensor, labels: Tensor, noise: Tensor,
             recipe: Recipe) -> Tensor:
    """Return the images of the last step, (B, 3, S, S) in [0, 1] and in their balls.

    Each step climbs the cross entropy of the label as the network computes it in eval mode, so
    that no batch statistics move and no image depends on its neighbours.

    Args:
        model: pixels in [0, 1] to logits (B, K); afterwards it is in training mode.
        pixels: (B, 3, S, S).
        labels: (B,) int64.
        noise: (B, 3, S, S) in [-1, 1], where the walk starts in units of the radius.
        recipe: its radius, step and number of steps.
    """
    norm = NORMS.get("linf")
    nearest = norm.projection(pixels, recipe.radius)
    point = nearest(noise * recipe.radius + pixels)
    with _frozen(model):
        for _ in range(recipe.attack_iters):
            point.requires_grad_()
            loss = cross_entropy(model(point), None, labels).sum()
            gradient, = torch.autograd.grad(loss, point)
            point = nearest(norm.direction(gradient).mul_(-float(recipe.attack_step) / LEVELS)
                            .add_(point.detach()))
    return point


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Have the model in eval mode and its weights without gradients."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    try:
        for weight in trained:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in trained:
            weight.requires_grad_()
        model.train()
