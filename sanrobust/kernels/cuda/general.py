"""Fused attention of any shape and dtype on a device, with its scratch in device memory.

Letters: B images, R relation channels, O value channels, D hidden channels, M weight groups, K2
neighbours, H and W map pixels. With padding zeros a slot more stands for all neighbours outside.
"""

from __future__ import annotations

from ctypes import Structure
from typing import Any

import torch
from torch import Tensor

from sanrobust.kernels.cuda import elementary
from sanrobust.kernels.cuda.arguments import PairwiseArgs, PatchwiseArgs, map_of
from sanrobust.kernels.cuda.compiler import Device
from sanrobust.kernels.cuda.launch import (DELTAS, ELEMENTS, PADDINGS, Maps, aligned, each_value,
                                           kernel, slot_weights, table_kind, turns)
from sanrobust.kernels.folding import (PairwiseMatrices, PatchwiseMatrices, accumulator,
                                       tensors)
from sanrobust.kernels.plain import Window

_FILE = "general.cu"
# Kernels of pairwise attention that compare pairs.
COMPARING = ("logits", "hidden_grad", "query_grad", "key_grad")
Scratch = dict[str, Tensor]


class General:
    """Attention with given matrices, pairwise or patchwise.

    Args:
        maps: query, key and value.
    """

    operator: str
    struct: type[Structure]

    def __init__(self, device: Device, maps: Maps, matrices: PairwiseMatrices | PatchwiseMatrices,
                 window: Window) -> None:
        self._device, self._window = device, window
        self._accumulator = accumulator(maps[0].dtype)
        self._element = ELEMENTS[maps[0].dtype]
        self._matrices = {name: aligned(each, self._accumulator)
                          for name, each in tensors(matrices).items()}
        # The window in which weights and values meet.
        self._around = window

    def forward(self, maps: Maps, out: Tensor) -> None:
        """Write the attended values (B, O, H, W)."""
        for part in turns(out.shape[0], self._scratch_bytes(maps)):
            query, key, value = (each[part] for each in maps)
            weights = self._weights(self._scratch((query, key, value)), value)
            elementary.aggregate(self._device, value, weights, self._around, out[part])

    def backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        """Write the gradients of query, key and value."""
        for part in turns(grad.shape[0], self._scratch_bytes(maps)):
            query, key, value = (each[part] for each in maps)
            self._backward(grad[part], (query, key, value),
                           (grads[0][part], grads[1][part], grads[2][part]))

    def _backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        value = maps[2]
        scratch = self._scratch(maps)
        weights = self._weights(scratch, value)
        elementary.aggregate_value_grad(self._device, grad, weights, self._around, grads[2])
        weight_grads = self._weight_grads(scratch, value)
        elementary.aggregate_weight_grad(self._device, grad, value, self._around, weight_grads)
        self._hidden_grads(maps, scratch)
        described = dict(grad_query=map_of(grads[0]), grad_key=map_of(grads[1]))
        for name in ("query_grad", "key_grad"):
            self._run(name, maps[0].numel(), maps, scratch, **described)

    def _scratch(self, maps: Maps) -> Scratch:
        """Compute the weights, and return them with what they come from."""
        raise NotImplementedError

    def _weights(self, scratch: Scratch, value: Tensor) -> Tensor:
        """View the weights (B, M, K2, L) in the scratch."""
        raise NotImplementedError

    def _weight_grads(self, scratch: Scratch, value: Tensor) -> Tensor:
        """View where the scratch takes the gradient of the weights."""
        raise NotImplementedError

    def _hidden_grads(self, maps: Maps, scratch: Scratch) -> None:
        """Add the gradient of the hidden layer to the scratch, from that of the weights."""
        raise NotImplementedError

    def _scratch_bytes(self, maps: Maps) -> int:
        """Return the scratch of one image, that of the backward pass included."""
        raise NotImplementedError

    def _widths(self) -> dict[str, int]:
        """Return hidden channels, groups and what else this operator's arguments have."""
        raise NotImplementedError

    def _variant(self, name: str) -> tuple[str, ...]:
        """Return what else a kernel is instantiated for."""
        return ()

    def _run(self, name: str, values: int, maps: Maps, scratch: Scratch, **described: Any) -> None:
        query, key, value = maps
        images, relation, height, width = query.shape
        args = self.struct(
            images=images, height=height, width=width, relation=relation,
            channels=value.shape[1], footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], query=map_of(query), key=map_of(key),
            value=map_of(value), **self._widths(), **described,
            **{name: each.data_ptr() for name, each in (self._matrices | scratch).items()})
        which = kernel(_FILE, f"{self.operator}_{name}", self._element,
                       *self._variant(name))
        each_value(self._device, which, values, args)


