"""Bottleneck residual networks (He et al. 2016), the paper's convolutional baselines.

Letters: B images, C channels, H and W pixels, K classes. Names of parameters and buffers are
torchvision's, so its weights load as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sanrobust.errors import ModelError
from sanrobust.zoo.blocks import BlockNetwork, Blocks
from sanrobust.zoo.families.resnet import ResNetConfig

Spatial = Callable[[int, int], nn.Module]
"""Makes from its channels and its stride what a block has in place of its 3x3 convolution."""


class Stem(NamedTuple):
    """What comes before the blocks: a layer, its activation and its pooling."""

    layer: nn.Module
    activation: nn.Module
    pooling: nn.Module


class BottleneckNetwork(BlockNetwork):
    """Bottleneck blocks in four groups; normalised images (B, 3, H, W) to logits (B, K).

    Args:
        stem: maps images to ``width`` channels.
        layers: blocks of each group.
        width: channels of the stem and of the first group's inner layers.
        spatials: for each group what takes the place of the 3x3 convolutions; None keeps them.
        num_classes: K.
    """

    def __init__(self, stem: Stem, *, layers: Sequence[int], width: int,
                 spatials: Sequence[Spatial | None], num_classes: int) -> None:
        super().__init__()
        self.conv1 = stem.layer
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = stem.activation
        self.maxpool = stem.pooling
        expansion = Bottleneck.expansion
        in_channels = width
        for group, (depth, spatial) in enumerate(zip(layers, spatials)):
            inner_channels = width * 2 ** group
            self.add_module(f"layer{group + 1}", _stage(
                in_channels, inner_channels, depth, stride=2 if group else 1, spatial=spatial))
            in_channels = inner_channels * expansion
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised ``images`` (B, 3, H, W)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for group in range(1, 5):
            features = self.get_submodule(f"layer{group}")(features)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(features), 1))
        return logits


class ResNet(BottleneckNetwork):
    """A ResNet; normalised images (B, 3, H, W) to logits (B, K).

    Kernels of the blocks other than 3x3 keep the names of the parameters and the sizes of the
    maps: they are padded by half their side.

    Raises ModelError when the configuration cannot be built.
    """

    def __init__(self, config: ResNetConfig) -> None:
        if config.kernel < 1 or config.kernel % 2 == 0:
            raise ModelError("the kernel of a ResNet must be odd and positive",
                             seen=f"it is {config.kernel}", hint="use 3, 5 or 7")
        # The blocks come with 3x3 convolutions; made anew, they would draw other initial values.
        spatial = None if config.kernel == 3 else partial(_convolution, config.kernel)
        super().__init__(convolutional_stem(config.stem, config.width), layers=config.layers,
                         width=config.width, spatials=[spatial] * len(config.layers),
                         num_classes=config.num_classes)
        self.config = config
        initialise_convolutions(self)


def convolutional_stem(kind: Literal["imagenet", "small"], width: int) -> Stem:
    """Return the stem of ``ResNetConfig.stem`` with ``width`` channels."""
    if kind == "small":
        return Stem(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.ReLU(inplace=True),
                    nn.Identity())
    return Stem(nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1))


def initialise_convolutions(module: nn.Module, leave: tuple[type[nn.Module], ...] = ()) -> None:
    """Draw the weights of every convolution below ``module`` anew as torchvision does.

    Args:
        module: the network, or a part of it.
        leave: modules that keep, with all inside them, their own initial values.
    """
    if isinstance(module, leave):
        return
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for child in module.children():
        initialise_convolutions(child, leave)


def _stage(in_channels: int, inner_channels: int, depth: int, *, stride: int,
           spatial: Spatial | None) -> Blocks:
    out_channels = inner_channels * Bottleneck.expansion
    downsample = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )
    blocks = [Bottleneck(in_channels, inner_channels, stride, downsample)]
    blocks += [Bottleneck(out_channels, inner_channels) for _ in range(depth - 1)]
    if spatial is not None:
        for block in blocks:
            block.conv2 = spatial(inner_channels, block.stride)
    return Blocks(*blocks)


def _convolution(kernel: int, channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
