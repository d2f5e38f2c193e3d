"""What ``torch.utils.flop_counter`` counts for the custom operators.

FLOPs are twice the multiply-adds of the formula, whatever a kernel really executes: what it
computes again in a backward pass, or saves at a border, is not counted. A subtraction is no
multiply-add and counts 0, as additions do in torch's own counts. So an attention layer costs the
same on every backend. Letters are those of ``plain``; P position channels, D hidden channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from sanrobust.kernels import operators  # noqa: F401 (defines the operators)

Shape = Sequence[int]


@register_flop_formula(torch.ops.sanrobust.aggregation)
def aggregation(value: Shape, weight: Shape, footprint: int, *settings: Any, out_shape: Shape,
                **kwargs: Any) -> int:
    """2 * K2 for each value of the output (B, O, H', W')."""
    return 2 * prod(out_shape) * footprint ** 2


@register_flop_formula(torch.ops.sanrobust.aggregation_backward)
def aggregation_backward(grad: Shape, value: Shape, weight: Shape, footprint: int, *settings: Any,
                         **kwargs: Any) -> int:
    """As much as forward for each of the two gradients that is needed; a dot product is one."""
    return 2 * prod(grad) * footprint ** 2 * sum(map(bool, settings[-2:]))


@register_flop_formula((torch.ops.sanrobust.subtraction,
                        torch.ops.sanrobust.subtraction_backward))
def subtraction(*args: Any, **kwargs: Any) -> int:
    """0."""
    return 0


@register_flop_formula(torch.ops.sanrobust.pairwise_attention)
def pairwise(query: Shape, key: Shape, value: Shape, position: Shape, matrices: Sequence[Shape],
             delta: str, absolute: bool, footprint: int, *settings: Any, **kwargs: Any) -> int:
    """2 * B * H * W * K2 * ((N + P) * D + D * M + O), and R where pairs are multiplied."""
    hidden, relations = matrices[0]
    per_pair = (relations + position[1]) * hidden + hidden * matrices[2][0] + value[1]
    return 2 * _pixels(query) * footprint ** 2 * (per_pair + _products(query, delta))


@register_flop_formula(torch.ops.sanrobust.pairwise_attention_backward)
def pairwise_backward(grad: Shape, query: Shape, key: Shape, value: Shape, position: Shape,
                      matrices: Sequence[Shape], delta: str, absolute: bool, footprint: int,
                      *settings: Any, **kwargs: Any) -> int:
    """2 * B * H * W * K2 * (N * D + D * M + 2 * O), and 2 * R where pairs are multiplied.

    These are the maps' gradients alone.
    """
    hidden, relations = matrices[0]
    per_pair = relations * hidden + hidden * matrices[2][0] + 2 * value[1]
    return 2 * _pixels(query) * footprint ** 2 * (per_pair + 2 * _products(query, delta))


@register_flop_formula(torch.ops.sanrobust.patchwise_attention)
def patchwise(query: Shape, key: Shape, value: Shape, matrices: Sequence[Shape], footprint: int,
              *settings: Any, **kwargs: Any) -> int:
    """2 * B * H * W * ((1 + K2) * R * D + D * K2 * M + K2 * O)."""
    return 2 * _pixels(query) * (_layers(matrices) + footprint ** 2 * value[1])


@register_flop_formula(torch.ops.sanrobust.patchwise_attention_backward)
def patchwise_backward(grad: Shape, query: Shape, key: Shape, value: Shape,
                       matrices: Sequence[Shape], footprint: int, *settings: Any,
                       **kwargs: Any) -> int:
    """2 * B * H * W * ((1 + K2) * R * D + D * K2 * M + 2 * K2 * O): the maps' gradients alone."""
    return 2 * _pixels(query) * (_layers(matrices) + 2 * footprint ** 2 * value[1])


@register_flop_formula(torch.ops.sanrobust.local_attention)
def local(query: Shape, key: Shape | None, value: Shape, embedding: Shape | None, heads: int,
          footprint: int, *settings: Any, **kwargs: Any) -> int:
    """2 * B * H * W * (K2 * (R + O) + K * R): without a key, or an embedding, less its part."""
    return _local(query, key, value, embedding, footprint)


@register_flop_formula(torch.ops.sanrobust.local_attention_backward)
def local_backward(grad: Shape, query: Shape, key: Shape | None, value: Shape,
                   embedding: Shape | None, heads: int, footprint: int, *settings: Any,
                   **kwargs: Any) -> int:
    """Twice as much as forward."""
    return 2 * _local(query, key, value, embedding, footprint)


def _local(query: Shape, key: Shape | None, value: Shape, embedding: Shape | None,
           footprint: int) -> int:
    compared = 0 if key is None else query[1]
    embedded = 0 if embedding is None else footprint * query[1]
    return 2 * _pixels(query) * (footprint ** 2 * (compared + value[1]) + embedded)


def _products(query: Shape, delta: str) -> int:
    return query[1] if delta in ("hadamard", "dot") else 0


def _pixels(maps: Shape) -> int:
    return maps[0] * maps[2] * maps[3]


def _layers(matrices: Sequence[Shape]) -> int:
    """Multiply-adds of both linear layers at one pixel, from the shapes of w1 and w2."""
    return prod(matrices[2]) + prod(matrices[5])
