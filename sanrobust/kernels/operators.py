"""The custom operators ``torch.ops.sanrobust.*``: schemas, kernels and fake kernels.

``backend`` names the kernel set that computes. ``gradients`` and ``flops`` add to them, ``ops``
calls them. The matrices of the fused operators are those of ``folding``, in the order of its
dataclasses; a position goes in as it is, for its values decide how large its table is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.library import custom_op

from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices, accumulator
from sanrobust.kernels.kernelset import (fused_kernels, kernels, local_kernels,
                                         norm_kernels)
from sanrobust.kernels.plain import PaddingMode, Window, pooled_shape
from sanrobust.kernels.position import PositionCode, place_table, position_table
from sanrobust.kernels.relations import Delta


def _window(footprint: int, stride: int, dilation: int, padding_mode: str) -> Window:
    return Window(footprint, stride, dilation, cast(PaddingMode, padding_mode))


def _same_size(footprint: int, padding_mode: str) -> Window:
    return _window(footprint, 1, 1, padding_mode)


class _Pairwise:
    """A call of pairwise attention as kernels are given it.

    Args:
        matrices: those of ``FoldedPairwise.tensors``.
    """

    def __init__(self, query: Tensor, key: Tensor, position: Tensor, matrices: Sequence[Tensor],
                 delta: str, absolute: bool, window: Window) -> None:
        w1, w1t, w2, w2t, *code = matrices
        joins = delta == "concatenation"
        offset = code.pop() if len(code) > 4 and not joins else None
        dtype = accumulator(query.dtype)
        table = place_table(position, PositionCode(*code), dtype) if absolute \
            else position_table(position, PositionCode(*code), window, dtype)
        self.maps = query, key
        self._halves: tuple[Tensor, ...] = ()
        if joins:
            self._halves = torch.split(w1.to(query.dtype), query.shape[1], 1)
            self._whole = query, key
            self.maps = self._made(query, 0), self._made(key, 1).neg_()
        self.matrices = PairwiseMatrices(None if joins else w1, None if joins else w1t, w2, w2t,
                                         table, cast(Delta, delta), offset)

    def grads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the operator's maps for those of what kernels were given."""
        if not self._halves:
            return query, key, value
        return self._back(query, 0), self._back(key.neg_(), 1), value

    def _made(self, maps: Tensor, half: int) -> Tensor:
        return _mixed(torch.relu(maps), self._halves[half])

    def _back(self, grad: Tensor, half: int) -> Tensor:
        to_maps = _mixed(grad, self._halves[half].t())
        return to_maps.masked_fill_(self._whole[half] <= 0, 0)


def _mixed(maps: Tensor, weight: Tensor) -> Tensor:
    """Return ``weight`` (O, C) times every pixel of ``maps`` (B, C, H, W), in their own dtype."""
    with torch.autocast(maps.device.type, enabled=False):
        return F.conv2d(maps, weight[:, :, None, None])


_WINDOW = "SymInt footprint, SymInt stride, SymInt dilation, str padding_mode"
_MAPS = "Tensor query, Tensor key, Tensor value"
_LOCAL = ("Tensor query, Tensor? key, Tensor value, Tensor? embedding, SymInt heads, "
          "SymInt footprint, str padding_mode, str backend")
_FUSED = "Tensor[] matrices, SymInt footprint, str padding_mode, str backend"
_PAIRWISE = ("Tensor position, Tensor[] matrices, str delta, bool absolute, SymInt footprint, "
             "str padding_mode, str backend")


@custom_op("sanrobust::aggregation", mutates_args=(),
           schema=f"(Tensor value, Tensor weight, {_WINDOW}, str backend) -> Tensor")
def aggregation(value: Tensor, weight: Tensor, footprint: int, stride: int, dilation: int,
                padding_mode: str, backend: str) -> Tensor:
    return kernels(backend).aggregation(
        value, weight, _window(footprint, stride, dilation, padding_mode))


@aggregation.register_fake
def _(value: Tensor, weight: Tensor, footprint: int, stride: int, dilation: int, padding_mode: str,
      backend: str) -> Tensor:
    size = _window(footprint, stride, dilation, padding_mode).output_size(value)
    return value.new_empty(*value.shape[:2], *size)


