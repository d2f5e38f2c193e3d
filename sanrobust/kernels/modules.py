"""Self-attention layers: the projections and mappings around the operators of ``functional``.

Letters: B images, C channels, R relation channels, O value channels, M weight groups, K2
neighbours, H and W map pixels. Names of parameters are those of the published checkpoints:
conv1, conv2 and conv3 are the paper's phi, psi and beta, conv_w its gamma, conv_p its position
encoding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanrobust.errors import UsageError
from sanrobust.kernels import functional
from sanrobust.kernels.plain import PaddingMode
from sanrobust.kernels.pointwise import PointwiseConv2d

POSITION_CHANNELS = 2


def position_grid(height: int, width: int, *, dtype: torch.dtype = torch.float32,
                  device: torch.device | None = None) -> Tensor:
    """Return coordinates (1, 2, H, W), x then y, each from -1 to 1 across the map."""
    down = torch.linspace(-1.0, 1.0, height, dtype=dtype, device=device)
    across = torch.linspace(-1.0, 1.0, width, dtype=dtype, device=device)
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    return torch.stack((columns, rows)).unsqueeze(0)


class PairwiseAttention(nn.Module):
    """Pairwise self-attention (equation 2): subtraction, relative position, softmax.

    Args:
        channels: C of the input.
        relation_channels: R of the compared features.
        value_channels: O of the output.
        weight_groups: M; value channels c, c + M, c + 2M... share a weight.
        footprint: side of the square footprint, odd.
        padding_mode: how the map continues past its border.

    Raises UsageError when the settings do not fit together.
    """

    def __init__(self, channels: int, *, relation_channels: int, value_channels: int,
                 weight_groups: int, footprint: int,
                 padding_mode: PaddingMode = "reflect") -> None:
        super().__init__()
        _require_groups(value_channels, weight_groups)
        self.window = functional.make_window(footprint, padding_mode=padding_mode)
        self.conv1 = nn.Conv2d(channels, relation_channels, 1)
        self.conv2 = nn.Conv2d(channels, relation_channels, 1)
        self.conv3 = nn.Conv2d(channels, value_channels, 1)
        self.conv_w = _mapping(relation_channels + POSITION_CHANNELS, relation_channels,
                               weight_groups)
        self.conv_p = nn.Conv2d(POSITION_CHANNELS, POSITION_CHANNELS, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the attended values (B, O, H, W) of ``features`` (B, C, H, W)."""
        grid = position_grid(*features.shape[-2:], dtype=self.conv_p.weight.dtype,
                             device=features.device)
        return functional.pairwise_attention(
            self.conv1(features), self.conv2(features), self.conv3(features), self.conv_p(grid),
            self.conv_w, footprint=self.window.footprint, padding_mode=self.window.padding_mode)


class PatchwiseAttention(nn.Module):
    """Patchwise self-attention (equation 4): concatenation, no softmax.

    Arguments, and errors, are those of ``PairwiseAttention``.
    """

    def __init__(self, channels: int, *, relation_channels: int, value_channels: int,
                 weight_groups: int, footprint: int,
                 padding_mode: PaddingMode = "reflect") -> None:
        super().__init__()
        _require_groups(value_channels, weight_groups)
        self.window = functional.make_window(footprint, padding_mode=padding_mode)
        self.conv1 = nn.Conv2d(channels, relation_channels, 1)
        self.conv2 = nn.Conv2d(channels, relation_channels, 1)
        self.conv3 = nn.Conv2d(channels, value_channels, 1)
        self.conv_w = _mapping(relation_channels * (self.window.neighbours + 1), weight_groups,
                               weight_groups * self.window.neighbours)

    def forward(self, features: Tensor) -> Tensor:
        """Return the attended values (B, O, H, W) of ``features`` (B, C, H, W)."""
        return functional.patchwise_attention(
            self.conv1(features), self.conv2(features), self.conv3(features), self.conv_w,
            footprint=self.window.footprint, padding_mode=self.window.padding_mode)


def _mapping(relations: int, hidden: int, weights: int) -> nn.Sequential:
    """The paper's gamma as released: two linear layers, each behind normalisation and ReLU."""
    return nn.Sequential(
        nn.BatchNorm2d(relations), nn.ReLU(inplace=True),
        PointwiseConv2d(relations, hidden, bias=False),
        nn.BatchNorm2d(hidden), nn.ReLU(inplace=True),
        PointwiseConv2d(hidden, weights),
    )


def _require_groups(value_channels: int, weight_groups: int) -> None:
    if weight_groups < 1 or value_channels % weight_groups:
        raise UsageError(f"value channels ({value_channels}) must be a multiple of the weight "
                         "groups", seen=f"there are {weight_groups}",
                         hint="change one of the two")
