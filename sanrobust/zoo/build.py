"""From a configuration to a network, and what can be known of it without building one."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.families.catalog import family_of


def build(architecture: Architecture) -> nn.Module:
    """Build the network with fresh initial values, on the CPU and in training mode.

    The network maps normalised images (B, 3, H, W) to logits (B, K). Raises ModelError when the
    configuration cannot be built.
    """
    return family_of(architecture).build(architecture)


def parameter_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every state-dict entry, in order, without allocating any of them.

    Entries are parameters and buffers alike: what a checkpoint of the architecture holds.
    """
    return dict(_entries(architecture))


@lru_cache(maxsize=100)  # which network a file fits is looked for among all of them
def _entries(architecture: Architecture) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(value.shape))
                 for name, value in _weightless(architecture).state_dict().items())


def parameter_count(architecture: Architecture) -> int:
    """Return the number of trainable values (buffers such as BN statistics not included)."""
    return sum(value.numel() for value in _weightless(architecture).parameters())


def _weightless(architecture: Architecture) -> nn.Module:
    with torch.device("meta"):
        return build(architecture)