@custom_op("sanrobust::aggregation_backward", mutates_args=(),
           schema=f"(Tensor grad, Tensor value, Tensor weight, {_WINDOW}, str backend, "
                  "bool needs_value, bool needs_weight) -> (Tensor, Tensor)")
def aggregation_backward(grad: Tensor, value: Tensor, weight: Tensor, footprint: int, stride: int,
                         dilation: int, padding_mode: str, backend: str, needs_value: bool,
                         needs_weight: bool) -> tuple[Tensor, Tensor]:
    return kernels(backend).aggregation_backward(
        grad, value, weight, _window(footprint, stride, dilation, padding_mode),
        needs_value, needs_weight)


@aggregation_backward.register_fake
def _(grad: Tensor, value: Tensor, weight: Tensor, footprint: int, stride: int, dilation: int,
      padding_mode: str, backend: str, needs_value: bool,
      needs_weight: bool) -> tuple[Tensor, Tensor]:
    return (value.new_empty(value.shape if needs_value else (0,)),
            weight.new_empty(weight.shape if needs_weight else (0,)))


@custom_op("sanrobust::subtraction", mutates_args=(),
           schema=f"(Tensor query, Tensor key, {_WINDOW}, str backend) -> Tensor")
def subtraction(query: Tensor, key: Tensor, footprint: int, stride: int, dilation: int,
                padding_mode: str, backend: str) -> Tensor:
    return kernels(backend).subtraction(
        query, key, _window(footprint, stride, dilation, padding_mode))


@subtraction.register_fake
def _(query: Tensor, key: Tensor, footprint: int, stride: int, dilation: int, padding_mode: str,
      backend: str) -> Tensor:
    window = _window(footprint, stride, dilation, padding_mode)
    height, width = window.output_size(query)
    return query.new_empty(*query.shape[:2], window.neighbours, height * width)


@custom_op("sanrobust::subtraction_backward", mutates_args=(),
           schema=f"(Tensor grad, SymInt height, SymInt width, {_WINDOW}, str backend) "
                  "-> (Tensor, Tensor)")
def subtraction_backward(grad: Tensor, height: int, width: int, footprint: int, stride: int,
                         dilation: int, padding_mode: str, backend: str) -> tuple[Tensor, Tensor]:
    return kernels(backend).subtraction_backward(
        grad, (height, width), _window(footprint, stride, dilation, padding_mode))


@subtraction_backward.register_fake
def _(grad: Tensor, height: int, width: int, footprint: int, stride: int, dilation: int,
      padding_mode: str, backend: str) -> tuple[Tensor, Tensor]:
    shape = (*grad.shape[:2], height, width)
    return grad.new_empty(shape), grad.new_empty(shape)


@custom_op("sanrobust::pairwise_attention", mutates_args=(),
           schema=f"({_MAPS}, {_PAIRWISE}) -> Tensor")
def pairwise_attention(query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                       matrices: Sequence[Tensor], delta: str, absolute: bool, footprint: int,
                       padding_mode: str, backend: str) -> Tensor:
    window = _same_size(footprint, padding_mode)
    call = _Pairwise(query, key, position, matrices, delta, absolute, window)
    return fused_kernels(backend).pairwise(*call.maps, value, call.matrices, window)


@pairwise_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, position: Tensor, matrices: Sequence[Tensor],
      *settings: Any) -> Tensor:
    return value.new_empty(value.shape)


@custom_op("sanrobust::pairwise_attention_backward", mutates_args=(),
           schema=f"(Tensor grad, {_MAPS}, {_PAIRWISE}) -> (Tensor, Tensor, Tensor)")
def pairwise_attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                                position: Tensor, matrices: Sequence[Tensor], delta: str,
                                absolute: bool, footprint: int, padding_mode: str,
                                backend: str) -> tuple[Tensor, Tensor, Tensor]:
    window = _same_size(footprint, padding_mode)
    call = _Pairwise(query, key, position, matrices, delta, absolute, window)
    return call.grads(*fused_kernels(backend).pairwise_backward(
        grad, *call.maps, value, call.matrices, window))


