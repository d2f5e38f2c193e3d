"""What keeps a kernel from reading past its arguments when a custom operator is called directly.

``functional`` has checked everything that comes through it, with messages of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanrobust.errors import UsageError
from sanrobust.kernels.native.arguments import (DOUBLE, FLOAT, HINT, REFLECT, ZEROS,
                                                require_place)
from sanrobust.kernels.plain import Window

PADDINGS = {"reflect": REFLECT, "zeros": ZEROS}
_ELEMENTS = {torch.float32: FLOAT, torch.float64: DOUBLE}


def element_of(*tensors: Tensor) -> int:
    """Return the kernels' name of the dtype that all tensors have.

    Raises UsageError for tensors of other or several dtypes and for those that are not all in the
    memory of the CPU.
    """
    for each in tensors:
        require_place("a tensor", each)
    dtypes = {each.dtype for each in tensors}
    if len(dtypes) > 1 or not dtypes <= _ELEMENTS.keys():
        raise UsageError("the tensors of a native kernel must all be float32 or all float64",
                         seen=f"they are {', '.join(sorted(map(str, dtypes)))}", hint=HINT)
    return _ELEMENTS[dtypes.pop()]


def require_window(window: Window, *maps: Tensor) -> None:
    """Raise UsageError unless ``maps`` are (B, C, H, W) and ``window`` is one that they admit."""
    for each in maps:
        if each.dim() != 4:
            raise UsageError("maps of a native kernel must have the shape (B, C, H, W)",
                             seen=f"one is {tuple(each.shape)}", hint=HINT)
        require_settings(window, *each.shape[2:])


def require_settings(window: Window, height: int, width: int) -> None:
    """Raise UsageError unless ``window`` is one that maps of these sides admit."""
    if (window.footprint < 1 or window.footprint % 2 == 0
            or min(window.stride, window.dilation) < 1 or window.padding_mode not in PADDINGS):
        raise UsageError("a window must have an odd footprint, a stride and a dilation of at "
                         f"least 1 and padding {' or '.join(PADDINGS)}", seen=f"it is {window}",
                         hint=HINT)
    if min(height, width) < 1:
        raise UsageError("maps of a native kernel must have at least one pixel",
                         seen=f"they are {height}x{width}", hint="use larger images")
    if window.padding_mode == "reflect" and window.padding >= min(height, width):
        raise UsageError(f"reflection needs maps of more than {window.padding} pixels",
                         seen=f"they are {height}x{width}", hint="use larger images")


def require_weight(value: Tensor, weight: Tensor, window: Window) -> tuple[int, ...]:
    """Return the shape of what an aggregation yields; raises UsageError."""
    require_window(window, value)
    height, width = window.output_size(value)
    require(weight.dim() == 4 and weight.shape[2:] == (window.neighbours, height * width)
            and len(weight) == len(value) and weight.shape[1] >= 1
            and value.shape[1] % weight.shape[1] == 0, value, weight)
    return (*value.shape[:2], height, width)


def require(holds: bool, *tensors: Tensor) -> None:
    """Raise UsageError with the shapes of ``tensors`` unless ``holds``."""
    if not holds:
        raise UsageError("the tensors of a kernel must have shapes that fit together",
                         seen=f"they are {', '.join(str(tuple(each.shape)) for each in tensors)}",
                         hint=HINT)
