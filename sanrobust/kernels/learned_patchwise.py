"""The custom operators of patchwise attention whose mapping is trained, with their gradients.

The hidden layer of a position is made of its whole patch by one, the weights of the hidden layer
by the other; between them torch normalises it. Letters are those of ``folding``.
"""

from __future__ import annotations

from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from torch.library import custom_op
from torch.utils.flop_counter import register_flop_formula

from sanrobust.kernels import plain
from sanrobust.kernels.gradients import Gradients, again, refuse_second_derivative, wanted
from sanrobust.kernels.kernelset import learning_kernels
from sanrobust.kernels.plain import PaddingMode, Window

_PATCH = "Tensor query, Tensor key, Tensor key_scale, Tensor key_shift, Tensor w1"
_WEIGHTED = "Tensor hidden, Tensor value, Tensor w2, Tensor b2"
_SETTINGS = "SymInt footprint, str padding_mode, str backend"
_COUNT = 3
Shape = tuple[int, ...]


def _window(footprint: int, padding_mode: str) -> Window:
    return Window(footprint, padding_mode=cast(PaddingMode, padding_mode))


@custom_op("sanrobust::patch_hidden", mutates_args=(), schema=f"({_PATCH}, {_SETTINGS}) -> Tensor")
def patch_hidden(query: Tensor, key: Tensor, key_scale: Tensor, key_shift: Tensor, w1: Tensor,
                 footprint: int, padding_mode: str, backend: str) -> Tensor:
    return learning_kernels(backend).patch_hidden(query, key, key_scale, key_shift, w1,
                                                  _window(footprint, padding_mode))


@patch_hidden.register_fake
def _(query: Tensor, key: Tensor, key_scale: Tensor, key_shift: Tensor, w1: Tensor,
      footprint: int, padding_mode: str, backend: str) -> Tensor:
    return query.new_empty(len(query), len(w1), *query.shape[2:])


@custom_op("sanrobust::patch_hidden_backward", mutates_args=(),
           schema=f"(Tensor grad, {_PATCH}, {_SETTINGS}) -> "
                  "(Tensor, Tensor, Tensor, Tensor, Tensor)")
def patch_hidden_backward(grad: Tensor, query: Tensor, key: Tensor, key_scale: Tensor,
                          key_shift: Tensor, w1: Tensor, footprint: int, padding_mode: str,
                          backend: str) -> tuple[Tensor, ...]:
    return learning_kernels(backend).patch_hidden_backward(
        grad, query, key, key_scale, key_shift, w1, _window(footprint, padding_mode))


@custom_op("sanrobust::patch_weighted", mutates_args=(),
           schema=f"({_WEIGHTED}, {_SETTINGS}) -> Tensor")
def patch_weighted(hidden: Tensor, value: Tensor, w2: Tensor, b2: Tensor, footprint: int,
                   padding_mode: str, backend: str) -> Tensor:
    return learning_kernels(backend).patch_weighted(hidden, value, w2, b2,
                                                    _window(footprint, padding_mode))


@patch_weighted.register_fake
def _(hidden: Tensor, value: Tensor, w2: Tensor, b2: Tensor, footprint: int, padding_mode: str,
      backend: str) -> Tensor:
    return value.new_empty(value.shape)


@custom_op("sanrobust::patch_weighted_backward", mutates_args=(),
           schema=f"(Tensor grad, {_WEIGHTED}, {_SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)")
def patch_weighted_backward(grad: Tensor, hidden: Tensor, value: Tensor, w2: Tensor, b2: Tensor,
                            footprint: int, padding_mode: str, backend: str) -> tuple[Tensor, ...]:
    return learning_kernels(backend).patch_weighted_backward(
        grad, hidden, value, w2, b2, _window(footprint, padding_mode))


@patch_hidden_backward.register_fake
@patch_weighted_backward.register_fake
def _(grad: Tensor, *given: Any) -> tuple[Tensor, ...]:
    return tuple(each.new_empty(each.shape) for each in given[:-_COUNT])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.settings = inputs[-_COUNT:]
    ctx.save_for_backward(*inputs[:-_COUNT])


def _hidden_gradient(ctx: Any, grad: Tensor) -> Gradients:
    return _gradient(ctx, grad, _hidden, torch.ops.sanrobust.patch_hidden_backward)


def _weighted_gradient(ctx: Any, grad: Tensor) -> Gradients:
    return _gradient(ctx, grad, _weighted, torch.ops.sanrobust.patch_weighted_backward)


def _gradient(ctx: Any, grad: Tensor, plainly: Any, operator: Any) -> Gradients:
    if torch.is_grad_enabled():
        window = _window(*ctx.settings[:2])
        grads = again(ctx, grad, lambda *tensors: plainly(window, *tensors))
    else:
        grads = wanted(operator(grad, *ctx.saved_tensors, *ctx.settings), ctx.needs_input_grad)
    return (*grads, *[None] * _COUNT)


def _hidden(window: Window, query: Tensor, key: Tensor, key_scale: Tensor, key_shift: Tensor,
            w1: Tensor) -> Tensor:
    around = plain.neighbours(key, window).transpose(1, 2)
    around = around * key_scale.unsqueeze(2) + key_shift.unsqueeze(2)
    patch = torch.relu(torch.cat((query.flatten(2), around.flatten(1, 2)), 1))
    return (w1 @ patch).view(len(query), len(w1), *query.shape[2:])


def _weighted(window: Window, hidden: Tensor, value: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    weight = w2 @ hidden.flatten(2) + b2[:, None]
    weight = weight.view(len(hidden), window.neighbours, -1, weight.shape[2]).transpose(1, 2)
    around = plain.neighbours(value, window).view(len(value), -1, *weight.shape[1:])
    attended: Tensor = (around * weight.unsqueeze(1)).sum(3)
    return attended.view(value.shape)


@register_flop_formula(torch.ops.sanrobust.patch_hidden)
def _hidden_flops(query: Shape, key: Shape, key_scale: Shape, key_shift: Shape, w1: Shape,
                  *settings: Any, **kwargs: Any) -> int:
    """2 * B * H * W * (1 + K2) * R * D."""
    return 2 * query[0] * prod(query[2:]) * prod(w1)


@register_flop_formula(torch.ops.sanrobust.patch_weighted)
def _weighted_flops(hidden: Shape, value: Shape, w2: Shape, b2: Shape, footprint: int,
                    *settings: Any, **kwargs: Any) -> int:
    """2 * B * H * W * (K2 * M * D + K2 * O)."""
    return 2 * value[0] * prod(value[2:]) * (prod(w2) + footprint ** 2 * value[1])


@register_flop_formula(torch.ops.sanrobust.patch_hidden_backward)
def _hidden_backward_flops(grad: Shape, *shapes: Any, **kwargs: Any) -> int:
    """Twice as much as forward."""
    return 2 * _hidden_flops(*shapes)


@register_flop_formula(torch.ops.sanrobust.patch_weighted_backward)
def _weighted_backward_flops(grad: Shape, *shapes: Any, **kwargs: Any) -> int:
    """Twice as much as forward."""
    return 2 * _weighted_flops(*shapes)


patch_hidden.register_autograd(_hidden_gradient, setup_context=_setup)
patch_weighted.register_autograd(_weighted_gradient, setup_context=_setup)
for each in (patch_hidden_backward, patch_weighted_backward):
    refuse_second_derivative(each)
