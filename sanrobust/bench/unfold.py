"""The attention layers as released, with ``unfold`` in place of their compiled operators.

What anybody without those operators computes, and an oracle of the tests: it calls nothing of
``sanrobust.kernels`` but reads the parameters of its modules. Letters: B images, C channels, R
relation channels, O value channels, M weight groups, K2 neighbours, H and W map pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.design import DEFAULTS
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.reference import Window

Formulation = Callable[[nn.Module, Tensor], Tensor]


def unfold_neighbours(maps: Tensor, window: Window) -> Tensor:
    """Gather (B, C, H, W) to (B, C, K2, H * W) with the library's im2col."""
    images, channels = maps.shape[:2]
    mode = "reflect" if window.padding_mode == "reflect" else "constant"
    padded = F.pad(maps, (window.footprint // 2,) * 4, mode=mode)
    return F.unfold(padded, window.footprint).view(images, channels, window.neighbours, -1)


def unfold_aggregation(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Multiply all neighbours of (B, O, H, W) by weights (B, M, K2, H * W), then sum."""
    images, channels, height, width = value.shape
    groups = weight.shape[1]
    around = unfold_neighbours(value, window)
    around = around.view(images, channels // groups, groups, window.neighbours, -1)
    return (around * weight.unsqueeze(1)).sum(-2).view(images, channels, height, width)


def unfold_pairwise(query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                    mapping: nn.Module, window: Window) -> Tensor:
    """Pairwise attention of query and key (B, R, H, W), value (B, O, H, W), position (1, 2, H, W).

    ``mapping`` turns relations (B, R + 2, K2, H * W) into scores (B, M, K2, H * W).
    """
    relation = query.flatten(2).unsqueeze(2) - unfold_neighbours(key, window)
    place = position.flatten(2).unsqueeze(2) - unfold_neighbours(position, window)
    relation = torch.cat((relation, place.repeat(query.shape[0], 1, 1, 1)), 1)
    weight = _mapped(mapping, relation).softmax(-2)
    return unfold_aggregation(value, weight, window)


def unfold_patchwise(query: Tensor, key: Tensor, value: Tensor, mapping: nn.Module,
                     window: Window) -> Tensor:
    """Patchwise attention of query and key (B, R, H, W) and value (B, O, H, W).

    ``mapping`` turns patches (B, R * (1 + K2), 1, H * W) into weights (B, M * K2, 1, H * W).
    """
    patch = unfold_neighbours(key, window).flatten(1, 2).unsqueeze(2)
    mapped = _mapped(mapping, torch.cat((query.flatten(2).unsqueeze(2), patch), 1))
    weight = mapped.view(query.shape[0], -1, window.neighbours, mapped.shape[-1])
    return unfold_aggregation(value, weight, window)


def unfold_attention(layer: nn.Module, features: Tensor) -> Tensor:
    """Compute either released attention layer: ``features`` (B, C, H, W) to (B, O, H, W)."""
    assert isinstance(layer, (PairwiseAttention, PatchwiseAttention)) and is_released(layer)
    query, key, value = layer.conv1(features), layer.conv2(features), layer.conv3(features)
    if isinstance(layer, PatchwiseAttention):
        return unfold_patchwise(query, key, value, layer.conv_w, layer.window)
    height, width = features.shape[-2:]
    across = torch.linspace(-1, 1, width, dtype=features.dtype, device=features.device)
    down = torch.linspace(-1, 1, height, dtype=features.dtype, device=features.device)
    grid = torch.stack((across.expand(height, width), down[:, None].expand(height, width)))
    return unfold_pairwise(query, key, value, layer.conv_p(grid[None]), layer.conv_w, layer.window)


def is_released(module: nn.Module) -> bool:
    """Whether a module is an attention layer of one of the two released designs."""
    return (isinstance(module, (PairwiseAttention, PatchwiseAttention))
            and module.design == DEFAULTS[module.design.attention])


def compute_by(formulation: Formulation, network: nn.Module) -> list[nn.Module]:
    """Let ``formulation`` compute every released attention layer of ``network``; return those."""
    layers = [module for module in network.modules() if is_released(module)]
    for layer in layers:
        layer.forward = _bound(formulation, layer)
    return layers


@contextmanager
def attention_by(formulation: Formulation, network: nn.Module) -> Iterator[nn.Module]:
    """Compute every attention layer of ``network`` by ``formulation`` inside the block."""
    layers = compute_by(formulation, network)
    try:
        yield network
    finally:
        for layer in layers:
            del layer.forward


def _bound(formulation: Formulation, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(features: Tensor) -> Tensor:
        return formulation(layer, features)

    return forward


def _mapped(mapping: nn.Module, relations: Tensor) -> Tensor:
    """Apply the mapping with its linear layers as the library's 1x1 convolutions."""
    for layer in mapping.children():
        if isinstance(layer, nn.Conv2d):
            relations = F.conv2d(relations, layer.weight, layer.bias)
        else:
            relations = layer(relations)
    return relations
