"""One pass of a folded network over a batch: its memory, what it keeps, the kernels it calls.

Which kernels a network calls, and on which memory, depends on the shape of the batch alone. So a
pass is recorded once per shape, as a `Program`, and made again without asking the layers: the
interpreter's share of a pass, whose data the kernels have driven out of the caches, would
otherwise be several percent.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sanrobust.errors import UsageError
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import HINT, Arguments, address, require_memory

Call = tuple[str, Arguments]


@dataclass(frozen=True)
class Rows:
    """A batch of maps as rows.

    Attributes:
        values: (P, C), or (B, C) where the maps have been averaged.
        images, height, width: B, H and W.
    """

    values: Tensor
    images: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """P of the batch."""
        return self.images * self.height * self.width


class Buffers:
    """Memory that is used again by whatever fits.

    Attributes:
        bytes: what has been taken from the system.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._free: list[Tensor] = []
        self._blocks: dict[int, Tensor] = {}

    def take(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uninitialised memory of this shape."""
        needed = prod(shape) * dtype.itemsize
        block = self._fitting(needed)
        if block is None:
            block = torch.empty(needed, dtype=torch.uint8)
            self.bytes += needed
            self._blocks[block.data_ptr()] = block
        return block[:needed].view(dtype).view(shape)

    def give(self, *tensors: Tensor | None) -> None:
        """Take back memory that nobody reads any more; what came from elsewhere is ignored."""
        for tensor in tensors:
            block = None if tensor is None else self._blocks.get(tensor.data_ptr())
            if block is not None:
                insort(self._free, block, key=Tensor.numel)

    def _fitting(self, needed: int) -> Tensor | None:
        """Take the smallest free block that is large enough and not mostly wasted."""
        place = bisect_left(self._free, needed, key=Tensor.numel)
        if place == len(self._free) or self._free[place].numel() > 2 * needed:
            return None
        return self._free.pop(place)


class Tape:
    """What the layers of one forward pass keep for its backward pass, and what both call.

    Args:
        buffers: where the memory comes from, and goes back to when the tape is dropped.
        keep: whether a backward pass will follow.
    """

    def __init__(self, buffers: Buffers, *, keep: bool) -> None:
        self.buffers = buffers
        self.keep = keep
        self._kept: dict[int, tuple[Tensor | None, ...]] = {}
        self._sides: dict[int, tuple[int, int]] = {}
        self._calls: list[Call] = []

    def call(self, function: str, args: Arguments) -> None:
        """Run a kernel of ``src/api.h`` and remember the call.

        Raises BackendError when this machine has no kernels, and as `Library.call` does.
        """
        library.require().call(function, args)
        self._calls.append((function, args))

    def program(self, *tensors: Tensor) -> Program:
        """Return the calls since the last program; ``tensors`` are its own, not of the buffers."""
        calls, self._calls = self._calls, []
        return Program(calls, *tensors)

    def take(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """Return memory for something that only a backward pass reads; None without one."""
        return self.buffers.take(*shape, dtype=dtype) if self.keep else None

    def write(self, layer: object, rows: Rows, *tensors: Tensor | None) -> None:
        """Keep the tensors of a layer and the sides of its input ``rows``.

        They are given back at once when no backward pass follows.
        """
        if self.keep:
            self._kept[id(layer)] = tensors
            self._sides[id(layer)] = (rows.height, rows.width)
        else:
            self.buffers.give(*tensors)

    def give(self, tensor: Tensor) -> None:
        """Give memory back unless a layer keeps it."""
        if not any(each is tensor for kept in self._kept.values() for each in kept):
            self.buffers.give(tensor)

    @contextmanager
    def read(self, layer: object) -> Iterator[tuple[Tensor | None, ...]]:
        """Lend what the layer has kept; after the block its memory serves again."""
        tensors = self._kept.pop(id(layer))
        yield tensors
        self.buffers.give(*tensors)

    def sides(self, layer: object) -> tuple[int, int]:
        """Return the height and width of the layer's input."""
        return self._sides[id(layer)]

    def __del__(self) -> None:
        for tensors in self._kept.values():
            self.buffers.give(*tensors)


class Program:
    """Kernel calls that can be made again, for other tensors of the same shapes.

    The memory of the calls must still be there, and nobody else may be using it.

    Args:
        calls: which kernels were called, in order, and with what.
        tensors: those that will be others next time.
    """

    def __init__(self, calls: Iterable[Call], *tensors: Tensor) -> None:
        self._calls = list(calls)
        self._shapes = [tensor.shape for tensor in tensors]
        self._uses = [list(_uses(tensor, self._calls)) for tensor in tensors]

    def run(self, *tensors: Tensor) -> None:
        """Make the calls with these ``tensors`` in the place of the first ones.

        Raises UsageError for tensors that are not like the first ones.
        """
        for tensor, shape in zip(tensors, self._shapes, strict=True):
            require_memory("a tensor", tensor, torch.float32)
            if tensor.shape != shape:
                raise UsageError(f"this program must be given a tensor of shape {tuple(shape)}",
                                 seen=f"its shape is {tuple(tensor.shape)}", hint=HINT)
        for tensor, uses in zip(tensors, self._uses):
            for args, name in uses:
                setattr(args, name, address(tensor))
        kernels = library.require()
        for function, args in self._calls:
            kernels.call(function, args)


def _uses(tensor: Tensor, calls: Iterable[Call]) -> Iterator[tuple[Arguments, str]]:
    """Find the arguments that point to a tensor."""
    for _, args in calls:
        for name, *_ in args._fields_:
            if tensor.numel() and getattr(args, name) == address(tensor):
                yield args, name
