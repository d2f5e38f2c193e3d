"""Fused attention of the SAN shapes on a device: float32, half and bfloat16 storage.

Letters: R relation channels, O value channels, M weight groups, K2 neighbours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sanrobust.kernels.cuda.arguments import PairwiseArgs, PatchwiseArgs
from sanrobust.kernels.cuda.compiler import Device
from sanrobust.kernels.cuda.launch import (DELTAS, ELEMENTS, PADDINGS, THREADS, Maps, aligned,
                                           kernel, new_pixel_rows, pixel_rows, table_kind, turns)
from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices, tensors
from sanrobust.kernels.plain import Window

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RELATIONS = (16, 32, 64, 128)
# The source of each kernel of patchwise attention.
PATCHWISE = {
    "patchwise_hidden": "patchwise_forward.cu",
    "patchwise_attend": "patchwise_forward.cu",
    "patchwise_hidden_grad": "patchwise_backward.cu",
    "patchwise_relation_grad": "patchwise_backward.cu",
    "patchwise_value_grad": "patchwise_backward.cu",
}
# Of pairwise.cuh: pixels of a strip, parts of a pixel's pairs, the widest layer in shared memory.
_STRIP, _PARTS, _STAGED = 2, 2, 64
# Strips taken together at footprint 7: as many as let two or three blocks share a multiprocessor
# of compute capability 8.0 and 9.0, with few idle rows in the last product.
_STRIPS = {16: 10, 32: 5, 64: 3, 128: 2}
_TILE = 8
# Below this many blocks tiles are cut smaller, so that all multiprocessors have work.
_FEW_BLOCKS = 512
_IMAGE_ELEMENTS = 1 << 31


def takes(maps: Maps, hidden: int, wanted_hidden: int, groups: int) -> bool:
    """Whether maps and layers have the widths of a SAN; ``wanted_hidden`` goes with R."""
    query, _, value = maps
    relation, channels = query.shape[1], value.shape[1]
    per_image = 8 * relation * query.shape[2] * query.shape[3]
    return (query.dtype in DTYPES and relation in RELATIONS and hidden == wanted_hidden
            and groups == relation // 2 and channels == 4 * relation
            and per_image < _IMAGE_ELEMENTS)


class TunedPairwise:
    """Pairwise attention with given matrices, where ``plan`` finds one.

    Args:
        maps: query, key and value.
    """

    def __init__(self, device: Device, maps: Maps, matrices: PairwiseMatrices,
                 window: Window) -> None:
        self._device, self._window = device, window
        self._relation = maps[0].shape[1]
        self._names = ELEMENTS[maps[0].dtype], str(self._relation), DELTAS[matrices.delta]
        self._table = table_kind(matrices)
        self._slots = window.neighbours + (window.padding_mode == "zeros")
        self._matrices = {name: aligned(each, torch.float32)
                          for name, each in tensors(matrices).items()}

    @staticmethod
    def takes(device: Device, maps: Maps, matrices: PairwiseMatrices, window: Window) -> bool:
        """Whether the kernels have this shape and a block's memory suffices."""
        groups, hidden = matrices.w2.shape
        relation, slots = maps[0].shape[1], window.neighbours + 1
        return (takes(maps, hidden, relation, groups)
                and _pairwise_bytes(relation, 1, slots) <= device.shared_limit())

    def forward(self, maps: Maps, out: Tensor) -> None:
        """Write the attended values (B, O, H, W)."""
        held, described = _described(maps)
        attended, described["out"] = new_pixel_rows(held[2])
        self._run("pairwise_forward", (), held[0], described)
        out.copy_(attended)

    def backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        """Write the gradients of query, key and value."""
        pixels = grad.shape[2] * grad.shape[3]
        groups = self._matrices["w2"].shape[0]
        kept = pixels * (self._slots * (4 * groups + self._relation // 8) + 4 * groups)
        for part in turns(grad.shape[0], kept):
            query, key, value = (each[part] for each in maps)
            for each, found in zip(grads, self._backward(grad[part], (query, key, value))):
                each[part].copy_(found)

    def _backward(self, grad: Tensor, maps: Maps) -> list[Tensor]:
        held, described = _described(maps)
        grad, described["grad"] = pixel_rows(grad)
        scratch = self._forward_again(held, described)
        grads = []
        for name, like in zip(("grad_query", "grad_key", "grad_value"), held):
            rows, described[name] = new_pixel_rows(like)
            grads.append(rows)
        described |= {name: each.data_ptr() for name, each in scratch.items()}
        for key in ("false", "true"):
            self._run("pairwise_backward", (key,), held[0], described)
        return grads

    def _forward_again(self, held: Maps, described: dict[str, Any]) -> dict[str, Tensor]:
        """Repeat the forward pass, keeping weights, signs and room for their dot products."""
        pixels, groups = _pixels(held[0]), self._matrices["w2"].shape[0]
        new = held[0].new_empty
        scratch = dict(
            alpha=new(pixels, self._slots, groups, dtype=torch.float32),
            signs=new(pixels, self._slots, self._relation // 16, dtype=torch.int16),
            dots=new(pixels, groups, dtype=torch.float32))
        rows, out = new_pixel_rows(held[2])
        kept = {name: scratch[name].data_ptr() for name in ("alpha", "signs")}
        self._run("pairwise_forward", (), held[0], described | kept | {"out": out})
        return scratch

    def _run(self, name: str, more: tuple[str, ...], query: Tensor,
             described: dict[str, Any]) -> None:
        images, relation, height, width = query.shape
        strips = self._strips()
        tile_height, tiles = _tiles(images, height, width)
        args = PairwiseArgs(
            images=images, height=height, width=width, relation=relation, hidden=relation,
            groups=relation // 2, channels=4 * relation, footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], slots=self._slots,
            tile_height=tile_height, tile_width=_TILE, strips=strips, **self._table, **described,
            **{name: each.data_ptr() for name, each in self._matrices.items()})
        which = kernel(f"{name}.cu", name, *self._names, *more)
        self._device.launch(which, images * tiles, THREADS, args,
                            _pairwise_bytes(relation, strips, self._slots))

    def _strips(self) -> int:
        limit, base = self._device.shared_limit(), _STRIPS[self._relation]
        strips = max(1, min(2 * base, base * 50 // self._slots))
        while strips > 1 and _pairwise_bytes(self._relation, strips, self._slots) > limit:
            strips -= 1
        return strips


class TunedPatchwise:
    """Patchwise attention with given matrices; arguments as ``TunedPairwise``."""

    def __init__(self, device: Device, maps: Maps, matrices: PatchwiseMatrices,
                 window: Window) -> None:
        self._device, self._window = device, window
        self._relation = maps[0].shape[1]
        self._names = ELEMENTS[maps[0].dtype], str(self._relation)
        self._matrices = {name: aligned(each, torch.float32)
                          for name, each in tensors(matrices).items()}

    @staticmethod
    def takes(device: Device, maps: Maps, matrices: PatchwiseMatrices, window: Window) -> bool:
        """Whether the kernels have this shape and a block's memory suffices."""
        columns, hidden = matrices.w2.shape
        relation = maps[0].shape[1]
        return (takes(maps, hidden, relation // 2, columns // window.neighbours)
                and max(shared for _, shared in _patchwise_blocks(relation).values())
                <= device.shared_limit())

    def forward(self, maps: Maps, out: Tensor) -> None:
        """Write the attended values (B, O, H, W)."""
        held, described = _described(maps)
        attended, described["out"] = new_pixel_rows(held[2])
        scratch = self._hidden(held, described)
        self._run("patchwise_attend", held[0], described, scratch)
        out.copy_(attended)

    def backward(self, grad: Tensor, maps: Maps, grads: Maps) -> None:
        """Write the gradients of query, key and value."""
        held, described = _described(maps)
        grad, described["grad"] = pixel_rows(grad)
        found = []
        for name, like in zip(("grad_query", "grad_key", "grad_value"), held):
            rows, described[name] = new_pixel_rows(like)
            found.append(rows)
        scratch = self._hidden(held, described)
        scratch["hidden_grad"] = torch.empty_like(scratch["h"])
        for name in ("patchwise_hidden_grad", "patchwise_relation_grad", "patchwise_value_grad"):
            self._run(name, held[0], described, scratch)
        for each, rows in zip(grads, found):
            each.copy_(rows)

    def _hidden(self, held: Maps, described: dict[str, Any]) -> dict[str, Tensor]:
        scratch = dict(h=held[0].new_empty(_pixels(held[0]), self._relation // 2,
                                           dtype=torch.float32))
        self._run("patchwise_hidden", held[0], described, scratch)
        return scratch

    def _run(self, name: str, query: Tensor, described: dict[str, Any],
             scratch: dict[str, Tensor]) -> None:
        images, relation, height, width = query.shape
        args = PatchwiseArgs(
            images=images, height=height, width=width, relation=relation, hidden=relation // 2,
            groups=relation // 2, channels=4 * relation, footprint=self._window.footprint,
            padding=PADDINGS[self._window.padding_mode], **described,
            **{name: each.data_ptr() for name, each in (self._matrices | scratch).items()})
        pixels, shared = _patchwise_blocks(relation)[name]
        self._device.launch(kernel(PATCHWISE[name], name, *self._names),
                            -(-images * height * width // pixels), THREADS, args, shared)


def _described(maps: Maps) -> tuple[Maps, dict[str, Any]]:
    """Query, key and value in the kernels' layout, and as arguments; both must live on."""
    pairs = [pixel_rows(each) for each in maps]
    held = pairs[0][0], pairs[1][0], pairs[2][0]
    return held, dict(zip(("query", "key", "value"), (each for _, each in pairs)))


def _pixels(maps: Tensor) -> int:
    return maps.shape[0] * maps.shape[2] * maps.shape[3]


def _tiles(images: int, height: int, width: int) -> tuple[int, int]:
    """Return the height of tiles and their number on a map."""
    tile_height = _TILE
    while True:
        tiles = -(-height // tile_height) * -(-width // _TILE)
        if images * tiles >= _FEW_BLOCKS or tile_height == 1:
            return tile_height, tiles
        tile_height //= 2


def _pairwise_bytes(relation: int, strips: int, slots: int) -> int:
    """Shared memory of a block of pairwise.cuh (``Memory``)."""
    pixels = strips * _STRIP
    across = relation // 8 if relation == 128 else relation // 4
    panel = 4 * THREADS // across * (relation + 4)
    floats = (pixels * slots * relation // 2 + max(panel, _PARTS * pixels * 4 * relation)
              + pixels * relation + 2 * pixels + 1)
    if relation <= _STAGED:
        floats += relation * relation * 3 // 2
    return 16 * pixels * slots + 4 * floats


def _patchwise_blocks(relation: int) -> dict[str, tuple[int, int]]:
    """Pixels and shared memory of a block of patchwise.cuh (``Memory``), for each kernel."""
    groups = relation // 2
    hidden = THREADS // (groups // 4) * (2 if relation == 16 else 4)
    weights = THREADS // (groups // 4) * (1 if relation == 16 else 2)
    relations = THREADS // (relation // 4) * 4
    of_weights = weights, 20 * weights + 16 + 4 * (weights * (groups + 4) + groups * groups)
    return {
        "patchwise_hidden": (hidden, 16 * hidden + 4 * (hidden * (relation + 4)
                                                        + relation * groups)),
        "patchwise_attend": of_weights,
        "patchwise_hidden_grad": of_weights,
        "patchwise_value_grad": of_weights,
        "patchwise_relation_grad": (relations, 16 * relations + 4 * (relations * (groups + 4)
                                                                     + groups * relation)),
    }
