"""The elementary operators in plain torch, forward and backward, on any device in any dtype.

Letters: B images, C channels, M weight groups, R relation channels, O value channels, K2
neighbours (footprint squared, row by row), H and W map pixels, L = H' * W' output positions
(row by row). Neighbour n = row * footprint + column of position i sits at
i * stride + (row - footprint // 2, column - footprint // 2) * dilation of the padded map, the
order of ``torch.nn.functional.unfold``. Arguments are checked in ``functional``, not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sanrobust.kernels.padding import reflected, reflected_adjoint

PaddingMode = Literal["reflect", "zeros"]


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
        return self.positions(*maps.shape[-2:])

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Output positions (H', W') along the sides H = ``height`` and W = ``width`` of a map."""
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1


def pad(maps: Tensor, window: Window) -> Tensor:
    """Return ``maps`` (B, C, H, W) with the window's margin on every side."""
    if window.padding_mode == "reflect":
        return reflected(maps, window.padding)
    return F.pad(maps, (window.padding,) * 4)


def differentiates_forwards() -> bool:
    """Whether forward-mode derivatives are being taken.

    Plain torch has them; a custom operator would lose them without a word.
    """
    return torch.autograd.forward_ad._current_level >= 0


def pooled_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of maps (B, C, H, W) of one value for each whole square of 2x2 pixels."""
    return (*shape[:2], shape[2] // 2, shape[3] // 2)


def neighbours(maps: Tensor, window: Window) -> Tensor:
    """Gather the neighbours of every position: (B, C, H, W) to (B, C, K2, L)."""
    return _windows(pad(maps, window), window).flatten(4, 5).flatten(2, 3)


class PlainKernels:
    """The kernel set of plain torch; ``ops.Kernels`` says what each method is given."""

    def aggregation(self, value: Tensor, weight: Tensor, window: Window) -> Tensor:
        """Sum by one multiply-add per neighbour, so that no (B, O, K2, L) tensor exists."""
        size = window.output_size(value)
        padded = pad(value, window).contiguous()
        shifts = _grouped_shifts(padded, weight, window, size)
        summed = padded.new_zeros(_grouped_shape(padded, weight, size),
                                  dtype=_accumulator(padded.dtype))
        for neighbour, weights in zip(shifts, _per_neighbour(weight, size)):
            summed.addcmul_(neighbour, weights)
        return summed.to(padded.dtype).view(*padded.shape[:2], *size)

    def aggregation_backward(self, grad: Tensor, value: Tensor, weight: Tensor, window: Window,
                             needs_value: bool, needs_weight: bool) -> tuple[Tensor, Tensor]:
        """Return the gradients of value and weight; one not needed is empty."""
        padded = pad(value, window).contiguous()
        size = window.output_size(value)
        grad = grad.reshape(_grouped_shape(padded, weight, size))
        grad_value, grad_weight = value.new_empty(0), weight.new_empty(0)
        if needs_value:
            spread = torch.zeros_like(padded, dtype=_accumulator(padded.dtype))
            shifts = _grouped_shifts(spread, weight, window, size)
            for neighbour, weights in zip(shifts, _per_neighbour(weight, size)):
                neighbour.addcmul_(grad, weights)
            grad_value = _unpad(spread, value.shape[-2:], window).to(value.dtype)
        if needs_weight:
            shifts = _grouped_shifts(padded, weight, window, size)
            products = [(grad * neighbour).sum(1) for neighbour in shifts]
            grad_weight = torch.stack(products, 2).reshape(weight.shape)
        return grad_value, grad_weight

    def subtraction(self, query: Tensor, key: Tensor, window: Window) -> Tensor:
        """Return query_i - key_j."""
        centres = query[:, :, None, None, ::window.stride, ::window.stride]
        around = _windows(pad(key, window), window)
        if differentiates_forwards():
            relation = centres - around
        else:
            relation = query.new_empty(around.shape)
            torch.sub(centres, around, out=relation)
        return relation.flatten(4, 5).flatten(2, 3)

    def subtraction_backward(self, grad: Tensor, size: tuple[int, int],
                             window: Window) -> tuple[Tensor, Tensor]:
        """Return the gradients of query and key for that of the relation."""
        images, channels = grad.shape[:2]
        positions = window.positions(*size)
        accumulator = _accumulator(grad.dtype)
        grad_query = grad.new_zeros(images, channels, *size)
        centres = grad.sum(2, dtype=accumulator).to(grad.dtype).contiguous()
        grad_query[:, :, ::window.stride, ::window.stride] = centres.view(*grad.shape[:2],
                                                                          *positions)
        padded = (side + 2 * window.padding for side in size)
        spread = grad.new_zeros(images, channels, *padded, dtype=accumulator)
        around = grad.reshape(*grad.shape[:3], *positions).unbind(2)
        for (top, left), each in zip(_corners(window), around):
            _shifted(spread, top, left, positions, window).sub_(each)
        return grad_query, _unpad(spread, size, window).to(grad.dtype)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _unpad(padded: Tensor, size: tuple[int, ...], window: Window) -> Tensor:
    """Give the gradient of a padded map back to the map: the adjoint of ``pad``."""
    margin = window.padding
    if window.padding_mode == "reflect" and margin and padded.numel():
        return reflected_adjoint(padded, margin)
    height, width = size
    return padded[:, :, margin:margin + height, margin:margin + width].contiguous()


def _grouped_shape(padded: Tensor, weight: Tensor, size: tuple[int, ...]) -> tuple[int, ...]:
    groups = weight.shape[1]
    return (padded.shape[0], padded.shape[1] // groups, groups, *size)


def _corners(window: Window) -> Iterator[tuple[int, int]]:
    """Yield for each neighbour where it lies in the padded map for the first position."""
    for row in range(window.footprint):
        for column in range(window.footprint):
            yield row * window.dilation, column * window.dilation


def _shifted(padded: Tensor, top: int, left: int, positions: tuple[int, int],
             window: Window) -> Tensor:
    """View the pixels (..., H', W') of a padded map that are one neighbour of every position."""
    reach_y, reach_x = ((side - 1) * window.stride + 1 for side in positions)
    return padded[..., top:top + reach_y:window.stride, left:left + reach_x:window.stride]


def _grouped_shifts(padded: Tensor, weight: Tensor, window: Window,
                    size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield for each neighbour its view (B, O / M, M, H', W') of the padded map."""
    grouped = padded.view(_grouped_shape(padded, weight, padded.shape[-2:]))
    for top, left in _corners(window):
        yield _shifted(grouped, top, left, size, window)


def _per_neighbour(weight: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Split (B, M, K2, L) into one (B, 1, M, H', W') for each neighbour."""
    return weight.reshape(*weight.shape[:3], *size).unsqueeze(1).unbind(3)


def _windows(padded: Tensor, window: Window) -> Tensor:
    """View a padded map (B, C, ., .) as (B, C, footprint, footprint, H', W')."""
    reach = window.dilation * (window.footprint - 1) + 1
    windows = padded.unfold(2, reach, window.stride).unfold(3, reach, window.stride)
    return windows[..., ::window.dilation, ::window.dilation].permute(0, 1, 4, 5, 2, 3)
