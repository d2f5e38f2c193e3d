"""Small calls of the elementary operators of a kernel set, for the sanitizers."""

from __future__ import annotations

import torch

from sanrobust.kernels.kernelset import Kernels
from sanrobust.kernels.plain import Window


def elementary(kernels: Kernels, window: Window) -> None:
    """Forward and backward passes of aggregation and subtraction."""
    value = torch.randn(2, 4, 4, 5)
    height, width = window.output_size(value)
    weight = torch.randn(2, 2, 9, height * width)
    summed = kernels.aggregation(value, weight, window)
    kernels.aggregation_backward(summed, value, weight, window, True, True)
    relation = kernels.subtraction(value, value, window)
    kernels.subtraction_backward(relation, (4, 5), window)
