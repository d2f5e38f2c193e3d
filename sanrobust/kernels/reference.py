"""The truth: every operator in plain torch, on any device, in any floating dtype.

Letters: B images, C channels, M weight groups, R relation channels, O value channels, K2
neighbours (footprint squared, row by row), H and W map pixels, L = H' * W' output positions
(row by row). Neighbour n = row * footprint + column of position i sits at
i * stride + (row - footprint // 2, column - footprint // 2) * dilation of the padded map, the
order of ``torch.nn.functional.unfold``. Arguments are checked in ``functional``, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PaddingMode = Literal["reflect", "zeros"]

# Values of one relation tensor kept at a time where images are independent. On a CPU, larger
# blocks go back to the system after each operator and are paged in again; elsewhere the bound is
# on memory alone, as short slices would leave the device idle.
SLICE_VALUES = {"cpu": 1 << 21}
SLICE_VALUES_ELSEWHERE = 1 << 27


@dataclass(frozen=True)
class Window:
    """Which neighbours a position sees: a square footprint centred on it.

    ``footprint`` is the side in neighbours (odd), ``stride`` the distance between output
    positions and ``dilation`` that between neighbours, both in pixels.
    """

    footprint: int
    stride: int = 1
    dilation: int = 1
    padding_mode: PaddingMode = "reflect"

    @property
    def padding(self) -> int:
        """Pixels added on each side of the map."""
        return self.dilation * (self.footprint - 1) // 2

    @property
    def neighbours(self) -> int:
        """Neighbours of one position, itself included."""
        return self.footprint ** 2

    def output_size(self, maps: Tensor) -> tuple[int, int]:
        """Output positions (H', W') along the sides of ``maps`` (B, C, H, W)."""
        height, width = maps.shape[-2:]
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1


def pad(maps: Tensor, window: Window) -> Tensor:
    """Return ``maps`` (B, C, H, W) with the window's margin on every side."""
    mode = "reflect" if window.padding_mode == "reflect" else "constant"
    return F.pad(maps, (window.padding,) * 4, mode=mode)


def neighbours(maps: Tensor, window: Window) -> Tensor:
    """Gather the neighbours of every position: (B, C, H, W) to (B, C, K2, L)."""
    return _windows(pad(maps, window), window).flatten(4, 5).flatten(2, 3)


def subtraction(query: Tensor, key: Tensor, window: Window) -> Tensor:
    """Return centre minus neighbours, query_i - key_j: two (B, R, H, W) to (B, R, K2, L)."""
    centres = query[:, :, None, None, ::window.stride, ::window.stride]
    return (centres - _windows(pad(key, window), window)).flatten(4, 5).flatten(2, 3)


