"""Frozen layers of networks whose maps lie channels last: pixels are rows, and none is copied.

Letters: B images, C and O channels, H and W pixels of a map, P = B * H * W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import dense
from sanrobust.kernels.native.attention_rows import ScalarRows


class PointwiseLayer(nn.Module):
    """A 1x1 convolution with stride 1. Gradients reach the features alone.

    Args:
        convolution: whose weights it has.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach().flatten(1))
        bias = convolution.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach())

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, O, H, W) for ``features`` (B, C, H, W), both channels last."""
        mapped: Tensor = _Product.apply(features, self.weight.detach(), self.bias)
        return mapped


class ScalarLayer(nn.Module):
    """Scalar attention, its three projections one product. Gradients reach the features alone.

    Args:
        attention: as `ScalarRows` takes it.
    """

    def __init__(self, attention: LocalAttention) -> None:
        super().__init__()
        convolutions = attention.projections()
        self.weight = nn.Parameter(torch.cat([each.weight.detach().flatten(1)
                                              for each in convolutions]))
        biases = [each.bias.detach() for each in convolutions if each.bias is not None]
        self.bias = nn.Parameter(torch.cat(biases)) if biases else None
        self._rows = ScalarRows(attention)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, O, H, W) for ``features`` (B, C, H, W), both channels last."""
        projected = _Product.apply(features, self.weight.detach(), self.bias)
        attended: Tensor = _Attended.apply(projected, self._rows)
        return attended


# Functions of autograd, and not views of rows: what networks change in place is copied in views.
class _Product(torch.autograd.Function):
    """Channels (B, C, H, W) mapped by (O, C)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _mapped(features, weight.t(), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        weight, = ctx.saved_tensors
        return _mapped(grad, weight, None), None, None


class _Attended(torch.autograd.Function):
    """Scalar attention of (B, R + keys + O, H, W)."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, rows: ScalarRows) -> Tensor:
        attended = _empty(projected, rows.outputs)
        _call("forward", rows, qkv=projected, out=attended)
        ctx.save_for_backward(projected)
        ctx.rows = rows
        return attended

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        projected, = ctx.saved_tensors
        result = _empty(projected, projected.shape[1])
        _call("backward", ctx.rows, qkv=projected, grad=grad, grad_qkv=result)
        return result, None


def _mapped(maps: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    mapped = _empty(maps, matrix.shape[1])
    rows, out = (_rows(each).flatten(0, 2) for each in (maps, mapped))
    if bias is None:
        torch.mm(rows, matrix, out=out)
    else:
        torch.addmm(bias.detach(), rows, matrix, out=out)
    return mapped


def _empty(like: Tensor, channels: int) -> Tensor:
    images, _, height, width = like.shape
    return torch.empty(images, channels, height, width, dtype=like.dtype,
                       memory_format=torch.channels_last)


def _rows(maps: Tensor) -> Tensor:
    """The memory (B, H, W, C) of maps (B, C, H, W); copied unless they are channels last."""
    return dense(maps.permute(0, 2, 3, 1))


def _call(direction: str, rows: ScalarRows, qkv: Tensor, **tensors: Tensor) -> None:
    images, _, height, width = qkv.shape
    if images:
        held = {name: _rows(each) for name, each in {"qkv": qkv, **tensors}.items()}
        library.require().call(f"sanrobust_local_{direction}",
                               rows.args(images, height, width, **held))
