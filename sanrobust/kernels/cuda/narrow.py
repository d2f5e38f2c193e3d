"""Fused attention of a SAN's first stage on a device, one thread for a pixel.

Letters: R relation channels, O value channels, D hidden channels, M weight groups.
"""

from __future__ import annotations

from ctypes import Structure
from typing import Any

import torch
from torch import Tensor

from sanrobust.kernels.cuda.arguments import PairwiseArgs, PatchwiseArgs, map_of
from sanrobust.kernels.cuda.compiler import Device, Kernel
from sanrobust.kernels.cuda.launch import ELEMENTS, PADDINGS, Maps, aligned, each_value, kernel
from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices, tensors
from sanrobust.kernels.plain import Window

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_RELATION, _GROUPS, _CHANNELS, _FOOTPRINT = 4, 2, 16, 3


def narrow_kernel(operator: str, name: str, element: str) -> Kernel:
    """Name a kernel of ``operator``: its forward pass or the gradients of query or key."""
    return kernel(f"narrow_{operator}.cu", f"narrow_{operator}_{name}", element)


class Narrow:
    """Attention of the only width that narrow.cuh has, pairwise or patchwise.

    Args:
        maps: query, key and value.
    """

    operator: str
    hidden: int
    struct: type[Structure]

    def __init__(self, device: Device, maps: Maps, matrices: PairwiseMatrices | PatchwiseMatrices,
                 window: Window) -> None:
        self._device, self._window = device, window
        self._element = ELEMENTS[maps[0].dtype]
        self._matrices = {name: aligned(each, torch.float32)
                          for name, each in tensors(matrices).items()}

    @classmethod
    def takes(cls, maps: Maps, matrices: PairwiseMatrices | PatchwiseMatrices,
              window: Window) -> bool:
        """Whether the kernels have the shape of these maps and matrices."""
        query, _, value = maps
        return (query.dtype in DTYPES and window.footprint == _FOOTPRINT
                and query.shape[1] == _RELATION and value.shape[1] == _CHANNELS
                and tuple(matrices.w2.shape) == (cls.columns(window), cls.hidden))

    @classmethod
    def columns(cls, window: Window) -> int:
        """Rows of w2 that the kernels expect."""
        raise NotImplementedError

    def forward(self, maps: Maps, out: Tensor) -> None:
        """Write the attended values (B, O, H, W)."""
        self._run("forward", maps, out=map_of(out))

    def backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        """Write the gradients of query, key and value."""
        images, _, height, width = grad.shape
        scratch = {name: grad.new_empty(images * height * width, columns, dtype=torch.float32)
                   for name, columns in self.scratch().items()}
        described: dict[str, Any] = {name: each.data_ptr() for name, each in scratch.items()}
        described |= dict(grad=map_of(grad), grad_query=map_of(grads[0]),
                          grad_key=map_of(grads[1]), grad_value=map_of(grads[2]))
        self._run("query", maps, **described)
        self._run("key", maps, **described)

    def scratch(self) -> dict[str, int]:
        """Floats per pixel that the query's pass leaves to the key's."""
        raise NotImplementedError

    def settings(self) -> dict[str, int]:
        """What this operator's arguments have besides the common ones."""
        return {}

    def _run(self, name: str, maps: Maps, **described: Any) -> None:
        query, key, value = maps
        images, _, height, width = query.shape
        args = self.struct(
            images=images, height=height, width=width, relation=_RELATION, hidden=self.hidden,
            groups=_GROUPS, channels=_CHANNELS, footprint=_FOOTPRINT,
            padding=PADDINGS[self._window.padding_mode], query=map_of(query), key=map_of(key),
            value=map_of(value), **self.settings(), **described,
            **{name: each.data_ptr() for name, each in self._matrices.items()})
        which = narrow_kernel(self.operator, name, self._element)
        each_value(self._device, which, images * height * width, args)


class NarrowPairwise(Narrow):
    """Pairwise attention of this width."""

    operator, hidden, struct = "pairwise", 4, PairwiseArgs

    @classmethod
    def takes(cls, maps: Maps, matrices: PairwiseMatrices | PatchwiseMatrices,
              window: Window) -> bool:
        """Whether the kernels have the shape, and subtract, as the matrices must want it."""
        assert isinstance(matrices, PairwiseMatrices)
        return (super().takes(maps, matrices, window) and matrices.delta == "subtraction"
                and not matrices.by_place)

    @classmethod
    def columns(cls, window: Window) -> int:
        """One row for each group."""
        return _GROUPS

    def scratch(self) -> dict[str, int]:
        """Logarithms of denominators, and dot products."""
        return dict(dots=2 * _GROUPS)

    def settings(self) -> dict[str, int]:
        """Whether there is a table for each pixel."""
        return dict(table_per_pixel=int(self._matrices["table"].shape[0] > 1))


class NarrowPatchwise(Narrow):
    """Patchwise attention of this width."""

    operator, hidden, struct = "patchwise", 2, PatchwiseArgs

    @classmethod
    def columns(cls, window: Window) -> int:
        """One row for each neighbour and group."""
        return window.neighbours * _GROUPS

    def scratch(self) -> dict[str, int]:
        """The hidden layer and its gradient."""
        return dict(h=self.hidden, hidden_grad=self.hidden)
