"""Frozen pairwise attention of every design as the projections and matrices that kernels read.

The mapping is a chain: normalisation, ReLU, linear layer, one to three times. Each normalisation
but the first goes into the linear layer before it, and the last bias is the same for all
neighbours, so the softmax cancels it. The first normalisation, x to x * scale + shift, goes where
the relation lets it:

- subtraction, summation: into query and key; only a sign of the key tells the two apart.
- hadamard, dot product: the scale into the query, the shift is added to each product.
- concatenation: ReLU(norm(.)) of a half belongs to one pixel, and so does its part of the first
  linear layer: a product of the two maps (`Halves`), and one addition is left for each pair.

What the position adds to the first linear layer is a table: by displacement where it is relative,
by the neighbour's place where it is absolute.

Letters: R compared channels, O value channels, D channels of the first layer, M weight groups, C
channels of the block, K2 neighbours, H and W sides of a map. Folding computes in float64 and
rounds once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sanrobust.design import AttentionConfig
from sanrobust.kernels import relations
from sanrobust.kernels.folding import FirstNorm, affine
from sanrobust.kernels.modules import PairwiseAttention, position_grid
from sanrobust.kernels.native import arguments
from sanrobust.kernels.plain import Window
from sanrobust.kernels.position import PositionCode, place_table, position_table

# The relation that is subtraction of the negated key.
NEGATED = "summation"
MAPPINGS = {"L": arguments.L, "LRL": arguments.LRL, "LRLRL": arguments.LRLRL}


@dataclass(frozen=True)
class Projection:
    """What makes one of query, key and value of the block's pixels, all float64.

    Attributes:
        convolution: the layer's own.
        scale, shift: (channels,), what is folded in behind it.
    """

    convolution: nn.Conv2d
    scale: Tensor
    shift: Tensor

    @property
    def weight(self) -> Tensor:
        """(channels, C)."""
        return self.convolution.weight.detach().flatten(1).double() * self.scale.unsqueeze(1)

    @property
    def bias(self) -> Tensor:
        """(channels,)."""
        assert self.convolution.bias is not None
        return self.convolution.bias.detach().double() * self.scale + self.shift


@dataclass(frozen=True)
class Halves:
    """What a concatenation does to every pixel of [query | key], (2R,), before pairs are made.

    Attributes:
        scale, shift: (2R,) float64, before a ReLU.
        weight: (2R, 2R) float64: from the query to the first D channels, and from the key, with
            the other sign, to the D channels from R on.
    """

    scale: Tensor
    shift: Tensor
    weight: Tensor


@dataclass(frozen=True)
class FoldedDesign:
    """A frozen `PairwiseAttention`.

    Attributes:
        settings: the numbers of ``PairwiseArgs`` that say which operator it is.
        matrices: its tensors by name, float32; without the table.
        projections: make the rows [query | key | value].
        halves: what is done to query and key then; None but for a concatenation.
        code: what the position adds to the first layer.
        position: the layer's encoding of places; None where it knows none.
        window: the footprint.
    """

    settings: dict[str, int]
    matrices: dict[str, Tensor]
    projections: tuple[Projection, ...]
    halves: Halves | None
    code: PositionCode
    position: nn.Conv2d | None
    window: Window

    @property
    def outputs(self) -> int:
        """O."""
        return self.settings["channels"]

    def table(self, height: int, width: int) -> Tensor:
        """Return what the position adds on maps of one size, as ``PairwiseArgs`` has it."""
        with torch.no_grad():
            if self.position is None:
                encoded = torch.empty(1, 0, height, width)
            else:
                encoded = self.position(position_grid(height, width))
            if self.settings["table_by_place"]:
                return place_table(encoded, self.code, torch.float32)
            return position_table(encoded, self.code, self.window, torch.float32)


def refusal(design: AttentionConfig) -> str | None:
    """Return what of a pairwise design no kernel computes, as a clause; None: they compute it."""
    if relations.find("pairwise", design.relation) not in relations.ENTRIES:
        return f"no fused kernel has its relation {design.relation}"
    return None


def fold(attention: PairwiseAttention) -> FoldedDesign:
    """Fold a layer that is frozen and in eval mode; `refusal` must have returned None."""
    design, relation = attention.design, attention.relation
    layers, delta = _layers(attention.conv_w), relation.relation.delta
    first, bias = layers[0]
    # The position's channels follow those of the relation.
    (scale, place_scale), (shift, place_shift), (compared, placed) = (
        each.tensor_split([relation.width], -1)
        for each in (*affine(cast(nn.BatchNorm2d, attention.conv_w[0])), first))
    norm = FirstNorm(delta, _rounded(scale), _rounded(shift))
    code = PositionCode(place_scale, place_shift, placed, bias, norm.outside(compared))
    hidden, channels = len(first), attention.relation.sizes.channels
    matrices: dict[str, Tensor] = {}
    halves = query_scale = query_shift = key_scale = None
    if delta == "concatenation":
        halves = Halves(scale, shift, _by_halves(compared))
    else:
        matrices.update(_both("w1", "w1t", compared))
        (query_scale, query_shift), (key_scale, _) = norm.of_query(channels), norm.of_key(channels)
        if norm.offset is not None:
            matrices["offset"] = norm.offset.float().contiguous()
        if design.relation == NEGATED and key_scale is not None:
            key_scale = -key_scale
    if len(layers) == 3:
        matrices.update(_both("w_mid", "w_mid_t", layers[1][0]), b_mid=layers[1][1].float())
    if len(layers) > 1:
        matrices.update(_both("w2", "w2t", layers[-1][0]))
    _, key, values = attention.projections()
    value = projection(values)
    settings = dict(delta=arguments.DELTAS[delta], mapping=MAPPINGS[design.mapping],
                    relation=channels, hidden=hidden, groups=len(layers[-1][0]),
                    channels=value.convolution.out_channels,
                    table_by_place=int(design.position == "absolute"))
    projections = (projection(attention.conv1, query_scale, query_shift),
                   projection(key, key_scale), value)
    return FoldedDesign(settings, matrices, projections, halves, code,
                        None if design.position == "none" else attention.conv_p, attention.window)


def projection(convolution: nn.Conv2d, scale: Tensor | None = None,
               shift: Tensor | None = None) -> Projection:
    """Return a projection whose scale is 1, and shift 0, unless they are given."""
    channels = convolution.out_channels
    neutral = torch.ones(channels, dtype=torch.float64)
    return Projection(convolution, neutral if scale is None else scale,
                      torch.zeros_like(neutral) if shift is None else shift)


def _layers(mapping: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of each linear layer, the normalisation behind it folded in."""
    found = []
    for index in range(2, len(mapping), 3):
        linear = cast(nn.Conv2d, mapping[index])
        weight = linear.weight.detach().flatten(1).double()
        bias = weight.new_zeros(len(weight))
        if index + 1 < len(mapping):
            scale, shift = affine(cast(nn.BatchNorm2d, mapping[index + 1]))
            own = bias if linear.bias is None else linear.bias.detach().double()
            weight, bias = weight * scale.unsqueeze(1), own * scale + shift
        found.append((weight.detach(), bias.detach()))
    return found


def _by_halves(weight: Tensor) -> Tensor:
    """From (D, 2R) to the weight of `Halves`."""
    hidden, channels = weight.shape
    query, key = weight.chunk(2, dim=1)
    halves = weight.new_zeros(channels, channels)
    halves[:hidden, :channels // 2] = query
    halves[channels // 2:channels // 2 + hidden, channels // 2:] = -key
    return halves


def _both(name: str, transposed: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: weight.float().contiguous(), transposed: weight.float().t().contiguous()}


def _rounded(values: Tensor) -> Tensor:
    """As float32 holds them."""
    return values.float().double()
