"""Vector self-attention: the layers around the operators of ``functional``, of every design.

Letters: B images, C channels, R relation channels, O value channels, M weight groups, K2
neighbours, P position channels, N channels of the mapping's input, H and W map pixels. Names of
parameters are those of the published checkpoints: conv1, conv2 and conv3 are the paper's phi, psi
and beta, conv_w its gamma, conv_p its position encoding. Where transforms are shared the later of
these names are missing: conv1 is phi and psi, or all three.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast, get_args

import torch
from torch import Tensor, nn

from sanrobust.design import PAIRWISE, PATCHWISE, AttentionConfig, Mapping, Position
from sanrobust.errors import UsageError
from sanrobust.kernels import functional, reference, relations
from sanrobust.kernels.hooks import is_pointwise
from sanrobust.kernels.mappings import (RelationLayer, pairwise_mapping, patchwise_mapping,
                                        widest)
from sanrobust.kernels.plain import PaddingMode
from sanrobust.kernels.pointwise import convolved
from sanrobust.kernels.relations import Family, Sizes

POSITION_CHANNELS = 2
Weigh = Callable[[Tensor, Tensor], Tensor]


def position_grid(height: int, width: int, *, dtype: torch.dtype = torch.float32,
                  device: torch.device | None = None) -> Tensor:
    """Return coordinates (1, 2, H, W), x then y, each from -1 to 1 across the map."""
    down = torch.linspace(-1.0, 1.0, height, dtype=dtype, device=device)
    across = torch.linspace(-1.0, 1.0, width, dtype=dtype, device=device)
    rows, columns = torch.meshgrid(down, across, indexing="ij")
    return torch.stack((columns, rows)).unsqueeze(0)


class VectorAttention(nn.Module):
    """What pairwise and patchwise attention share; use one of those.

    Attributes:
        design: the point of the design space.
        window: the footprint.
        relation: delta, a submodule without parameters.
    """

    conv_w: nn.Sequential

    def __init__(self, channels: int, *, relation_channels: int, value_channels: int,
                 weight_groups: int, footprint: int, design: AttentionConfig, family: Family,
                 padding_mode: PaddingMode) -> None:
        super().__init__()
        _require_groups(value_channels, weight_groups)
        _require_design(design, family)
        self.design = design
        self.window = functional.make_window(footprint, padding_mode=padding_mode)
        # One transform for all has the values' width: r1 = r2 in Section 5.3.
        compared = value_channels if design.transforms == 1 else relation_channels
        self.conv1 = nn.Conv2d(channels, compared, 1)
        if design.transforms == 3:
            self.conv2 = nn.Conv2d(channels, compared, 1)
        if design.transforms >= 2:
            self.conv3 = nn.Conv2d(channels, value_channels, 1)
        sizes = Sizes(compared, self.window.neighbours, shared=design.transforms < 3)
        self.relation = RelationLayer(relations.find(family, design.relation), sizes, self.window)

    def projections(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        """Return what makes query, key and value; with fewer transforms than 3 some are one."""
        transforms = self.design.transforms
        return (self.conv1, self.conv2 if transforms == 3 else self.conv1,
                self.conv3 if transforms >= 2 else self.conv1)

    def compared(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return query and key (B, R, H, W) of ``features`` (B, C, H, W)."""
        query = self.conv1(features)
        return query, self.conv2(features) if self.design.transforms == 3 else query

    def _projected(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value; in training by one product, so that one gradient returns."""
        query, key, value = projections = self.projections()
        distinct = list(dict.fromkeys(projections))
        if self.training and features.dim() == 4 and all(
                is_pointwise(each) and each.bias is not None for each in distinct):
            made = convolved(features, torch.cat([each.weight for each in distinct]),
                             torch.cat([cast(Tensor, each.bias) for each in distinct]))
            maps = dict(zip(distinct, torch.split(made, [len(each.weight) for each in distinct],
                                                  1)))
        else:
            maps = {each: each(features) for each in distinct}
        return maps[query], maps[key], maps[value]

    def _by_slices(self, attend: Callable[..., Tensor], *maps: Tensor) -> Tensor:
        pairs = 1 if self.relation.relation.family == "patchwise" else self.window.neighbours
        return reference.by_slices(attend, maps, self.conv_w, pairs * widest(self.conv_w))


class PairwiseAttention(VectorAttention):
    """Pairwise self-attention (equation 2): gamma of each pair, softmax over the neighbours.

    Args:
        channels: C of the input.
        relation_channels: R of the compared features, and the width of gamma's hidden layers.
        value_channels: O of the output.
        weight_groups: M; value channels c, c + M, c + 2M... share a weight.
        footprint: side of the square footprint, odd.
        design: which pairwise attention; as released by default. Relative position adds the
            encoded p_i - p_j to each relation. Absolute position adds p_j: p_i is the same for
            all neighbours, and alone could hardly tell them apart.
        padding_mode: how the map continues past its border.

    Raises UsageError when the settings do not fit together and UnknownNameError when no pairwise
    relation has the name.
    """

    def __init__(self, channels: int, *, relation_channels: int, value_channels: int,
                 weight_groups: int, footprint: int, padding_mode: PaddingMode = "reflect",
                 design: AttentionConfig = PAIRWISE) -> None:
        super().__init__(channels, relation_channels=relation_channels,
                         value_channels=value_channels, weight_groups=weight_groups,
                         footprint=footprint, design=design, family="pairwise",
                         padding_mode=padding_mode)
        placed = 0 if design.position == "none" else POSITION_CHANNELS
        self.conv_w = pairwise_mapping(design.mapping, self.relation.width + placed,
                                       relation_channels, weight_groups)
        if placed:
            self.conv_p = nn.Conv2d(placed, placed, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the attended values (B, O, H, W) of ``features`` (B, C, H, W)."""
        query, key, value = self._projected(features)
        relation, absolute = self.relation.relation, self.design.position == "absolute"
        compare: RelationLayer | None = self.relation
        if relation.fused is not None and relation.delta == "subtraction":
            compare, key = None, relation.fused(key)
        return functional.pairwise_attention(
            query, key, value, self._encoded(query), self.conv_w,
            footprint=self.window.footprint, padding_mode=self.window.padding_mode,
            affine=self.design.position == "none" or is_pointwise(self.conv_p), compare=compare,
            absolute=absolute)

    def attention_weights(self, features: Tensor) -> Tensor:
        """Return the weights (B, M, K2, H * W) that ``forward`` uses; they sum to 1 over K2."""
        query, key = self.compared(features)
        return self._by_slices(self._weigh(query), query, key)

    def _weigh(self, like: Tensor) -> Weigh:
        """Return what makes weights (B, M, K2, H * W) of query and key, maps as large as ``like``.
        """
        places = self._places(like)

        def weigh(query: Tensor, key: Tensor) -> Tensor:
            relation = (*self.relation(query, key),
                        *(each.expand(len(query), -1, -1, -1) for each in places))
            return torch.softmax(functional.mapped(self.conv_w, _joined(relation)), dim=-2)

        return weigh

    def _places(self, like: Tensor) -> tuple[Tensor, ...]:
        """Return what position adds to every image's relations, (1, P, K2, H * W) or nothing."""
        if self.design.position == "none":
            return ()
        encoded = self._encoded(like)
        if self.design.position == "absolute":
            return (self.relation.neighbours(encoded),)
        return (self.relation.subtraction(encoded, encoded),)

    def _encoded(self, like: Tensor) -> Tensor:
        """Return the encoded position (1, P, H, W), P = 0 where there is none."""
        if self.design.position == "none":
            return like.new_empty(1, 0, *like.shape[-2:])
        encoded: Tensor = self.conv_p(position_grid(
            *like.shape[-2:], dtype=self.conv_p.weight.dtype, device=like.device))
        return encoded


class PatchwiseAttention(VectorAttention):
    """Patchwise self-attention (equation 4): gamma of the whole patch, without a softmax.

    Arguments, and errors, are those of `PairwiseAttention`; there is no position, as gamma knows
    the neighbours by their places. In a mapping of three layers the second hidden one has M
    channels, in one of two the only one.
    """

    def __init__(self, channels: int, *, relation_channels: int, value_channels: int,
                 weight_groups: int, footprint: int, padding_mode: PaddingMode = "reflect",
                 design: AttentionConfig = PATCHWISE) -> None:
        super().__init__(channels, relation_channels=relation_channels,
                         value_channels=value_channels, weight_groups=weight_groups,
                         footprint=footprint, design=design, family="patchwise",
                         padding_mode=padding_mode)
        self.conv_w = patchwise_mapping(design.mapping, self.relation.width, relation_channels,
                                        weight_groups, self.window.neighbours)

    def forward(self, features: Tensor) -> Tensor:
        """Return the attended values (B, O, H, W) of ``features`` (B, C, H, W)."""
        query, key, value = self._projected(features)
        fused = self.relation.relation.fused
        if fused is None or self.relation.sizes.shared:
            return self._by_slices(self._attend, query, key, value)
        return functional.patchwise_attention(
            query, fused(key), value, self.conv_w, footprint=self.window.footprint,
            padding_mode=self.window.padding_mode)

    def attention_weights(self, features: Tensor) -> Tensor:
        """Return the weights (B, M, K2, H * W) that ``forward`` uses, of any size and sign."""
        return self._by_slices(self._weigh, *self.compared(features))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.patchwise_sum(
            _joined(self.relation(query, key)), value, self.conv_w,
            footprint=self.window.footprint, padding_mode=self.window.padding_mode)

    def _weigh(self, query: Tensor, key: Tensor) -> Tensor:
        mapped = functional.mapped(self.conv_w, _joined(self.relation(query, key)))
        return torch.unflatten(mapped.squeeze(2), 1, (-1, self.window.neighbours))


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    """Join parts along their channels; one alone is as it is, where torch would copy it."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _require_groups(value_channels: int, weight_groups: int) -> None:
    if weight_groups < 1 or value_channels % weight_groups:
        raise UsageError(f"value channels ({value_channels}) must be a multiple of the weight "
                         "groups", seen=f"there are {weight_groups}",
                         hint="change one of the two")


def _require_design(design: AttentionConfig, family: Family) -> None:
    positions = get_args(Position) if family == "pairwise" else ("none",)
    legal: dict[str, tuple[object, ...]] = {
        "attention": (family,), "mapping": get_args(Mapping), "transforms": (1, 2, 3),
        "position": positions, "heads": (1,), "content": (True,)}
    for name, values in legal.items():
        seen = getattr(design, name)
        if seen not in values:
            listed = " or ".join(map(str, values))
            raise UsageError(f"{name} of {family} attention must be {listed}",
                             seen=f"it is {seen}", hint=f"use {name}={values[0]}")
