"""Bottleneck ResNets (He et al. 2016) of the paper's depths; no torch.

``resnet26`` and ``resnet38`` are the paper's own depths (1, 2, 4, 1) and (2, 3, 5, 2), not the
networks of these names in other collections.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sanrobust.zoo.families.base import (
    SMALL_SHARE, Family, ModelName, Option, Sizes, joined, width_option,
)

if TYPE_CHECKING:
    from torch import nn

LAYERS: dict[str, tuple[int, int, int, int]] = {
    "26": (1, 2, 4, 1),
    "38": (2, 3, 5, 2),
    "50": (3, 4, 6, 3),
}


@dataclass(frozen=True)
class ResNetConfig:
    """A bottleneck residual network (He et al. 2016).

    Attributes:
        kind: what files call such networks.
        layers: bottleneck blocks of each of the four stages.
        width: channels of the stem and of the first stage's inner convolutions (64 in the paper).
        stem: ``imagenet`` (7x7 convolution, stride 2, max pooling) or ``small`` (3x3, stride 1,
            no pooling).
        kernel: side of the blocks' spatial convolutions in pixels, odd.
        num_classes: length of the logits.
    """

    kind: ClassVar[str] = "resnet"

    layers: tuple[int, int, int, int]
    width: int = 64
    stem: Literal["imagenet", "small"] = "imagenet"
    kernel: int = 3
    num_classes: int = 1000

    @property
    def sizes(self) -> Sizes:
        """What decides how large the network is."""
        return Sizes(channels=(self.width,), sides=(self.kernel,))

    def describe(self) -> str:
        """Return the network in words."""
        return (f"bottleneck ResNet, {self.kernel}x{self.kernel} kernels, "
                f"blocks {joined(self.layers)}, width {self.width}, {self.stem} stem")


def _form(name: ModelName, *, small: bool) -> ResNetConfig:
    return ResNetConfig(layers=LAYERS[name.network[-2:]], kernel=name.number("kernel"),
                        width=name.number("width") // (SMALL_SHARE if small else 1),
                        stem="small" if small else "imagenet")


def _build(config: ResNetConfig) -> nn.Module:
    from sanrobust.zoo.resnet import ResNet
    return ResNet(config)


RESNET = Family(
    config=ResNetConfig,
    networks=("resnet26", "resnet38", "resnet50"),
    options=lambda _: (Option("kernel", ("3", "5", "7"), "3"), width_option(SMALL_SHARE)),
    form=_form,
    build=_build,
    listed=False,
)
