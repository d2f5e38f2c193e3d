"""ResNets with local self-attention in place of their 3x3 convolutions (SASA).

Letters: B images, C channels, H and W pixels, K classes. Names of parameters and buffers are those
of our ResNets, with the parameters of ``LocalAttention`` where ``conv2`` was a convolution.

Source: Ramachandran et al., NeurIPS 2019. Where the paper is silent we follow the public
reimplementations: transforms without bias, zeros around the map. Depths are those of the SAN
paper's ResNets, which have the paper's parameter counts (10.3, 14.1 and 18.0 million).
"""

from __future__ import annotations

from functools import partial

from torch import nn

from sanrobust.errors import ModelError, UsageError
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.local_stem import BlockAttention
from sanrobust.zoo.families.sasa import SasaConfig
from sanrobust.zoo.resnet import (BottleneckNetwork, Spatial, Stem, convolutional_stem,
                                  initialise_convolutions)


class SasaResNet(BottleneckNetwork):
    """A SASA network; normalised images (B, 3, H, W) to logits (B, K).

    Attention keeps the size of its map; where a ResNet's convolution has stride 2, 2x2 average
    pooling follows it. Attention starts from torch's initial values for linear layers, as in the
    SANs: the larger ones of a ResNet would saturate the softmax of wide heads.

    Raises ModelError when the configuration cannot be built.
    """

    def __init__(self, config: SasaConfig) -> None:
        groups = len(config.layers)
        if not 0 <= config.convolutions <= groups:
            raise ModelError(f"a SASA network must have 0 to {groups} groups of convolutions",
                             seen=f"there are {config.convolutions}", hint="use 0, 1, 2 or 3")
        spatials: list[Spatial | None] = [None] * config.convolutions
        spatials += [partial(_attention, config)] * (groups - config.convolutions)
        try:
            super().__init__(_stem(config), layers=config.layers, width=config.width,
                             spatials=spatials, num_classes=config.num_classes)
        except UsageError as error:
            raise ModelError(error.rule, seen=error.seen, hint=error.hint) from error
        self.config = config
        initialise_convolutions(self, leave=(LocalAttention, BlockAttention))


def _stem(config: SasaConfig) -> Stem:
    """The stem of the configuration; all but ``small`` leave a quarter of the image's sides."""
    if config.stem == "attention":
        attention = BlockAttention(3, out_channels=config.width, heads=config.design.heads)
        return Stem(attention, nn.Identity(), nn.MaxPool2d(attention.block))
    return convolutional_stem("small" if config.stem == "small" else "imagenet", config.width)


def _attention(config: SasaConfig, channels: int, stride: int) -> nn.Module:
    attention = LocalAttention(
        channels, query_channels=channels, value_channels=channels, design=config.design,
        footprint=config.footprint, bias=False, padding_mode="zeros")
    if stride == 1:
        return attention
    # Rounding up keeps odd maps as large as the strided convolution beside it makes them.
    return nn.Sequential(attention, nn.AvgPool2d(stride, ceil_mode=True))
