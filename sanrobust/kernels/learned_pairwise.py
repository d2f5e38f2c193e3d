"""The custom operators of pairwise attention whose mapping is trained, with their gradients.

The first layer of a pair is w1 relu(query_i - key_j) + table[displacement of j from i]; both
operators make it of each pair where it is needed, and store it nowhere. Queries and keys come
scaled, and w1 and the table normalised, by formulas of torch (``batch_mapping``). Reflection
alone, as what lies outside the map has no displacement. Letters are those of ``folding``.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from sanrobust.kernels import plain
from sanrobust.kernels.folding import PairwiseMatrices
from sanrobust.kernels.gradients import (Gradients, again, keep_without_gradient,
                                         refuse_second_derivative, wanted)
from sanrobust.kernels.kernelset import learning_kernels
from sanrobust.kernels.plain import Window

_LAYER = "Tensor query, Tensor key, Tensor table, Tensor w1"
_SETTINGS = "SymInt footprint, str backend"
Shape = tuple[int, ...]


@custom_op("sanrobust::learned_pairwise", mutates_args=(),
           schema=f"({_LAYER}, Tensor value, Tensor w2, SymInt placed, {_SETTINGS}) "
                  "-> (Tensor, Tensor, Tensor, Tensor)")
def learned_pairwise(query: Tensor, key: Tensor, table: Tensor, w1: Tensor, value: Tensor,
                     w2: Tensor, placed: int, footprint: int,
                     backend: str) -> tuple[Tensor, ...]:
    return learning_kernels(backend).pairwise_learned(
        query, key, value, _matrices(table, w1, w2), Window(footprint))


@learned_pairwise.register_fake
def _(query: Tensor, key: Tensor, table: Tensor, w1: Tensor, value: Tensor, w2: Tensor,
      placed: int, footprint: int, backend: str) -> tuple[Tensor, ...]:
    # How much is kept is for the kernels to say.
    kept = (torch.library.get_ctx().new_dynamic_size() for _ in range(3))
    y, alpha, signs = (value.new_empty(size) for size in kept)
    return value.new_empty(value.shape), y, alpha, signs.to(torch.int16)


@custom_op("sanrobust::learned_pairwise_backward", mutates_args=(),
           schema=f"(Tensor grad, {_LAYER}, Tensor value, Tensor w2, Tensor[] kept, "
                  f"SymInt placed, {_SETTINGS}) "
                  "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def learned_pairwise_backward(grad: Tensor, query: Tensor, key: Tensor, table: Tensor, w1: Tensor,
                              value: Tensor, w2: Tensor, kept: Sequence[Tensor], placed: int,
                              footprint: int, backend: str) -> tuple[Tensor, ...]:
    of_query, of_key, of_value, of_w1, of_w2, of_table = learning_kernels(
        backend).pairwise_learned_backward(grad, query, key, value, _matrices(table, w1, w2),
                                           kept, Window(footprint))
    return of_query, of_key, of_table[0], of_w1, of_value, of_w2


@learned_pairwise_backward.register_fake
def _(grad: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(each.new_empty(each.shape) for each in tensors[:6])


@custom_op("sanrobust::pair_moments", mutates_args=(),
           schema=f"({_LAYER}, {_SETTINGS}) -> Tensor")
def pair_moments(query: Tensor, key: Tensor, table: Tensor, w1: Tensor, footprint: int,
                 backend: str) -> Tensor:
    return learning_kernels(backend).pairwise_moments(query, key, w1, table, Window(footprint))


@pair_moments.register_fake
def _(query: Tensor, key: Tensor, table: Tensor, w1: Tensor, footprint: int,
      backend: str) -> Tensor:
    return query.new_empty(2, len(w1), dtype=torch.float64)


@custom_op("sanrobust::pair_moments_backward", mutates_args=(),
           schema=f"(Tensor slope, {_LAYER}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)")
def pair_moments_backward(slope: Tensor, query: Tensor, key: Tensor, table: Tensor, w1: Tensor,
                          footprint: int, backend: str) -> tuple[Tensor, ...]:
    of_query, of_key, of_w1, of_table = learning_kernels(backend).pairwise_moments_backward(
        slope, query, key, w1, table, Window(footprint))
    return of_query, of_key, of_table, of_w1


@pair_moments_backward.register_fake
def _(slope: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(each.new_empty(each.shape) for each in tensors[:4])


def _matrices(table: Tensor, w1: Tensor, w2: Tensor) -> PairwiseMatrices:
    return PairwiseMatrices(w1, w1.t().contiguous(), w2, w2.t().contiguous(), table.unsqueeze(0))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, placed, footprint, backend = inputs
    _, *kept = output
    ctx.settings = placed, footprint, backend
    keep_without_gradient(ctx, *kept)
    ctx.save_for_backward(*tensors, *kept)


def _moments_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, footprint, backend = inputs
    ctx.settings = footprint, backend
    ctx.save_for_backward(*tensors, output)


def _pairwise_gradient(ctx: Any, grad: Tensor | None, *of_kept: None) -> Gradients:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    window = Window(ctx.settings[1])
    if torch.is_grad_enabled():
        grads = again(ctx, grad, lambda *tensors: _attended(window, *tensors[:6]))
    else:
        *tensors, y, alpha, signs = ctx.saved_tensors
        grads = wanted(torch.ops.sanrobust.learned_pairwise_backward(
            grad, *tensors, [y, alpha, signs], *ctx.settings), ctx.needs_input_grad)
    return (*grads, *[None] * len(ctx.settings))


def _moments_gradient(ctx: Any, grad: Tensor) -> Gradients:
    window = Window(ctx.settings[0])
    if torch.is_grad_enabled():
        return (*again(ctx, grad, lambda *tensors: _moments(window, *tensors[:4])), None, None)
    *tensors, moments = ctx.saved_tensors
    query = tensors[0]
    pairs = prod(query[:, 0].shape) * window.neighbours
    slope = torch.stack((grad[0] / pairs, 2 * grad[1] / pairs, moments[0])).to(query.dtype)
    grads = torch.ops.sanrobust.pair_moments_backward(slope, *tensors, *ctx.settings)
    return (*wanted(grads, ctx.needs_input_grad), None, None)


def _first_layer(window: Window, query: Tensor, key: Tensor, table: Tensor, w1: Tensor) -> Tensor:
    """The first layer of all pairs (B, D, K2, L), by torch."""
    relation = query.flatten(2).unsqueeze(2) - plain.neighbours(key, window)
    layer: Tensor = torch.einsum("brkl,dr->bdkl", torch.relu(relation), w1)
    return layer + table[_displacements(query, window)].permute(2, 0, 1)


def _displacements(maps: Tensor, window: Window) -> Tensor:
    """The row of the table for each neighbour of each position, (K2, L)."""
    height, width = maps.shape[-2:]
    places = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    steps = plain.neighbours(places[None].double(), window)[0] - places.flatten(1)[:, None]
    rows, columns = (steps + window.padding).long().to(maps.device)
    row: Tensor = rows * window.footprint + columns
    return row


def _attended(window: Window, *tensors: Tensor) -> Tensor:
    *layer, value, w2 = tensors
    hidden = torch.relu(_first_layer(window, *layer))
    weight = torch.softmax(torch.einsum("bdkl,gd->bgkl", hidden, w2), -2)
    images, channels, height, width = value.shape
    around = plain.neighbours(value, window).view(images, -1, *weight.shape[1:])
    attended: Tensor = (around * weight.unsqueeze(1)).sum(3)
    return attended.view(images, channels, height, width)


def _moments(window: Window, *tensors: Tensor) -> Tensor:
    layer = _first_layer(window, *tensors).double()
    return torch.stack(torch.var_mean(layer, (0, 2, 3), correction=0)[::-1])


@register_flop_formula(torch.ops.sanrobust.learned_pairwise)
def _pairwise_flops(query: Shape, key: Shape, table: Shape, w1: Shape, value: Shape, w2: Shape,
                    placed: int, *settings: Any, **kwargs: Any) -> int:
    """2 * B * H * W * K2 * ((R + P) * D + D * M + O), as without a table."""
    per_pair = prod(w1) + placed * w1[0] + prod(w2) + value[1]
    return 2 * query[0] * query[2] * query[3] * (table[0] - 1) * per_pair


@register_flop_formula(torch.ops.sanrobust.learned_pairwise_backward)
def _pairwise_backward_flops(grad: Shape, query: Shape, key: Shape, table: Shape, w1: Shape,
                             value: Shape, w2: Shape, kept: Sequence[Shape], placed: int,
                             *settings: Any, **kwargs: Any) -> int:
    """Twice as much as forward."""
    return 2 * _pairwise_flops(query, key, table, w1, value, w2, placed)


@register_flop_formula(torch.ops.sanrobust.pair_moments)
def _moments_flops(query: Shape, key: Shape, table: Shape, w1: Shape, *settings: Any,
                   **kwargs: Any) -> int:
    """0: the layer is counted where it is used."""
    return 0


@register_flop_formula(torch.ops.sanrobust.pair_moments_backward)
def _moments_backward_flops(*args: Any, **kwargs: Any) -> int:
    """0, as forward."""
    return 0


learned_pairwise.register_autograd(_pairwise_gradient, setup_context=_setup)
pair_moments.register_autograd(_moments_gradient, setup_context=_moments_setup)
for each in (learned_pairwise_backward, pair_moments_backward):
    refuse_second_derivative(each)
