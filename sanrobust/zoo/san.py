"""Self-Attention Networks (Zhao, Jia and Koltun, CVPR 2020, Section 4 and Table 1).

Letters: B images, C channels, H and W pixels, K classes. Names, shapes and order of the state
dict are those of the published checkpoints; the constants below are the paper's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.design import AttentionConfig
from sanrobust.errors import ModelError
from sanrobust.kernels.functional import norm_relu, stem
from sanrobust.kernels.hooks import is_pointwise
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.pointwise import convolved
from sanrobust.zoo.blocks import BlockNetwork, Blocks
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.forms import require_side, smallest_input

RELATION_REDUCTION = 16
VALUE_REDUCTION = 4
SHARED_CHANNELS = 8
_WIDTH_UNIT = VALUE_REDUCTION * SHARED_CHANNELS


class SanBlock(nn.Module):
    """Pre-activation residual block around self-attention (paper Figure 2, (B, C, H, W) kept)."""

    def __init__(self, config: SanConfig, *, channels: int, footprint: int) -> None:
        super().__init__()
        value_channels = channels // VALUE_REDUCTION
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = _attention(config.design, channels, footprint)
        self.bn2 = nn.BatchNorm2d(value_channels)
        self.conv = nn.Conv2d(value_channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's output (B, C, H, W) for ``features`` (B, C, H, W)."""
        attended = self.sam(norm_relu(self.bn1, features))
        return _convolved(self.conv, norm_relu(self.bn2, attended), residual=features)


class San(BlockNetwork):
    """A SAN; normalised images (B, 3, H, W) to logits (B, K).

    Attributes:
        config: the configuration it was built from.
        smallest_input: shortest side in pixels that an image may have.

    Raises ModelError when the configuration cannot be built.
    """

    def __init__(self, config: SanConfig) -> None:
        super().__init__()
        _require_buildable(config)
        self.config = config
        self.smallest_input = smallest_input(config)
        width = config.widths[0]
        self.conv_in = nn.Conv2d(3, width, 1, bias=False)
        self.bn_in = nn.BatchNorm2d(width)
        for stage, next_width in enumerate(config.widths):
            self.add_module(f"conv{stage}", nn.Conv2d(width, next_width, 1, bias=False))
            self.add_module(f"bn{stage}", nn.BatchNorm2d(next_width))
            self.add_module(f"layer{stage}", Blocks(*(
                SanBlock(config, channels=next_width, footprint=config.footprints[stage])
                for _ in range(config.layers[stage])
            )))
            width = next_width
        self.fc = nn.Linear(width, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised ``images`` (B, 3, H, W).

        Raises ModelError when an image is smaller than the attention footprints allow.
        """
        require_large_enough(images, self.smallest_input)
        first, *pools = *self.config.pools, False
        features = stem(self.conv_in, self.bn_in, images, pooled=first)
        for stage, pooled in enumerate(pools):
            features = self._stage(stage, features, pooled=pooled)
        logits: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(features, 1), 1))
        return logits

    def _stage(self, stage: int, features: Tensor, *, pooled: bool) -> Tensor:
        projected = _convolved(self.get_submodule(f"conv{stage}"), features)
        attended = self.get_submodule(f"layer{stage}")(projected)
        return norm_relu(self.get_submodule(f"bn{stage}"), attended, pooled=pooled)


def _convolved(convolution: nn.Module, features: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return the 1x1 convolution of ``features`` and, added to it, the ``residual``.

    In training it is computed as its gradients are made fastest.
    """
    unwatched = is_pointwise(convolution)
    if convolution.training and unwatched:
        assert isinstance(convolution, nn.Conv2d)
        return convolved(features, convolution.weight, convolution.bias, residual)
    made: Tensor = convolution(features)
    if residual is None:
        return made
    # Somebody may keep what a watched layer returns.
    return made.add_(residual) if unwatched else made + residual


def _attention(design: AttentionConfig, channels: int, footprint: int
               ) -> PairwiseAttention | PatchwiseAttention | LocalAttention:
    """Return the operator of a block; SASA compares in C/4 channels, all others in C/16."""
    value_channels = channels // VALUE_REDUCTION
    relation_channels = channels // RELATION_REDUCTION
    if design.attention in ("scalar", "sasa"):
        compared = relation_channels if design.attention == "scalar" else value_channels
        return LocalAttention(channels, query_channels=compared, value_channels=value_channels,
                              design=design, footprint=footprint)
    family = PairwiseAttention if design.attention == "pairwise" else PatchwiseAttention
    return family(channels, relation_channels=relation_channels, value_channels=value_channels,
                  weight_groups=value_channels // SHARED_CHANNELS, footprint=footprint,
                  design=design)


def require_large_enough(images: Tensor, side: int) -> None:
    """Raise ModelError when ``images`` (B, 3, H, W) have a side below ``side`` pixels."""
    require_side(images.shape[-2], images.shape[-1], side)


def _require_buildable(config: SanConfig) -> None:
    stages = len(config.layers)
    if stages < 1:
        raise ModelError("a SAN must have at least one stage", seen="its layers are empty",
                         hint="name the blocks of each stage")
    per_stage = {"footprints": config.footprints, "widths": config.widths, "pools": config.pools}
    for name, values in per_stage.items():
        # Configurations come from files too, where a list may be nothing at all.
        if not isinstance(values, tuple) or len(values) != stages:
            raise ModelError(f"{name} of a SAN must have one item per stage",
                             seen=f"they are {values} for {stages} stages",
                             hint=f"give {stages} values")
    for width in config.widths:
        if width < _WIDTH_UNIT or width % _WIDTH_UNIT:
            nearest = max(1, round(width / _WIDTH_UNIT)) * _WIDTH_UNIT
            raise ModelError(f"widths of a SAN must be multiples of {_WIDTH_UNIT}",
                             seen=f"one is {width}", hint=f"use {nearest}")
