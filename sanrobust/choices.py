"""What a caller chooses, from the command line or from Python, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sanrobust.errors import UsageError

if TYPE_CHECKING:
    from sanrobust.zoo.classifier import Classifier


@dataclass(frozen=True)
class DataChoice:
    """Which images; None for ``data`` means the embedded digits.

    Attributes:
        data: registered name or folder.
        labels: CSV ``file,class_index`` of a flat folder.
        class_map: CSV ``folder,class_index`` of an ImageFolder.
        root: where registered datasets lie.
        download: fetch a registered dataset that is not there.
        num_samples: size of a fixed subset; None for all images.
        name: what tables call a folder; ``imagenet`` for one that holds ImageNet's validation
            images puts the paper's values beside ours.
    """

    data: str | None = None
    labels: Path | None = None
    class_map: Path | None = None
    root: Path | None = None
    download: bool = False
    num_samples: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class ModelChoice:
    """Which models; an empty tuple means the paper's nine.

    Attributes:
        models: names, or classifiers made in Python.
        checkpoint: weights for the one model named.
        use_ema: take the averaged weights of a checkpoint that holds both.
        overrides: fields of `Preprocessing` that replace the entry's own.
    """

    models: tuple[str | Classifier, ...] = ()
    checkpoint: Path | None = None
    use_ema: bool = False
    overrides: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.checkpoint is not None and len(self.models) != 1:
            raise UsageError("--checkpoint must come with exactly one --model",
                             seen=f"{len(self.models)} models are named",
                             hint="type --model NAME --checkpoint FILE")
        if self.use_ema and self.checkpoint is None:
            raise UsageError("--use-ema must come with --checkpoint", seen="there is none",
                             hint="type --checkpoint FILE --use-ema, or leave it out")


@dataclass(frozen=True)
class HowToRun:
    """How to compute; nothing here changes a number.

    Attributes:
        out: folder of records and tables.
        batch_size: images per batch, ``auto`` to fit it to memory, None for a default by size.
        workers: processes that decode images; 0 decodes in this one.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        backend: name of the attention kernels; None for the best that can run.
        fresh: start a new attempt beside earlier ones.
        fold: compute a SAN as a whole by the native kernels where they can.
    """

    out: Path = Path("results")
    batch_size: int | Literal["auto"] | None = None
    workers: int = 0
    device: str = "auto"
    backend: str | None = None
    fresh: bool = False
    fold: bool = True
