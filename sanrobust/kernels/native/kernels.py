"""The compiled CPU kernels as a kernel set.

The elementary kernels take maps as they are; ``fused`` brings them into rows for attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import (AggregationArgs, ElementaryArgs,
                                                LearnedStemArgs, NormArgs, SubtractionArgs, dense)
from sanrobust.kernels.native.checks import (PADDINGS, element_of, require, require_settings,
                                             require_weight, require_window)
from sanrobust.kernels.native.fused import LocalCall, PairwiseCall, PatchwiseCall
from sanrobust.kernels.native.learning import HiddenCall, MomentsCall, WeightsCall
from sanrobust.kernels.plain import Window, pooled_shape


class NativeKernels:
    """The kernel set of the CPU; ``kernelset`` says what each method is given.

    Raises BackendError when the library was not built.
    """

    def __init__(self) -> None:
        self._library = library.require()

    def aggregation(self, value: Tensor, weight: Tensor, window: Window) -> Tensor:
        """Sum the neighbours under their weights."""
        element_of(value, weight)
        summed = value.new_empty(require_weight(value, weight, window))
        self._elementary("forward", AggregationArgs, window, value.shape, weight.shape[1],
                         first=value, second=weight, out=summed)
        return summed

    def aggregation_backward(self, grad: Tensor, value: Tensor, weight: Tensor, window: Window,
                             needs_value: bool, needs_weight: bool) -> tuple[Tensor, Tensor]:
        """Return the gradients of value and weight; one not needed is empty."""
        element_of(grad, value, weight)
        require(grad.shape == require_weight(value, weight, window), grad, value)
        grads = (value.new_empty(value.shape if needs_value else (0,)),
                 weight.new_empty(weight.shape if needs_weight else (0,)))
        self._elementary("backward", AggregationArgs, window, value.shape, weight.shape[1],
                         first=value, second=weight, grad=grad,
                         grad_first=grads[0] if needs_value else None,
                         grad_second=grads[1] if needs_weight else None)
        return grads

    def subtraction(self, query: Tensor, key: Tensor, window: Window) -> Tensor:
        """Return query_i - key_j."""
        element_of(query, key)
        require_window(window, query, key)
        require(query.shape == key.shape, query, key)
        height, width = window.output_size(query)
        relation = query.new_empty(*query.shape[:2], window.neighbours, height * width)
        self._elementary("forward", SubtractionArgs, window, query.shape, query.shape[1],
                         first=query, second=key, out=relation)
        return relation

    def subtraction_backward(self, grad: Tensor, size: tuple[int, int],
                             window: Window) -> tuple[Tensor, Tensor]:
        """Return the gradients of query and key."""
        element_of(grad)
        require_settings(window, *size)
        height, width = window.positions(*size)
        require(grad.dim() == 4 and grad.shape[2:] == (window.neighbours, height * width), grad)
        shape = (*grad.shape[:2], *size)
        grads = grad.new_empty(shape), grad.new_empty(shape)
        self._elementary("backward", SubtractionArgs, window, shape, grad.shape[1],
                         grad=grad, grad_first=grads[0], grad_second=grads[1])
        return grads

    def pairwise(self, query: Tensor, key: Tensor, value: Tensor, matrices: PairwiseMatrices,
                 window: Window) -> Tensor:
        """Attend with the softmax of the mapped differences."""
        return PairwiseCall(self._library, matrices, window).forward(query, key, value)

    def pairwise_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                          matrices: PairwiseMatrices,
                          window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the maps."""
        return PairwiseCall(self._library, matrices, window).backward(grad, query, key, value)

    def pairwise_learned(self, query: Tensor, key: Tensor, value: Tensor,
                         matrices: PairwiseMatrices, window: Window) -> tuple[Tensor, ...]:
        """Attend, and keep what the gradients need."""
        return PairwiseCall(self._library, matrices, window).attend(query, key, value)

    def pairwise_learned_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                                  matrices: PairwiseMatrices, kept: Sequence[Tensor],
                                  window: Window) -> tuple[Tensor, ...]:
        """Return the gradients of the maps, of w1, w2 and the table."""
        call = PairwiseCall(self._library, matrices, window)
        return call.learn(grad, query, key, value, *kept)

    def pairwise_moments(self, query: Tensor, key: Tensor, w1: Tensor, table: Tensor,
                         window: Window) -> Tensor:
        """Measure the hidden layer before its normalisation."""
        return MomentsCall(self._library, w1, table, window).forward(query, key)

    def pairwise_moments_backward(self, slope: Tensor, query: Tensor, key: Tensor, w1: Tensor,
                                  table: Tensor, window: Window) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, w1 and the table."""
        return MomentsCall(self._library, w1, table, window).backward(slope, query, key)

    def patchwise(self, query: Tensor, key: Tensor, value: Tensor, matrices: PatchwiseMatrices,
                  window: Window) -> Tensor:
        """Attend with the mapped patches."""
        return PatchwiseCall(self._library, matrices, window).forward(query, key, value)

    def patchwise_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                           matrices: PatchwiseMatrices,
                           window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the maps."""
        return PatchwiseCall(self._library, matrices, window).backward(grad, query, key, value)

    def patch_hidden(self, query: Tensor, key: Tensor, key_scale: Tensor, key_shift: Tensor,
                     w1: Tensor, window: Window) -> Tensor:
        """Return the hidden layer before its normalisation."""
        return HiddenCall(self._library, key_scale, key_shift, w1, window).forward(query, key)

    def patch_hidden_backward(self, grad: Tensor, query: Tensor, key: Tensor, key_scale: Tensor,
                              key_shift: Tensor, w1: Tensor,
                              window: Window) -> tuple[Tensor, ...]:
        """Return the gradients of all tensors."""
        call = HiddenCall(self._library, key_scale, key_shift, w1, window)
        return call.backward(grad, query, key)

    def patch_weighted(self, hidden: Tensor, value: Tensor, w2: Tensor, b2: Tensor,
                       window: Window) -> Tensor:
        """Attend with weights of the hidden layer."""
        return WeightsCall(self._library, w2, b2, window).forward(hidden, value)

    def patch_weighted_backward(self, grad: Tensor, hidden: Tensor, value: Tensor, w2: Tensor,
                                b2: Tensor, window: Window) -> tuple[Tensor, ...]:
        """Return the gradients of all tensors."""
        return WeightsCall(self._library, w2, b2, window).backward(grad, hidden, value)

    def local(self, query: Tensor, key: Tensor | None, value: Tensor, embedding: Tensor | None,
              heads: int, window: Window) -> Tensor:
        """Attend with the softmax of products."""
        return LocalCall(self._library, embedding, heads, window).forward(query, key, value)

    def local_backward(self, grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor,
                       embedding: Tensor | None, heads: int,
                       window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of the maps and of the embedding."""
        call = LocalCall(self._library, embedding, heads, window)
        return call.backward(grad, query, key, value)

    def learned_stem(self, pixels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled layer, and where its maxima were."""
        shape = pooled_shape((len(pixels), len(weight), *pixels.shape[2:]))
        y, codes = pixels.new_empty(shape), pixels.new_empty(shape, dtype=torch.uint8)
        self._stem("forward", pixels, weight, bias, y=y, codes=codes)
        return y, codes

    def learned_stem_backward(self, grad: Tensor, pixels: Tensor, weight: Tensor, bias: Tensor,
                              codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of weight and bias."""
        grads = torch.empty_like(weight), torch.empty_like(bias)
        self._stem("backward", pixels, weight, bias, grad=grad, codes=codes,
                   grad_weight=grads[0], grad_bias=grads[1])
        return grads

    def _stem(self, direction: str, pixels: Tensor, weight: Tensor, bias: Tensor,
              **tensors: Tensor) -> None:
        require(pixels.dim() == 4 and pixels.shape[1] == 3 and weight.shape == (len(bias), 3),
                pixels, weight, bias)
        held = {name: dense(each) for name, each in dict(
            tensors, pixels=pixels, weight=weight, bias=bias).items()}
        images, _, height, width = pixels.shape
        self._library.call(f"sanrobust_learned_stem_{direction}", LearnedStemArgs(
            images=images, height=height, width=width, channels=len(weight),
            threads=torch.get_num_threads(), **held))

    def norm_relu(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float,
                  pooled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise by the statistics of the batch."""
        shape = pooled_shape(x.shape) if pooled else x.shape
        y, stats = x.new_empty(shape), x.new_empty(2, x.shape[1], dtype=torch.float64)
        codes = x.new_empty(shape if pooled else 0, dtype=torch.uint8)
        self._norm("forward", eps, pooled, x=x, weight=weight, bias=bias, stats=stats, y=y,
                   codes=codes)
        return y, stats, codes

    def norm_relu_backward(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor,
                           stats: Tensor, codes: Tensor, eps: float,
                           pooled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the values, weight and bias."""
        require(grad.shape == (pooled_shape(x.shape) if pooled else x.shape), grad, x)
        grads = x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(bias)
        names = ("grad_x", "grad_weight", "grad_bias")
        self._norm("backward", eps, pooled, x=x, weight=weight, bias=bias, stats=stats, grad=grad,
                   codes=codes, **dict(zip(names, grads)))
        return grads

    def _norm(self, direction: str, eps: float, pooled: bool, **tensors: Tensor) -> None:
        held = {name: dense(each) for name, each in tensors.items()}
        x = held["x"]
        require(x.dim() >= 2 and x.numel() > 0, x)
        self._library.call(f"sanrobust_norm_{direction}", NormArgs(
            images=len(x), pixels=x[0, 0].numel(), channels=x.shape[1], eps=eps,
            pool_width=x.shape[3] if pooled else 0,
            element=element_of(x, held["weight"], held["bias"]),
            threads=torch.get_num_threads(), **held))

    def _elementary(self, direction: str, struct: type[ElementaryArgs], window: Window,
                    shape: tuple[int, ...], groups: int, **tensors: Tensor | None) -> None:
        images, channels, height, width = shape
        held = {name: None if each is None else dense(each) for name, each in tensors.items()}
        args = struct(
            images=images, height=height, width=width, channels=channels, groups=groups,
            footprint=window.footprint, stride=window.stride, dilation=window.dilation,
            padding=PADDINGS[window.padding_mode],
            element=element_of(*(each for each in held.values() if each is not None)),
            threads=torch.get_num_threads(), **held)
        if images and channels:
            self._library.call(f"sanrobust_{struct.operator}_{direction}", args)