class GeneralPairwise(General):
    """Pairwise attention: scratch has a row for each slot."""

    operator, struct = "pairwise", PairwiseArgs

    def __init__(self, device: Device, maps: Maps, matrices: PairwiseMatrices,
                 window: Window) -> None:
        super().__init__(device, maps, matrices, window)
        self._delta, self._table = DELTAS[matrices.delta], table_kind(matrices)
        self._slots = window.neighbours + (window.padding_mode == "zeros")
        self._groups, self._hidden = matrices.w2.shape
        # Reflected neighbours share a slot with those inside, and values outside are 0.
        self._around = Window(window.footprint, padding_mode="zeros")

    def _scratch(self, maps: Maps) -> Scratch:
        """Weights (B * H * W, slots, M), multiplicities included."""
        images, _, height, width = maps[0].shape
        pixels = images * height * width
        scratch = dict(alpha=maps[0].new_empty(pixels, self._slots, self._groups,
                                               dtype=self._accumulator))
        self._run("logits", pixels * self._slots, maps, scratch)
        self._run("softmax", pixels * self._groups, maps, scratch)
        return scratch

    def _weights(self, scratch: Scratch, value: Tensor) -> Tensor:
        return self._inside(scratch["alpha"], value)

    def _weight_grads(self, scratch: Scratch, value: Tensor) -> Tensor:
        scratch["logit_grad"] = torch.empty_like(scratch["alpha"])
        return self._inside(scratch["logit_grad"], value)

    def _inside(self, slots: Tensor, value: Tensor) -> Tensor:
        return slot_weights(slots[:, :self._window.neighbours], value.shape[0])

    def _hidden_grads(self, maps: Maps, scratch: Scratch) -> None:
        pixels = len(scratch["alpha"])
        scratch["hidden_grad"] = scratch["alpha"].new_empty(pixels, self._slots, self._hidden)
        self._run("logit_grad", pixels * self._groups, maps, scratch)
        self._run("hidden_grad", pixels * self._slots, maps, scratch)

    def _scratch_bytes(self, maps: Maps) -> int:
        pixels = maps[0].shape[2] * maps[0].shape[3]
        values = self._slots * (2 * self._groups + self._hidden)
        return pixels * values * self._accumulator.itemsize

    def _widths(self) -> dict[str, int]:
        return dict(hidden=self._hidden, groups=self._groups, slots=self._slots, **self._table)

    def _variant(self, name: str) -> tuple[str, ...]:
        return (self._delta,) if name in COMPARING else ()


class GeneralPatchwise(General):
    """Patchwise attention: scratch has the hidden layer and the weights of each pixel."""

    operator, struct = "patchwise", PatchwiseArgs

    def __init__(self, device: Device, maps: Maps, matrices: PatchwiseMatrices,
                 window: Window) -> None:
        super().__init__(device, maps, matrices, window)
        columns, self._hidden = matrices.w2.shape
        self._groups = columns // window.neighbours

    def _scratch(self, maps: Maps) -> Scratch:
        """The hidden layer (B * H * W, D) and the weights (B * H * W, K2, M)."""
        images, _, height, width = maps[0].shape
        pixels = images * height * width
        scratch = dict(
            h=maps[0].new_empty(pixels, self._hidden, dtype=self._accumulator),
            weight_grad=maps[0].new_empty(pixels, self._window.neighbours, self._groups,
                                          dtype=self._accumulator))
        self._run("hidden", scratch["h"].numel(), maps, scratch)
        self._run("weights", scratch["weight_grad"].numel(), maps, scratch)
        return scratch

    def _weights(self, scratch: Scratch, value: Tensor) -> Tensor:
        return slot_weights(scratch["weight_grad"], value.shape[0])

    def _weight_grads(self, scratch: Scratch, value: Tensor) -> Tensor:
        # In the place of the weights, which are needed no more.
        return self._weights(scratch, value)

    def _hidden_grads(self, maps: Maps, scratch: Scratch) -> None:
        scratch["hidden_grad"] = torch.empty_like(scratch["h"])
        self._run("hidden_grad", scratch["h"].numel(), maps, scratch)

    def _scratch_bytes(self, maps: Maps) -> int:
        pixels = maps[0].shape[2] * maps[0].shape[3]
        values = self._window.neighbours * self._groups + 2 * self._hidden
        return pixels * values * self._accumulator.itemsize

    def _widths(self) -> dict[str, int]:
        return dict(hidden=self._hidden, groups=self._groups)