def aggregation(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Sum the neighbours under their weights: (B, O, H, W) and (B, M, K2, L) to (B, O, H', W').

    Channel c takes the weights of group c % M.
    """
    size = window.output_size(value)
    summed: Tensor = _Aggregation.apply(pad(value, window), weight, window, size)
    return summed


def pairwise_attention(query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                       mapping: nn.Module, window: Window) -> Tensor:
    """Softmax over neighbours of mapping([query_i - key_j, position_i - position_j])."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        images = query.shape[0]
        where = position.expand(images, -1, -1, -1)
        relation = subtraction(torch.cat((query, where), 1), torch.cat((key, where), 1), window)
        weight = torch.softmax(mapping(relation), dim=-2)
        return aggregation(value, weight.to(value.dtype), window)

    channels = query.shape[1] + position.shape[1]
    return _by_slices(attend, (query, key, value), mapping, channels * window.neighbours)


def patchwise_attention(query: Tensor, key: Tensor, value: Tensor,
                        mapping: nn.Module, window: Window) -> Tensor:
    """Weights are mapping([query_i, all key_j of the footprint]) itself, without a softmax."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        centres = query[:, :, ::window.stride, ::window.stride].flatten(2).unsqueeze(2)
        patch = neighbours(key, window).flatten(1, 2).unsqueeze(2)
        weight = mapping(torch.cat((centres, patch), 1)).squeeze(2)
        weight = weight.unflatten(1, (-1, window.neighbours))
        return aggregation(value, weight, window)

    per_position = query.shape[1] + key.shape[1] * window.neighbours
    return _by_slices(attend, (query, key, value), mapping, per_position)


class _Aggregation(torch.autograd.Function):
    """One multiply-add per neighbour on shifted views, so no (B, O, K2, L) tensor exists."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, weight: Tensor, window: Window,
                size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(padded, weight)
        ctx.window, ctx.size = window, size
        shifts = _grouped_shifts(padded, weight, window, size)
        summed = padded.new_zeros(_grouped_shape(padded, weight, size),
                                  dtype=_accumulator(padded.dtype))
        for neighbour, weights in zip(shifts, _per_neighbour(weight, size)):
            summed.addcmul_(neighbour, weights)
        return summed.to(padded.dtype).view(*padded.shape[:2], *size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        padded, weight = ctx.saved_tensors
        window, size = ctx.window, ctx.size
        grad = grad.reshape(_grouped_shape(padded, weight, size))
        grad_padded = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_padded = torch.zeros_like(padded, memory_format=torch.contiguous_format,
                                           dtype=_accumulator(padded.dtype))
            shifts = _grouped_shifts(grad_padded, weight, window, size)
            for neighbour, weights in zip(shifts, _per_neighbour(weight, size)):
                neighbour.addcmul_(grad, weights)
            grad_padded = grad_padded.to(padded.dtype)
        if ctx.needs_input_grad[1]:
            shifts = _grouped_shifts(padded, weight, window, size)
            products = [(grad * neighbour).sum(1) for neighbour in shifts]
            grad_weight = torch.stack(products, 2).reshape(weight.shape)
        return grad_padded, grad_weight, None, None


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _grouped_shape(padded: Tensor, weight: Tensor, size: tuple[int, ...]) -> tuple[int, ...]:
    groups = weight.shape[1]
    return (padded.shape[0], padded.shape[1] // groups, groups, *size)


def _grouped_shifts(padded: Tensor, weight: Tensor, window: Window,
                    size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield for each neighbour its view (B, O / M, M, H', W') of the padded map."""
    grouped = padded.view(_grouped_shape(padded, weight, padded.shape[-2:]))
    reach_y, reach_x = ((side - 1) * window.stride + 1 for side in size)
    for row in range(window.footprint):
        for column in range(window.footprint):
            top, left = row * window.dilation, column * window.dilation
            yield grouped[..., top:top + reach_y:window.stride, left:left + reach_x:window.stride]


def _per_neighbour(weight: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Split (B, M, K2, L) into one (B, 1, M, H', W') for each neighbour."""
    return weight.reshape(*weight.shape[:3], *size).unsqueeze(1).unbind(3)


def _windows(padded: Tensor, window: Window) -> Tensor:
    """View a padded map (B, C, ., .) as (B, C, footprint, footprint, H', W')."""
    reach = window.dilation * (window.footprint - 1) + 1
    windows = padded.unfold(2, reach, window.stride).unfold(3, reach, window.stride)
    return windows[..., ::window.dilation, ::window.dilation].permute(0, 1, 4, 5, 2, 3)


def _by_slices(attend: Callable[[Tensor, Tensor, Tensor], Tensor],
               maps: tuple[Tensor, Tensor, Tensor], mapping: nn.Module,
               values_per_position: int) -> Tensor:
    """Attend a few images at a time where ``mapping`` treats images independently."""
    query = maps[0]
    values_per_image = values_per_position * query.shape[-2] * query.shape[-1]
    bound = SLICE_VALUES.get(query.device.type, SLICE_VALUES_ELSEWHERE)
    images = max(1, bound // max(1, values_per_image))
    if images >= query.shape[0] or _mixes_images(mapping):
        return attend(*maps)
    slices = zip(*(torch.split(each, images) for each in maps))
    return torch.cat([attend(*each) for each in slices])


def _mixes_images(mapping: nn.Module) -> bool:
    """Whether batch statistics (or dropout) tie the images of a batch together."""
    return any(module.training or (isinstance(module, nn.modules.batchnorm._BatchNorm)
                                   and module.running_mean is None)
               for module in mapping.modules())
