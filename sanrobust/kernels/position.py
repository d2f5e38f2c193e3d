"""What a position adds to the hidden layer of a pairwise mapping: a table.

Letters: P position channels, D hidden channels, K2 neighbours (row by row), H and W map pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sanrobust.kernels.plain import Window, neighbours

# An affine position differs from the affine map through its corners by a few roundings.
_AFFINE_ROUNDINGS = 8


@dataclass(frozen=True)
class PositionCode:
    """What the position adds to the hidden layer: bias + weight relu(scale (p_i - p_j) + shift).

    Attributes:
        scale, shift: (P,) float64.
        weight: (D, P) float64.
        bias: (D,) float64.
        outside: (D,) float64, what a neighbour outside a map that ends in zeros adds besides.
    """

    scale: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor
    outside: Tensor | None = None


# Tables of the codes, by their weights, that belong to mappings that nobody changes.
_TABLES = WeakTensorKeyDictionary()


def keep_tables(code: PositionCode) -> None:
    """Let `position_table` compute a table of this code once for each size of the map.

    Its position must then be the same at each call for maps of one size.
    """
    _TABLES[code.weight] = {}


def position_table(position: Tensor, code: PositionCode, window: Window,
                   dtype: torch.dtype) -> Tensor:
    """Return the table (1 or H * W, K2 + 1, D) of ``PairwiseMatrices`` for a position map.

    One for all pixels where there is no position, P = 0, and where reflection meets a
    ``position`` (1, P, H, W) that is affine in the pixel coordinates; otherwise one for each.
    """
    tables = _TABLES[code.weight] if code.weight in _TABLES else None
    key = position.shape, window, dtype
    if tables is not None and key in tables:
        return cast(Tensor, tables[key])
    table = _computed(position, code, window, dtype)
    # What is made while a CUDA graph is captured is there only when the graph runs.
    if tables is not None and _may_look(position):
        tables[key] = table
    return table


def place_table(position: Tensor, code: PositionCode, dtype: torch.dtype) -> Tensor:
    """Return what the place of a neighbour adds (H * W + 1, D), the outside of the map last.

    ``position`` (1, P, H, W) is 0 outside; of a neighbour it is added as it is.
    """
    places = position[0].double().flatten(1).t()
    places = torch.cat((places, torch.zeros_like(places[:1])))
    return _beyond(_hidden(places, code), code).to(dtype).contiguous()


def displacement_table(slopes: Tensor, code: PositionCode, window: Window) -> Tensor:
    """Return what each displacement adds (K2 + 1, D); the last row is never read.

    ``slopes`` (2, P) are those of an affine position; torch can differentiate by all arguments.
    """
    return _hidden(_displacements(window, slopes) @ -slopes, code)


def _hidden(places: Tensor, code: PositionCode) -> Tensor:
    return torch.relu(places * code.scale + code.shift) @ code.weight.t() + code.bias


def _beyond(table: Tensor, code: PositionCode) -> Tensor:
    """Complete the last row of ``table`` (..., D), that of neighbours outside the map."""
    if code.outside is not None:
        table[..., -1, :] += code.outside
    return table


def _computed(position: Tensor, code: PositionCode, window: Window, dtype: torch.dtype) -> Tensor:
    place = position[0].double()
    found = None
    if not len(place) or (window.padding_mode == "reflect" and _may_look(position)):
        found = slopes(place, torch.finfo(position.dtype).eps)
    if found is None:
        table = _hidden(_differences(place, window), code)
    else:
        table = displacement_table(found, code, window).unsqueeze(0)
    return _beyond(table, code).to(dtype).contiguous()


def _may_look(position: Tensor) -> bool:
    """Whether values may decide: not while a CUDA graph is captured."""
    return not (position.is_cuda and torch.cuda.is_current_stream_capturing())


def slopes(place: Tensor, eps: float) -> Tensor | None:
    """Return (2, P), the change of ``place`` (P, H, W) per row and column; None: not affine."""
    if not len(place):
        return place.new_zeros(2, 0)
    height, width = place.shape[-2:]
    origin = place[:, :1, :1]
    down = (place[:, -1:, :1] - origin) / max(height - 1, 1)
    across = (place[:, :1, -1:] - origin) / max(width - 1, 1)
    rows = torch.arange(height, dtype=place.dtype, device=place.device)[:, None]
    columns = torch.arange(width, dtype=place.dtype, device=place.device)
    error = (place - (origin + down * rows + across * columns)).abs().amax()
    if not bool(error <= _AFFINE_ROUNDINGS * eps * place.abs().amax()):
        return None
    return torch.stack((down.flatten(), across.flatten()))


def _displacements(window: Window, like: Tensor) -> Tensor:
    """Steps (K2 + 1, 2) to each neighbour; the last one, never read under reflection, is 0."""
    steps = torch.arange(window.footprint, dtype=like.dtype, device=like.device)
    steps = steps - window.footprint // 2
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    around = torch.stack((rows.flatten(), columns.flatten()), 1)
    return torch.cat((around, around.new_zeros(1, 2)))


def _differences(place: Tensor, window: Window) -> Tensor:
    """position_i - position_j (H * W, K2 + 1, P), 0 at every j outside the map."""
    outside_is_zero = Window(window.footprint, padding_mode="zeros")
    around = neighbours(place.unsqueeze(0), outside_is_zero)[0]
    around = torch.cat((around, torch.zeros_like(around[:, :1])), 1)
    return (place.flatten(1).unsqueeze(1) - around).permute(2, 1, 0)
