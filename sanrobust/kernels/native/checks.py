"""What keeps a kernel from reading past its arguments when a custom operator is called directly.

``functional`` has checked everything that comes through it, with messages of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanrobust.errors import UsageError
from sanrobust.kernels.native import library
from sanrobust.kernels.plain import Window

PADDINGS = {"reflect": library.REFLECT, "zeros": library.ZEROS}
_ELEMENTS = {torch.float32: library.FLOAT, torch.float64: library.DOUBLE}


def element_of(*tensors: Tensor) -> int:
    """Return the kernels' name of the dtype that all tensors have; raises UsageError."""
    dtypes = {each.dtype for each in tensors}
    if len(dtypes) > 1 or not dtypes <= _ELEMENTS.keys():
        raise UsageError("the tensors of a native kernel must all be float32 or all float64",
                         seen=f"they are {', '.join(sorted(map(str, dtypes)))}",
                         hint="call sanrobust.kernels.functional")
    return _ELEMENTS[dtypes.pop()]


def require_weight(value: Tensor, weight: Tensor, window: Window) -> tuple[int, ...]:
    """Return the shape of what an aggregation yields; raises UsageError."""
    height, width = window.output_size(value)
    images, groups = weight.shape[:2]
    require(weight.shape[2:] == (window.neighbours, height * width) and images == len(value)
            and value.shape[1] % groups == 0, value, weight)
    return (*value.shape[:2], height, width)


def require_reflection(window: Window, height: int, width: int) -> None:
    """Raise UsageError when a map is too small to be continued by reflection."""
    if window.padding_mode == "reflect" and window.padding >= min(height, width):
        raise UsageError(f"reflection needs maps of more than {window.padding} pixels",
                         seen=f"they are {height}x{width}", hint="use larger images")


def require(holds: bool, *tensors: Tensor) -> None:
    """Raise UsageError with the shapes of ``tensors`` unless ``holds``."""
    if not holds:
        raise UsageError("the tensors of a kernel must have shapes that fit together",
                         seen=f"they are {', '.join(str(tuple(each.shape)) for each in tensors)}",
                         hint="call sanrobust.kernels.functional")
