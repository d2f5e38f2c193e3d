"""Mixup (Zhang et al. 2018): images and their labels mixed in pairs.

Neighbours in a pass are pairs, so that processes which share a pass mix what one process would.
Letters: B images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sanrobust.training.recipes import Recipe


def draw_share(recipe: Recipe, epoch: int, step: int) -> float:
    """Return what an image keeps of itself in a step, drawn from Beta(alpha, alpha)."""
    drawn = np.random.default_rng([recipe.seed % (1 << 32), epoch, step])
    return float(drawn.beta(recipe.mixup, recipe.mixup))


def partners(count: int, device: torch.device) -> Tensor:
    """Return the place of each image's partner, (B,) int64; without one it is its own."""
    places = torch.arange(count, device=device)
    return torch.where((places ^ 1) < count, places ^ 1, places)


def mixed(pixels: Tensor, labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the mixed pixels (B, 3, S, S), and the labels of the partners (B,)."""
    others = partners(len(labels), labels.device)
    return pixels * share + pixels[others] * (1 - share), labels[others]
