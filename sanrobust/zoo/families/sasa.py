"""ResNets with local self-attention for convolutions (SASA, Ramachandran et al. 2019); no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from sanrobust.design import SASA, AttentionConfig
from sanrobust.zoo.families.attention import (
    CONTENT, POSITIONS, SIDES, operator, require_heads, settle_content,
)
from sanrobust.zoo.families.base import (
    SMALL_SHARE, Family, ModelName, Option, Sizes, joined, width_option,
)
from sanrobust.zoo.families.resnet import LAYERS

if TYPE_CHECKING:
    from torch import nn

_OPTIONS = (
    Option("stem", ("conv", "attention"), "conv"),
    Option("footprint", SIDES),
    Option("position", POSITIONS, SASA.position),
    Option("heads", ("1", "2", "4", "8", "16", "32")),
    CONTENT,
    Option("convolutions", ("0", "1", "2", "3"), "0"),
    width_option(16),  # rows and columns of eight heads
)


@dataclass(frozen=True)
class SasaConfig:
    """A bottleneck residual network with self-attention for convolutions (SASA, NeurIPS 2019).

    Attributes:
        kind: what files call such networks.
        layers: bottleneck blocks of each of the four groups.
        width: channels of the stem and of the first group's inner layers.
        stem: ``conv`` (a ResNet's), ``attention`` (over 4x4 blocks, then pooling) or ``small``
            (3x3 convolution, stride 1, no pooling).
        design: the self-attention operator, of the ``sasa`` family.
        footprint: spatial extent of attention in pixels, odd.
        convolutions: so many early groups keep their 3x3 convolutions.
        num_classes: length of the logits.
    """

    kind: ClassVar[str] = "sasa"

    layers: tuple[int, int, int, int]
    width: int = 64
    stem: Literal["conv", "attention", "small"] = "conv"
    design: AttentionConfig = SASA
    footprint: int = 7
    convolutions: int = 0
    num_classes: int = 1000

    @property
    def sizes(self) -> Sizes:
        """What decides how large the network is."""
        return Sizes(channels=(self.width,), sides=(self.footprint,))

    def describe(self) -> str:
        """Return the network in words, without its attention operator."""
        return (f"bottleneck ResNet with self-attention of footprint {self.footprint}, "
                f"{self.convolutions} groups of convolutions, blocks {joined(self.layers)}, "
                f"width {self.width}, {self.stem} stem")


def _form(name: ModelName, *, small: bool) -> SasaConfig:
    share = SMALL_SHARE if small else 1
    design = operator(name, "sasa", small=small)
    require_heads(name, design, lambda width: width // share)
    convolutional: Literal["conv", "small"] = "small" if small else "conv"
    return SasaConfig(layers=LAYERS[name.network[-2:]], width=name.number("width") // share,
                      stem="attention" if name.value("stem") == "attention" else convolutional,
                      design=design, footprint=name.number("footprint", 5 if small else 7),
                      convolutions=name.number("convolutions"))


def _build(config: SasaConfig) -> nn.Module:
    from sanrobust.zoo.sasa import SasaResNet
    return SasaResNet(config)


SASA_RESNET = Family(
    config=SasaConfig,
    networks=("sasa26", "sasa38", "sasa50"),
    options=lambda _: _OPTIONS,
    settle=settle_content,
    form=_form,
    build=_build,
    listed=False,
)
