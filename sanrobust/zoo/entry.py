"""What the zoo knows of a model: one frozen value per entry, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo import names
from sanrobust.zoo.families.base import Architecture


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
