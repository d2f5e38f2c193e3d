"""Gradients of the custom operators.

Aggregation is linear in value and in weight, subtraction in query and key: their gradients are
operators again, which can be differentiated as often as one likes. The fused operators know the
gradients of the maps alone, everything else being frozen, and only once. Scalar attention knows
those of its embedding too, and normalisation all, so that they are fused in training; where their
gradients are to be differentiated again, torch's formula makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F

from sanrobust.errors import BackendError
from sanrobust.kernels import operators
from sanrobust.kernels.plain import Window

# One for each argument of the operator; for a list of tensors, a list.
Gradients = tuple[Tensor | list[None] | None, ...]
_SETTINGS = 5


def _aggregation_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, weight, *ctx.settings = inputs
    ctx.save_for_backward(value, weight)


def _aggregation_gradient(ctx: Any, grad: Tensor) -> Gradients:
    needs = ctx.needs_input_grad[:2]
    grads = torch.ops.sanrobust.aggregation_backward(grad, *ctx.saved_tensors, *ctx.settings,
                                                     *needs)
    return (*wanted(grads, needs), *[None] * _SETTINGS)


def _aggregation_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor,
                                Tensor]) -> None:
    grad, value, weight, *settings, needs_value, needs_weight = inputs
    ctx.save_for_backward(grad, value, weight)
    ctx.settings, ctx.needs = settings, (needs_value, needs_weight)


def _aggregation_backward_gradient(ctx: Any, of_value: Tensor, of_weight: Tensor) -> Gradients:
    """The gradients are bilinear themselves, each in grad and in the other argument."""
    grad, value, weight = ctx.saved_tensors
    ops, settings = torch.ops.sanrobust, ctx.settings
    to_grad = torch.zeros_like(grad)
    to_value = to_weight = None
    if ctx.needs[0]:
        to_grad = to_grad + ops.aggregation(of_value, weight, *settings)
        to_weight = ops.aggregation_backward(grad, of_value, weight, *settings, False, True)[1]
    if ctx.needs[1]:
        to_grad = to_grad + ops.aggregation(value, of_weight, *settings)
        to_value = ops.aggregation_backward(grad, value, of_weight, *settings, True, False)[0]
    return (to_grad, to_value, to_weight, *[None] * (_SETTINGS + 2))


def _subtraction_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, _, *ctx.settings = inputs
    ctx.size = query.shape[-2:]


def _subtraction_gradient(ctx: Any, grad: Tensor) -> Gradients:
    grads = torch.ops.sanrobust.subtraction_backward(grad, *ctx.size, *ctx.settings)
    return (*grads, *[None] * _SETTINGS)


def _subtraction_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor,
                                Tensor]) -> None:
    _, _, _, *ctx.settings = inputs


def _subtraction_backward_gradient(ctx: Any, of_query: Tensor, of_key: Tensor) -> Gradients:
    to_grad = torch.ops.sanrobust.subtraction(of_query, of_key, *ctx.settings)
    return (to_grad, *[None] * (2 + _SETTINGS))


class DotProduct(torch.autograd.Function):
    """The sums over channels of query_i * key_j: bilinear, as aggregation is.

    It is the gradient that aggregating ``key`` passes to its weights where ``query`` arrives, and
    its own gradients are an aggregation and what that passes to its value.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, groups: int, *settings: Any) -> Tensor:
        footprint = settings[0]
        positions = query.shape[2] * query.shape[3]
        like = key.new_empty(key.shape[0], groups, footprint ** 2, positions)
        ctx.save_for_backward(query, key)
        ctx.settings = settings
        product: Tensor = torch.ops.sanrobust.aggregation_backward(
            query, key, like, *settings, False, True)[1]
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        query, key = ctx.saved_tensors
        ops, needs = torch.ops.sanrobust, ctx.needs_input_grad
        to_query = ops.aggregation(key, grad, *ctx.settings) if needs[0] else None
        to_key = None
        if needs[1]:
            to_key = ops.aggregation_backward(query, key, grad, *ctx.settings, True, False)[0]
        return (to_query, to_key, *[None] * (1 + _SETTINGS))


def _pairwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, position, matrices, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, position, *matrices)
    ctx.matrices = len(matrices)


def _pairwise_gradient(ctx: Any, grad: Tensor) -> Gradients:
    _require_frozen(ctx, 3)
    query, key, value, position, *matrices = ctx.saved_tensors
    grads = torch.ops.sanrobust.pairwise_attention_backward(
        grad, query, key, value, position, matrices, *ctx.settings)
    return (*wanted(grads, ctx.needs_input_grad), None, [None] * ctx.matrices, *[None] * 5)


def _patchwise_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, value, matrices, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, *matrices)
    ctx.matrices = len(matrices)


