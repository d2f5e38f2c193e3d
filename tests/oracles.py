"""Independent formulations of the attention layers, to hold the package against.

Two of them: explicit loops over images, channels and neighbours in float64, slow and plain, and
the usual formulation with ``unfold`` (of ``sanrobust.bench``), which materialises every neighbour
of every position. Neither calls anything of ``sanrobust.kernels`` except to read parameters from
its modules.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from sanrobust.bench.unfold import attention_by, unfold_attention
from sanrobust.kernels import modules

__all__ = ["attention_by", "loop_aggregation", "loop_neighbours", "loop_pairwise",
           "loop_patchwise", "unfold_attention"]


def reflect(index: int, length: int) -> int:
    """Mirror an index at the first and the last pixel, without repeating them."""
    if index < 0:
        return -index
    if index >= length:
        return 2 * (length - 1) - index
    return index


def pixel(maps: Tensor, y: int, x: int, padding_mode: str) -> Tensor:
    """Read the channels (B, C) of one pixel, continued past the border by ``padding_mode``."""
    height, width = maps.shape[-2:]
    if padding_mode == "reflect":
        return maps[:, :, reflect(y, height), reflect(x, width)]
    if 0 <= y < height and 0 <= x < width:
        return maps[:, :, y, x]
    return maps.new_zeros(maps.shape[:2])


def offsets(footprint: int, dilation: int = 1) -> list[tuple[int, int]]:
    """Displacements (dy, dx) of the neighbours, row by row."""
    reach = [(step - footprint // 2) * dilation for step in range(footprint)]
    return list(product(reach, reach))


def loop_neighbours(maps: Tensor, *, footprint: int, stride: int = 1, dilation: int = 1,
                    padding_mode: str = "reflect") -> Tensor:
    """Gather (B, C, H, W) to (B, C, K2, L), one pixel at a time."""
    images, channels, height, width = maps.shape
    centres = list(product(range(0, height, stride), range(0, width, stride)))
    around = offsets(footprint, dilation)
    gathered = maps.new_empty(images, channels, len(around), len(centres))
    for (n, (dy, dx)), (i, (y, x)) in product(enumerate(around), enumerate(centres)):
        gathered[:, :, n, i] = pixel(maps, y + dy, x + dx, padding_mode)
    return gathered


def loop_aggregation(value: Tensor, weight: Tensor, *, footprint: int, stride: int = 1,
                     dilation: int = 1, padding_mode: str = "reflect") -> Tensor:
    """y[b, c, i] = sum over n of weight[b, c % M, n, i] * value[b, c, neighbour n of i]."""
    images, channels, height, width = value.shape
    around = loop_neighbours(value, footprint=footprint, stride=stride, dilation=dilation,
                             padding_mode=padding_mode)
    groups = weight.shape[1]
    summed = value.new_zeros(images, channels, around.shape[-1])
    for b, c in product(range(images), range(channels)):
        for n in range(footprint * footprint):
            summed[b, c] += weight[b, c % groups, n] * around[b, c, n]
    return summed.view(images, channels, len(range(0, height, stride)), -1)


def loop_linear(layer: nn.Conv2d, values: Tensor) -> Tensor:
    """A 1x1 convolution as sums over input channels."""
    result = values.new_zeros(values.shape[0], layer.out_channels, *values.shape[2:])
    for out_channel in range(layer.out_channels):
        for in_channel in range(layer.in_channels):
            result[:, out_channel] += layer.weight[out_channel, in_channel, 0, 0] \
                * values[:, in_channel]
        if layer.bias is not None:
            result[:, out_channel] += layer.bias[out_channel]
    return result


def loop_norm(layer: nn.BatchNorm2d, values: Tensor) -> Tensor:
    """Normalise each channel by batch statistics in train mode, stored ones in eval mode."""
    result = torch.empty_like(values)
    assert layer.running_mean is not None and layer.running_var is not None
    for c in range(values.shape[1]):
        if layer.training:
            mean, variance = values[:, c].mean(), values[:, c].var(correction=0)
        else:
            mean, variance = layer.running_mean[c], layer.running_var[c]
        scaled = (values[:, c] - mean) / (variance + layer.eps).sqrt()
        result[:, c] = scaled * layer.weight[c] + layer.bias[c]
    return result


def loop_mapping(mapping: nn.Sequential, relations: Tensor) -> Tensor:
    """Norm, ReLU, linear, as often as the mapping has them."""
    assert len(mapping) % 3 == 0
    for first in range(0, len(mapping), 3):
        norm, rectifier, linear = mapping[first:first + 3]
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(linear, nn.Conv2d)
        assert isinstance(rectifier, nn.ReLU)
        relations = loop_linear(linear, loop_norm(norm, relations).clamp(min=0))
    return relations


def loop_grid(height: int, width: int) -> Tensor:
    """Coordinates (1, 2, H, W) in float64, x first, from -1 to 1."""
    grid = torch.empty(1, 2, height, width, dtype=torch.float64)
    for y, x in product(range(height), range(width)):
        grid[0, 0, y, x] = -1 + 2 * x / (width - 1)
        grid[0, 1, y, x] = -1 + 2 * y / (height - 1)
    return grid


def loop_pairwise(layer: modules.PairwiseAttention, features: Tensor) -> Tensor:
    """Pairwise attention with explicit loops over channels and neighbours."""
    footprint, padding_mode = layer.window.footprint, layer.window.padding_mode
    images, _, height, width = features.shape
    query, key, value = (loop_linear(conv, features)
                         for conv in (layer.conv1, layer.conv2, layer.conv3))
    encoded = loop_linear(layer.conv_p, loop_grid(height, width))
    channels = query.shape[1]
    keys = loop_neighbours(key, footprint=footprint, padding_mode=padding_mode)
    places = loop_neighbours(encoded, footprint=footprint, padding_mode=padding_mode)
    relations = features.new_empty(images, channels + 2, footprint ** 2, height * width)
    for n in range(footprint ** 2):
        for c in range(channels):
            relations[:, c, n] = query[:, c].flatten(1) - keys[:, c, n]
        for c in range(2):
            relations[:, channels + c, n] = encoded[0, c].flatten() - places[0, c, n]
    scores = loop_mapping(layer.conv_w, relations).exp()
    total = sum(scores[:, :, n] for n in range(footprint ** 2))
    assert isinstance(total, Tensor)
    return loop_aggregation(value, scores / total.unsqueeze(2), footprint=footprint,
                            padding_mode=padding_mode)


def loop_patchwise(layer: modules.PatchwiseAttention, features: Tensor) -> Tensor:
    """Patchwise attention with explicit loops over channels and neighbours."""
    footprint, padding_mode = layer.window.footprint, layer.window.padding_mode
    images, _, height, width = features.shape
    query, key, value = (loop_linear(conv, features)
                         for conv in (layer.conv1, layer.conv2, layer.conv3))
    channels, count = query.shape[1], footprint ** 2
    keys = loop_neighbours(key, footprint=footprint, padding_mode=padding_mode)
    patch = features.new_empty(images, channels * (1 + count), 1, height * width)
    for c in range(channels):
        patch[:, c, 0] = query[:, c].flatten(1)
        for n in range(count):
            patch[:, channels + c * count + n, 0] = keys[:, c, n]
    mapped = loop_mapping(layer.conv_w, patch)
    groups = mapped.shape[1] // count
    weight = features.new_empty(images, groups, count, height * width)
    for g, n in product(range(groups), range(count)):
        weight[:, g, n] = mapped[:, g * count + n, 0]
    return loop_aggregation(value, weight, footprint=footprint, padding_mode=padding_mode)
