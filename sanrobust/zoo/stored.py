"""Tensors as a file describes them: their shapes at once, their values when somebody asks.

Shapes are tuples of lengths, strides and offsets count elements, sizes are in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_DIMENSIONS = 64
_LARGEST = 2**63


class Unreadable(Exception):
    """What a file asks for cannot be had; its text is a clause that says what."""


@dataclass(frozen=True)
class Storage:
    """Bytes of a file in which tensors lie.

    Attributes:
        dtype: of its elements, as the file says.
        size: in bytes.
        read: returns the bytes, uint8 (size,).
    """

    dtype: torch.dtype
    size: int
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file.

    Attributes:
        shape: as PyTorch has it.
        nbytes: what its elements take, were none of them repeated.
        read: returns the tensor.
        kind: what it is other than dense, in a word; empty for a dense one, which alone is read.
    """

    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Tensor]
    kind: str = ""


def held(tensor: Tensor) -> StoredTensor:
    """Return a tensor that is in memory already as a stored one."""
    return StoredTensor(tuple(tensor.shape), tensor.nbytes, lambda: tensor)


def special(kind: str) -> StoredTensor:
    """Return a tensor that is not dense, of which nothing else is known."""
    def read() -> Tensor:
        raise Unreadable(f"it holds a {kind} tensor")
    return StoredTensor((), 0, read, kind)


def stored(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...],
           dtype: torch.dtype) -> StoredTensor:
    """Return the tensor that lies in ``storage``; raises Unreadable unless it lies within."""
    numbers = (offset, *shape, *stride)
    if not all(type(each) is int and 0 <= each < _LARGEST for each in numbers) \
            or len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS:
        raise Unreadable("it holds a tensor whose shape, strides or offset are none")
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.size:
        raise Unreadable("it holds a tensor that reaches beyond its storage")

    def read() -> Tensor:
        values = storage.read()
        whole = values[:values.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
        return whole.new_empty(shape) if 0 in shape else whole.as_strided(shape, stride, offset)
    return StoredTensor(shape, math.prod(shape) * dtype.itemsize, read)
