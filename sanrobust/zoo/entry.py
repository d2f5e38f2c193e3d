"""What the zoo knows of a model: one frozen value per entry, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sanrobust.design import PAIRWISE, SASA, Attention, AttentionConfig
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo import names


@dataclass(frozen=True)
class Sizes:
    """What decides how much memory a network takes.

    Attributes:
        channels: widths of its layers.
        sides: of its kernels and footprints, in pixels.
    """

    channels: tuple[int, ...]
    sides: tuple[int, ...]


@dataclass(frozen=True)
class SanConfig:
    """A self-attention network (Zhao et al. 2020, Table 1); one tuple item per stage.

    Attributes:
        kind: what files call such networks.
        layers: self-attention blocks of each stage.
        design: the self-attention operator of every block.
        footprints: side of each stage's square attention footprint in pixels.
        widths: channels of each stage; the first is also the width of the stem.
        pools: whether a 2x2 max pooling with stride 2 precedes the stage.
        num_classes: length of the logits.
    """

    kind: ClassVar[str] = "san"

    layers: tuple[int, ...]
    design: AttentionConfig = PAIRWISE
    footprints: tuple[int, ...] = (3, 7, 7, 7, 7)
    widths: tuple[int, ...] = (64, 256, 512, 1024, 2048)
    pools: tuple[bool, ...] = (True, True, True, True, True)
    num_classes: int = 1000

    @property
    def attention(self) -> Attention:
        """Family of the operator, a shorthand for ``design.attention``."""
        return self.design.attention

    @property
    def sizes(self) -> Sizes:
        """What decides how large the network is."""
        return Sizes(channels=self.widths, sides=self.footprints)

    def describe(self) -> str:
        """Return the network in words, without its attention operator."""
        return (f"SAN, blocks {_listed(self.layers)}, footprints {_listed(self.footprints)}, "
                f"widths {_listed(self.widths)}")


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
                f"blocks {_listed(self.layers)}, width {self.width}, {self.stem} stem")


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
                f"{self.convolutions} groups of convolutions, blocks {_listed(self.layers)}, "
                f"width {self.width}, {self.stem} stem")


Architecture = SanConfig | ResNetConfig | SasaConfig
"""The configuration of a network of any family."""


@dataclass(frozen=True)
class Packaged:
    """Weights shipped inside the package: a file of ``zoo/weights`` and its SHA-256."""

    filename: str
    sha256: str


@dataclass(frozen=True)
class Remote:
    """Weights somebody else publishes.

    Attributes:
        url: direct address of the file.
        sha256: expected hash; None when the publisher gives none, then the hash of the first
            download is recorded and every later one is held to it.
        page: where a person finds the file when the direct address fails.
    """

    url: str
    sha256: str | None = None
    page: str = ""


@dataclass(frozen=True)
class Untrained:
    """Initial values drawn from a fixed seed: for trying a pipeline and measuring its speed."""

    seed: int = 0


@dataclass(frozen=True)
class Unpublished:
    """No weights exist in public; ``reason`` says so in a sentence for the user."""

    reason: str


@dataclass(frozen=True)
class Stored:
    """Weights that the user added to the local store: file name in the store and its SHA-256."""

    filename: str
    sha256: str


WeightsSource = Packaged | Remote | Untrained | Unpublished | Stored


@dataclass(frozen=True)
class Entry:
    """Everything about one model, ``arch.tag``.

    Attributes:
        arch: architecture name, for example ``san19-pair``, with or without options.
        tag: name of its weights, for example ``in1k``.
        architecture: the network's configuration.
        weights: where the weights come from.
        preprocessing: how the weights expect their images.
        data: the dataset whose classes the logits stand for.
        classes: name of each class, by index; None when unknown.
        top1, top5: accuracy in percent as reported by ``reference``; None when nobody reports it.
        licence: licence of the weights.
        reference: paper or command the figures come from.
        note: anything else a user must know, one sentence.

    Raises UnknownNameError when ``arch`` is not the name of an architecture.
    """

    arch: str
    tag: str
    architecture: Architecture
    weights: WeightsSource
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    data: str = "imagenet"
    classes: tuple[str, ...] | None = None
    top1: float | None = None
    top5: float | None = None
    licence: str = ""
    reference: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        names.architecture(self.arch)  # else the entry would be listed and never found

    @property
    def name(self) -> str:
        """Full name, ``arch.tag``."""
        return f"{self.arch}.{self.tag}"


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
