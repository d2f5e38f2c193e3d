"""Fused attention of any shape and dtype on a device, with its scratch in device memory.

Letters: B images, R relation channels, O value channels, D hidden channels, M weight groups, K2
neighbours, H and W map pixels. With padding zeros a slot more stands for all neighbours outside.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sanrobust.kernels.cuda import elementary
from sanrobust.kernels.cuda.arguments import PairwiseArgs, PatchwiseArgs, map_of
from sanrobust.kernels.cuda.compiler import Device
from sanrobust.kernels.cuda.launch import (ELEMENTS, PADDINGS, Maps, aligned, each_value,
                                           kernel, slot_weights, turns)
from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices, accumulator
from sanrobust.kernels.plain import Window

_FILE = "general.cu"


class GeneralPairwise:
    """Pairwise attention with given matrices.

    Args:
        maps: query, key and value.
    """

    def __init__(self, device: Device, maps: Maps, matrices: PairwiseMatrices,
                 window: Window) -> None:
        self._device, self._window = device, window
        self._accumulator = accumulator(maps[0].dtype)
        self._element = ELEMENTS[maps[0].dtype]
        self._matrices = {name: aligned(each, self._accumulator)
                          for name, each in vars(matrices).items()}
        self._slots = window.neighbours + (window.padding_mode == "zeros")
        # Reflected neighbours share a slot with those inside, and values outside are 0.
        self._clipped = Window(window.footprint, padding_mode="zeros")

    def forward(self, maps: Maps, out: Tensor) -> None:
        """Write the attended values (B, O, H, W)."""
        for part in turns(out.shape[0], self._scratch_bytes(maps)):
            query, key, value = (each[part] for each in maps)
            alpha = self._alpha((query, key, value))
            elementary.aggregate(self._device, value, self._weights(alpha, value), self._clipped,
                                 out[part])

    def backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        """Write the gradients of query, key and value."""
        for part in turns(grad.shape[0], self._scratch_bytes(maps)):
            query, key, value = (each[part] for each in maps)
            self._backward(grad[part], (query, key, value),
                           (grads[0][part], grads[1][part], grads[2][part]))

    def _backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        value = maps[2]
        alpha = self._alpha(maps)
        elementary.aggregate_value_grad(self._device, grad, self._weights(alpha, value),
                                        self._clipped, grads[2])
        logit_grad = torch.empty_like(alpha)
        elementary.aggregate_weight_grad(self._device, grad, value, self._clipped,
                                         self._weights(logit_grad, value))
        hidden = self._matrices["w1"].shape[0]
        hidden_grad = alpha.new_empty(*alpha.shape[:2], hidden)
        described = dict(alpha=alpha.data_ptr(), logit_grad=logit_grad.data_ptr(),
                         hidden_grad=hidden_grad.data_ptr(), grad_query=map_of(grads[0]),
                         grad_key=map_of(grads[1]))
        pixels, slots, groups = alpha.shape
        self._run("pairwise_logit_grad", pixels * groups, maps, described)
        self._run("pairwise_hidden_grad", pixels * slots, maps, described)
        self._run("pairwise_query_grad", maps[0].numel(), maps, described)
        self._run("pairwise_key_grad", maps[0].numel(), maps, described)

    def _alpha(self, maps: Maps) -> Tensor:
        """Return the weights (B * H * W, slots, M), multiplicities included."""
        images, _, height, width = maps[0].shape
        groups = self._matrices["w2"].shape[0]
        alpha = maps[0].new_empty(images * height * width, self._slots, groups,
                                  dtype=self._accumulator)
        described = dict(alpha=alpha.data_ptr())
        self._run("pairwise_logits", alpha.shape[0] * self._slots, maps, described)
        self._run("pairwise_softmax", alpha.shape[0] * groups, maps, described)
        return alpha

    def _weights(self, alpha: Tensor, value: Tensor) -> Tensor:
        """View the slots inside the map as weights (B, M, K2, L)."""
        return slot_weights(alpha[:, :self._window.neighbours], value.shape[0])

    def _scratch_bytes(self, maps: Maps) -> int:
        groups, hidden = self._matrices["w2"].shape
        pixels = maps[0].shape[2] * maps[0].shape[3]
        return pixels * self._slots * (2 * groups + hidden) * self._accumulator.itemsize

    def _run(self, name: str, values: int, maps: Maps, described: dict[str, Any]) -> None:
        query, key, value = maps
        images, relation, height, width = query.shape
        groups, hidden = self._matrices["w2"].shape
        args = PairwiseArgs(
            images=images, height=height, width=width, relation=relation, hidden=hidden,
            groups=groups, channels=value.shape[1], footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], slots=self._slots,
            table_per_pixel=int(self._matrices["table"].shape[0] > 1), query=map_of(query),
            key=map_of(key), value=map_of(value), **described,
            **{name: each.data_ptr() for name, each in self._matrices.items()})
        each_value(self._device, kernel(_FILE, name, self._element), values, args)


class GeneralPatchwise:
    """Patchwise attention with given matrices; arguments as ``GeneralPairwise``."""

    def __init__(self, device: Device, maps: Maps, matrices: PatchwiseMatrices,
                 window: Window) -> None:
        self._device, self._window = device, window
        self._accumulator = accumulator(maps[0].dtype)
        self._element = ELEMENTS[maps[0].dtype]
        self._matrices = {name: aligned(each, self._accumulator)
                          for name, each in vars(matrices).items()}
        columns, self._hidden = matrices.w2.shape
        self._groups = columns // window.neighbours

    def forward(self, maps: Maps, out: Tensor) -> None:
        """Write the attended values (B, O, H, W)."""
        for part in turns(out.shape[0], self._scratch_bytes(maps)):
            query, key, value = (each[part] for each in maps)
            weights = self._weights(self._scratch((query, key, value)), value)
            elementary.aggregate(self._device, value, weights, self._window, out[part])

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
        elementary.aggregate_value_grad(self._device, grad, weights, self._window, grads[2])
        elementary.aggregate_weight_grad(self._device, grad, value, self._window, weights)
        scratch["hidden_grad"] = torch.empty_like(scratch["h"])
        described = dict(grad_query=map_of(grads[0]), grad_key=map_of(grads[1]))
        self._run("patchwise_hidden_grad", scratch["h"].numel(), maps, scratch, described)
        self._run("patchwise_query_grad", maps[0].numel(), maps, scratch, described)
        self._run("patchwise_key_grad", maps[0].numel(), maps, scratch, described)

    def _scratch(self, maps: Maps) -> dict[str, Tensor]:
        """Return the hidden layer (B * H * W, D) and the weights (B * H * W, K2, M)."""
        images, _, height, width = maps[0].shape
        pixels = images * height * width
        scratch = dict(
            h=maps[0].new_empty(pixels, self._hidden, dtype=self._accumulator),
            weight_grad=maps[0].new_empty(pixels, self._window.neighbours, self._groups,
                                          dtype=self._accumulator))
        self._run("patchwise_hidden", scratch["h"].numel(), maps, scratch, {})
        self._run("patchwise_weights", scratch["weight_grad"].numel(), maps, scratch, {})
        return scratch

    def _weights(self, scratch: dict[str, Tensor], value: Tensor) -> Tensor:
        return slot_weights(scratch["weight_grad"], value.shape[0])

    def _scratch_bytes(self, maps: Maps) -> int:
        pixels = maps[0].shape[2] * maps[0].shape[3]
        values = self._window.neighbours * self._groups + 2 * self._hidden
        return pixels * values * self._accumulator.itemsize

    def _run(self, name: str, values: int, maps: Maps, scratch: dict[str, Tensor],
             described: dict[str, Any]) -> None:
        query, key, value = maps
        images, relation, height, width = query.shape
        args = PatchwiseArgs(
            images=images, height=height, width=width, relation=relation, hidden=self._hidden,
            groups=self._groups, channels=value.shape[1], footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], query=map_of(query), key=map_of(key),
            value=map_of(value), **described,
            **{name: each.data_ptr() for name, each in (self._matrices | scratch).items()})
        each_value(self._device, kernel(_FILE, name, self._element), values, args)