@pairwise_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, position: Tensor,
      matrices: Sequence[Tensor], *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


@custom_op("sanrobust::patchwise_attention", mutates_args=(),
           schema=f"({_MAPS}, {_FUSED}) -> Tensor")
def patchwise_attention(query: Tensor, key: Tensor, value: Tensor, matrices: Sequence[Tensor],
                        footprint: int, padding_mode: str, backend: str) -> Tensor:
    return fused_kernels(backend).patchwise(
        query, key, value, PatchwiseMatrices(*matrices), _same_size(footprint, padding_mode))


@patchwise_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, matrices: Sequence[Tensor], footprint: int,
      padding_mode: str, backend: str) -> Tensor:
    return value.new_empty(value.shape)


@custom_op("sanrobust::patchwise_attention_backward", mutates_args=(),
           schema=f"(Tensor grad, {_MAPS}, {_FUSED}) -> (Tensor, Tensor, Tensor)")
def patchwise_attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                                 matrices: Sequence[Tensor], footprint: int, padding_mode: str,
                                 backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return fused_kernels(backend).patchwise_backward(
        grad, query, key, value, PatchwiseMatrices(*matrices),
        _same_size(footprint, padding_mode))


@patchwise_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, matrices: Sequence[Tensor],
      footprint: int, padding_mode: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


@custom_op("sanrobust::local_attention", mutates_args=(), schema=f"({_LOCAL}) -> Tensor")
def local_attention(query: Tensor, key: Tensor | None, value: Tensor, embedding: Tensor | None,
                    heads: int, footprint: int, padding_mode: str, backend: str) -> Tensor:
    return local_kernels(backend).local(query, key, value, embedding, heads,
                                        _same_size(footprint, padding_mode))


@local_attention.register_fake
def _(query: Tensor, key: Tensor | None, value: Tensor, embedding: Tensor | None, heads: int,
      footprint: int, padding_mode: str, backend: str) -> Tensor:
    return value.new_empty(value.shape)


@custom_op("sanrobust::local_attention_backward", mutates_args=(),
           schema=f"(Tensor grad, {_LOCAL}) -> (Tensor, Tensor, Tensor, Tensor)")
def local_attention_backward(grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor,
                             embedding: Tensor | None, heads: int, footprint: int,
                             padding_mode: str,
                             backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return local_kernels(backend).local_backward(grad, query, key, value, embedding, heads,
                                                 _same_size(footprint, padding_mode))


@local_attention_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor, embedding: Tensor | None,
      heads: int, footprint: int, padding_mode: str,
      backend: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shapes = ((0,) if each is None else each.shape for each in (query, key, value, embedding))
    of_query, of_key, of_value, of_embedding = (query.new_empty(shape) for shape in shapes)
    return of_query, of_key, of_value, of_embedding


@custom_op("sanrobust::norm_relu", mutates_args=(),
           schema="(Tensor x, Tensor weight, Tensor bias, float eps, bool pooled, str backend) "
                  "-> (Tensor, Tensor, Tensor)")
def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: bool,
              backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return norm_kernels(backend).norm_relu(x, weight, bias, eps, pooled)


@norm_relu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, pooled: bool,
      backend: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = pooled_shape(x.shape) if pooled else tuple(x.shape)
    return (x.new_empty(shape), x.new_empty(2, x.shape[1], dtype=torch.float64),
            x.new_empty(shape if pooled else (0,), dtype=torch.uint8))


@custom_op("sanrobust::norm_relu_backward", mutates_args=(),
           schema="(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor stats, "
                  "Tensor codes, float eps, bool pooled, str backend) -> (Tensor, Tensor, Tensor)")
def norm_relu_backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor,
                       codes: Tensor, eps: float, pooled: bool,
                       backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return norm_kernels(backend).norm_relu_backward(grad, x, weight, bias, stats, codes, eps,
                                                    pooled)


@norm_relu_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, codes: Tensor,
      eps: float, pooled: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)
