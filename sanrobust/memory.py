"""How many images fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sanrobust.device import free_memory

LARGEST_BATCH = 256
# Temporaries that live at the same moment, counted as multiples of the largest tensor of a pass.
_LIVE_TEMPORARIES = 4
_USABLE_PART = 0.5


@runtime_checkable
class Buffered(Protocol):
    """A module that keeps memory of its own from one pass to the next."""

    @property
    def buffer_bytes(self) -> int:
        """Bytes taken for the batch last seen."""
        ...


def default_batch(img_size: int, device: torch.device) -> int:
    """Return the batch size used when none is asked for; only the arguments decide it."""
    small = img_size <= 64
    if device.type == "cuda":
        return 256 if small else 64
    return 64 if small else 8


def fit_batch(model: nn.Module, img_size: int, device: torch.device, *, gradient: bool) -> int:
    """Return a batch size that fills about half of the memory that is free now.

    Args:
        model: takes pixels (B, 3, S, S).
        img_size: side S in pixels.
        device: where the model lies.
        gradient: whether gradients with respect to the pixels will be taken.
    """
    per_image = image_bytes(model, img_size, device, gradient=gradient)
    fitting = int(free_memory(device) * _USABLE_PART) // max(per_image, 1)
    return max(1, min(LARGEST_BATCH, fitting))


def image_bytes(model: nn.Module, img_size: int, device: torch.device, *, gradient: bool) -> int:
    """Estimate the peak bytes of one image's pass from the tensors that it makes and keeps."""
    pixels = torch.full((1, 3, img_size, img_size), 0.5, device=device, requires_grad=gradient)
    largest = _Largest()  # type: ignore[no-untyped-call]
    kept: dict[int, int] = {}
    with torch.set_grad_enabled(gradient), largest, \
            torch.autograd.graph.saved_tensors_hooks(_count(kept), _same):
        model(pixels)
    buffers = sum(module.buffer_bytes for module in model.modules()
                  if isinstance(module, Buffered))
    return sum(kept.values()) + buffers + _LIVE_TEMPORARIES * largest.bytes


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remember the size of the largest tensor that any operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Callable[..., object], types: object,
                           args: tuple[object, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.nbytes)
        return result


def _count(kept: dict[int, int]) -> Callable[[Tensor], Tensor]:
    def pack(saved: Tensor) -> Tensor:
        if not isinstance(saved, nn.Parameter):
            storage = saved.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        # What knows its own origin would hold itself, and all before it, for ever.
        return saved.detach()
    return pack


def _same(saved: Tensor) -> Tensor:
    return saved
