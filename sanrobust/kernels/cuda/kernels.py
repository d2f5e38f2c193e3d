"""The CUDA kernels as a kernel set; ``kernelset`` says what each method is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from sanrobust.kernels.cuda import compiler, elementary
from sanrobust.kernels.cuda.compiler import Device
from sanrobust.kernels.cuda.general import GeneralPairwise, GeneralPatchwise
from sanrobust.kernels.cuda.launch import FindDevice, Maps
from sanrobust.kernels.cuda.narrow import NarrowPairwise, NarrowPatchwise
from sanrobust.kernels.cuda.tuned import TunedPairwise, TunedPatchwise
from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices
from sanrobust.kernels.plain import Window


class Attention(Protocol):
    """The kernels of one operator for maps of one shape."""

    def forward(self, maps: Maps, out: Tensor) -> None:
        """Write the attended values (B, O, H, W)."""
        ...

    def backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        """Write the gradients of query, key and value."""
        ...


def _cupy_device(maps: Tensor) -> Device:
    return compiler.device(maps.device.index)


class CupyKernels:
    """Elementary and fused operators on CUDA devices.

    Args:
        find_device: what runs kernels on a tensor's device.
    """

    def __init__(self, find_device: FindDevice = _cupy_device) -> None:
        self._find_device = find_device

    def aggregation(self, value: Tensor, weight: Tensor, window: Window) -> Tensor:
        """Sum the neighbours under their weights."""
        out = value.new_empty(*value.shape[:2], *window.output_size(value))
        elementary.aggregate(self._find_device(value), value, weight, window, out)
        return out

    def aggregation_backward(self, grad: Tensor, value: Tensor, weight: Tensor, window: Window,
                             needs_value: bool, needs_weight: bool) -> tuple[Tensor, Tensor]:
        """Return the gradients of value and weight; one not needed is empty."""
        device = self._find_device(grad)
        grad_value = value.new_empty(value.shape if needs_value else (0,))
        grad_weight = weight.new_empty(weight.shape if needs_weight else (0,))
        if needs_value:
            elementary.aggregate_value_grad(device, grad, weight, window, grad_value)
        if needs_weight:
            elementary.aggregate_weight_grad(device, grad, value, window, grad_weight)
        return grad_value, grad_weight

    def subtraction(self, query: Tensor, key: Tensor, window: Window) -> Tensor:
        """Return query_i - key_j."""
        height, width = window.output_size(query)
        out = query.new_empty(*query.shape[:2], window.neighbours, height * width)
        elementary.subtract(self._find_device(query), query, key, window, out)
        return out

    def subtraction_backward(self, grad: Tensor, size: tuple[int, int],
                             window: Window) -> tuple[Tensor, Tensor]:
        """Return the gradients of query and key."""
        shape = (*grad.shape[:2], *size)
        grads = grad.new_empty(shape), grad.new_empty(shape)
        elementary.subtract_grad(self._find_device(grad), grad, window, *grads)
        return grads

    def pairwise(self, query: Tensor, key: Tensor, value: Tensor, matrices: PairwiseMatrices,
                 window: Window) -> Tensor:
        """Attend with the softmax of the mapped differences."""
        maps = query, key, value
        return _attended(maps, lambda: self._pairwise(maps, matrices, window))

    def pairwise_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                          matrices: PairwiseMatrices,
                          window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the maps."""
        maps = query, key, value
        return _gradients(grad, maps, lambda: self._pairwise(maps, matrices, window))

    def patchwise(self, query: Tensor, key: Tensor, value: Tensor, matrices: PatchwiseMatrices,
                  window: Window) -> Tensor:
        """Attend with the mapped patches."""
        maps = query, key, value
        return _attended(maps, lambda: self._patchwise(maps, matrices, window))

    def patchwise_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                           matrices: PatchwiseMatrices,
                           window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the maps."""
        maps = query, key, value
        return _gradients(grad, maps, lambda: self._patchwise(maps, matrices, window))

    def _pairwise(self, maps: Maps, matrices: PairwiseMatrices, window: Window) -> Attention:
        device = self._find_device(maps[0])
        if NarrowPairwise.takes(maps, matrices, window):
            return NarrowPairwise(device, maps, matrices, window)
        if TunedPairwise.takes(device, maps, matrices, window):
            return TunedPairwise(device, maps, matrices, window)
        return GeneralPairwise(device, maps, matrices, window)

    def _patchwise(self, maps: Maps, matrices: PatchwiseMatrices, window: Window) -> Attention:
        device = self._find_device(maps[0])
        if NarrowPatchwise.takes(maps, matrices, window):
            return NarrowPatchwise(device, maps, matrices, window)
        if TunedPatchwise.takes(device, maps, matrices, window):
            return TunedPatchwise(device, maps, matrices, window)
        return GeneralPatchwise(device, maps, matrices, window)


def _attended(maps: Maps, find: Callable[[], Attention]) -> Tensor:
    """Return the attended values; kernels are found only where there are some."""
    value = maps[2]
    out = value.new_empty(value.shape)
    if out.numel():
        find().forward(maps, out)
    return out


def _gradients(grad: Tensor, maps: Maps, find: Callable[[], Attention]) -> Maps:
    """Return the gradients of the maps, which are 0 where there are no values."""
    query, key, value = (each.new_empty(each.shape) for each in maps)
    if value.numel():
        find().backward(grad, maps, (query, key, value))
        return query, key, value
    return query.zero_(), key.zero_(), value
