"""Aggregation and subtraction on a device; letters are those of ``plain``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sanrobust.kernels.cuda.arguments import ElementaryArgs, map_of, weights_of
from sanrobust.kernels.cuda.compiler import Device
from sanrobust.kernels.cuda.launch import ELEMENTS, PADDINGS, each_value, kernel
from sanrobust.kernels.plain import Window

_FILE = "elementary.cu"


def aggregate(device: Device, value: Tensor, weight: Tensor, window: Window, out: Tensor) -> None:
    """Sum value (B, O, H, W) under weight (B, M, K2, L), of its or the accumulating dtype."""
    _aggregation(device, "aggregate", value, weight, window, out, walked=out,
                 first=map_of(value), out=map_of(out))


def aggregate_value_grad(device: Device, grad: Tensor, weight: Tensor, window: Window,
                         out: Tensor) -> None:
    """Write the gradient of the value (B, O, H, W) for ``grad`` (B, O, H', W')."""
    _aggregation(device, "aggregate_value_grad", out, weight, window, out, walked=out,
                 grad=map_of(grad), out=map_of(out))


def aggregate_weight_grad(device: Device, grad: Tensor, value: Tensor, window: Window,
                          out: Tensor) -> None:
    """Write the gradient of the weight (B, M, K2, L), of any strides."""
    _aggregation(device, "aggregate_weight_grad", value, out, window, out, walked=value,
                 grad=map_of(grad), first=map_of(value))


def subtract(device: Device, query: Tensor, key: Tensor, window: Window, out: Tensor) -> None:
    """Write the relation (B, R, K2, L) of query and key (B, R, H, W)."""
    args = _args(query, window, query, first=map_of(query), second=map_of(key),
                 weights=weights_of(out))
    each_value(device, kernel(_FILE, "subtract", ELEMENTS[query.dtype]), out.numel(), args)


def subtract_grad(device: Device, grad: Tensor, window: Window, out_query: Tensor,
                  out_key: Tensor) -> None:
    """Write the gradients of query and key for that of the relation (B, R, K2, L)."""
    for name, out in (("subtract_query_grad", out_query), ("subtract_key_grad", out_key)):
        args = _args(out, window, out, weights=weights_of(grad), out=map_of(out))
        each_value(device, kernel(_FILE, name, ELEMENTS[grad.dtype]), out.numel(), args)


def _aggregation(device: Device, name: str, value: Tensor, weight: Tensor, window: Window,
                 written: Tensor, *, walked: Tensor, **described: Any) -> None:
    """Launch a kernel of a value (or its gradient) and weights, a thread for each value written."""
    args = _args(value, window, walked, groups=weight.shape[1], weights=weights_of(weight),
                 **described)
    which = kernel(_FILE, name, ELEMENTS[value.dtype], ELEMENTS[weight.dtype],
                   str(window.footprint))
    each_value(device, which, written.numel(), args)


def _args(maps: Tensor, window: Window, walked: Tensor, groups: int = 1,
          **described: Any) -> ElementaryArgs:
    """Arguments for ``maps`` of the full size; neighbouring threads walk along ``walked``."""
    images, channels, height, width = maps.shape
    out_height, out_width = window.output_size(maps)
    return ElementaryArgs(images=images, height=height, width=width, out_height=out_height,
                          out_width=out_width, channels=channels, groups=groups,
                          footprint=window.footprint, stride=window.stride,
                          dilation=window.dilation, padding=PADDINGS[window.padding_mode],
                          channels_fastest=int(walked.stride(1) == 1), **described)