def _patchwise_gradient(ctx: Any, grad: Tensor) -> Gradients:
    _require_frozen(ctx, 3)
    query, key, value, *matrices = ctx.saved_tensors
    grads = torch.ops.sanrobust.patchwise_attention_backward(
        grad, query, key, value, matrices, *ctx.settings)
    return (*wanted(grads, ctx.needs_input_grad), [None] * ctx.matrices, *[None] * 3)


def _local_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, heads, footprint, padding_mode, backend = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = heads, footprint, padding_mode, backend


def _local_gradient(ctx: Any, grad: Tensor) -> Gradients:
    if torch.is_grad_enabled():
        from sanrobust.kernels import reference  # composed of these very operators
        heads, footprint, padding_mode, _ = ctx.settings
        window = Window(footprint, padding_mode=padding_mode)
        return (*again(ctx, grad, lambda query, key, value, embedding: reference.local_attention(
            query, key, value, embedding, heads, window)), *[None] * 4)
    grads = torch.ops.sanrobust.local_attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (*wanted(grads, ctx.needs_input_grad), *[None] * len(ctx.settings))


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, *ctx.settings = inputs
    _, *found = output
    keep_without_gradient(ctx, *found)
    ctx.save_for_backward(x, weight, bias, *found)


def _norm_gradient(ctx: Any, grad: Tensor | None, *of_found: None) -> Gradients:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    if torch.is_grad_enabled():
        eps, pooled, _ = ctx.settings

        def plain(x: Tensor, weight: Tensor, bias: Tensor, *found: Tensor) -> Tensor:
            made = F.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps))
            return F.max_pool2d(made, 2) if pooled else made

        return (*again(ctx, grad, plain), *[None] * len(ctx.settings))
    grads = torch.ops.sanrobust.norm_relu_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (*wanted(grads, ctx.needs_input_grad), *[None] * len(ctx.settings))


def keep_without_gradient(ctx: Any, *outputs: Tensor) -> None:
    """Let outputs have no gradient, not one of zeros as large as they are."""
    ctx.mark_non_differentiable(*outputs)
    ctx.set_materialize_grads(False)


def again(ctx: Any, grad: Tensor, plain: Callable[..., Tensor]) -> Gradients:
    """The gradients by a formula of torch, for somebody who will differentiate them again."""
    # Views, as some may be one tensor.
    tensors = [each if each is None else each.view_as(each) for each in ctx.saved_tensors]
    needs = ctx.needs_input_grad
    wanted = [each for each, need in zip(tensors, needs) if need and each is not None]
    found = iter(torch.autograd.grad(plain(*tensors), wanted, grad, create_graph=True))
    return tuple(next(found) if need else None for need in needs[:-len(ctx.settings)])


def wanted(grads: tuple[Tensor, ...], needs: tuple[Any, ...]) -> Gradients:
    return tuple(grad if need else None for grad, need in zip(grads, needs))


def _require_frozen(ctx: Any, maps: int) -> None:
    """Refuse to leave out a gradient that somebody asked for."""
    if any(map(_needed, ctx.needs_input_grad[maps:])):
        raise BackendError("what fused attention reads besides the maps must be frozen",
                           seen="a position or a matrix requires a gradient",
                           hint="use backend='reference'")


def _needed(need: Any) -> bool:
    return any(need) if isinstance(need, (list, tuple)) else bool(need)


def refuse_second_derivative(operator: Any) -> None:
    """Let a custom operator say, where its derivative is asked for, that it has none."""
    operator.register_autograd(_second_derivative, setup_context=_nothing_to_keep)


def _nothing_to_keep(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    """A second derivative is refused whatever the inputs are."""


def _second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise BackendError("second derivatives of attention must be taken of the reference",
                       seen="the fused kernels computed the first ones",
                       hint="use backend='reference'")


operators.aggregation.register_autograd(_aggregation_gradient, setup_context=_aggregation_setup)
operators.aggregation_backward.register_autograd(_aggregation_backward_gradient,
                                                 setup_context=_aggregation_backward_setup)
operators.subtraction.register_autograd(_subtraction_gradient, setup_context=_subtraction_setup)
operators.subtraction_backward.register_autograd(_subtraction_backward_gradient,
                                                 setup_context=_subtraction_backward_setup)
operators.pairwise_attention.register_autograd(_pairwise_gradient, setup_context=_pairwise_setup)
operators.patchwise_attention.register_autograd(_patchwise_gradient,
                                                setup_context=_patchwise_setup)
operators.local_attention.register_autograd(_local_gradient, setup_context=_local_setup)
operators.norm_relu.register_autograd(_norm_gradient, setup_context=_norm_setup)
for each in (operators.pairwise_attention_backward, operators.patchwise_attention_backward,
             operators.local_attention_backward, operators.norm_relu_backward):
    refuse_second_derivative(each)
