"""What all operators need to launch kernels: names of types, sizes, memory, cutting of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ctypes import Structure

import torch
from torch import Tensor

from sanrobust.kernels.cuda.arguments import REFLECT, ZEROS, Map
from sanrobust.kernels.cuda.compiler import Device, Kernel
from sanrobust.kernels.folding import PairwiseMatrices
from sanrobust.kernels.relations import Delta

THREADS = 256
FOOTPRINTS = (3, 5, 7, 9, 11)
ELEMENTS = {torch.float32: "float", torch.float64: "double", torch.float16: "san::Half",
            torch.bfloat16: "san::BFloat16"}
PADDINGS = {"reflect": REFLECT, "zeros": ZEROS}
# As kernels are instantiated for them: the numbers of ``Delta`` in args.cuh.
DELTAS: dict[Delta, str] = {"subtraction": "0", "hadamard": "1", "dot": "2", "concatenation": "3"}
# Bytes of scratch for one run of kernels; more images than fit are taken in turns.
SCRATCH_BYTES = 256 << 20
# Values per vector access of the tuned kernels.
_QUAD = 4

FindDevice = Callable[[Tensor], Device]
Maps = tuple[Tensor, Tensor, Tensor]


def kernel(file: str, name: str, *arguments: str) -> Kernel:
    """Name the instantiation ``name<arguments>`` of ``file``."""
    return Kernel(file, f"san::{name}<{', '.join(arguments)}>")


def each_value(device: Device, which: Kernel, values: int, args: Structure) -> None:
    """Launch a kernel that has one thread for each of ``values``."""
    if values:
        device.launch(which, -(-values // THREADS), THREADS, args)


def turns(images: int, bytes_per_image: int) -> Iterator[slice]:
    """Cut a batch so that scratch stays bounded; no number depends on how it is cut."""
    step = max(1, SCRATCH_BYTES // max(bytes_per_image, 1))
    for first in range(0, images, step):
        yield slice(first, first + step)


def aligned(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a dense matrix of ``dtype`` whose rows may be read by vectors."""
    matrix = matrix.to(dtype).contiguous()
    return matrix.clone() if matrix.data_ptr() % (_QUAD * matrix.element_size()) else matrix


def table_kind(matrices: PairwiseMatrices) -> dict[str, int]:
    """Return what the arguments say of the table."""
    return dict(table_by_place=int(matrices.by_place),
                table_per_pixel=int(not matrices.by_place and len(matrices.table) > 1))


def slot_weights(scratch: Tensor, images: int) -> Tensor:
    """View scratch (B * L, K2, M) as the weights (B, M, K2, L) of an aggregation."""
    positions, neighbours, groups = scratch.shape
    row, slot, group = scratch.stride()
    each = positions // images
    return scratch.as_strided((images, groups, neighbours, each), (each * row, group, slot, row))


def pixel_rows(maps: Tensor) -> tuple[Tensor, Map]:
    """Return maps (B, C, H, W) in the layout of the tuned kernels, copied only if need be.

    The channels of a pixel lie together and pixels follow one another at one distance.
    """
    found = _pixel_map(maps)
    if found is None:
        dense = torch.empty_like(maps.permute(0, 2, 3, 1), memory_format=torch.contiguous_format)
        maps = dense.copy_(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        found = _pixel_map(maps)
        assert found is not None
    return maps, found


def new_pixel_rows(like: Tensor) -> tuple[Tensor, Map]:
    """Return uninitialised memory for maps shaped as ``like`` in the same layout."""
    images, channels, height, width = like.shape
    return pixel_rows(like.new_empty(images, height, width, channels).permute(0, 3, 1, 2))


def _pixel_map(maps: Tensor) -> Map | None:
    images, channels, height, width = maps.shape
    image, channel, row, column = maps.stride()
    pitch = column if width > 1 else row if height > 1 else channels
    if images == 1:
        image = height * width * pitch
    fits = (channel == 1 and pitch >= channels and (height == 1 or row == width * pitch)
            and pitch % _QUAD == 0 and image % _QUAD == 0
            and maps.data_ptr() % (_QUAD * maps.element_size()) == 0)
    if not fits:
        return None
    return Map(data=maps.data_ptr(), image=image, row=width * pitch, column=pitch, channel=1)
