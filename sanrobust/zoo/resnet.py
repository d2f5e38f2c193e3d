"""Bottleneck residual networks (He et al. 2016), the paper's convolutional baselines.

Letters: B images, C channels, H and W pixels, K classes. Names of parameters and buffers are
torchvision's, so its weights load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from sanrobust.zoo.entry import ResNetConfig


class ResNet(nn.Module):
    """A ResNet of bottleneck blocks; normalised images (B, 3, H, W) to logits (B, K)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = (nn.MaxPool2d(3, stride=2, padding=1) if config.stem == "imagenet"
                        else nn.Identity())
        depths = config.layers
        expansion = Bottleneck.expansion
        self.layer1 = _stage(width, width, depths[0], stride=1)
        self.layer2 = _stage(width * expansion, width * 2, depths[1], stride=2)
        self.layer3 = _stage(width * 2 * expansion, width * 4, depths[2], stride=2)
        self.layer4 = _stage(width * 4 * expansion, width * 8, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width * 8 * expansion, config.num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised ``images`` (B, 3, H, W)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(features), 1))
        return logits


def _stage(in_channels: int, inner_channels: int, depth: int, *, stride: int) -> nn.Sequential:
    out_channels = inner_channels * Bottleneck.expansion
    downsample = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )
    blocks = [Bottleneck(in_channels, inner_channels, stride, downsample)]
    blocks += [Bottleneck(out_channels, inner_channels) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
