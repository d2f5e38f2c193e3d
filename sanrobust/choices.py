"""What a caller chooses, from the command line or from Python, as frozen values."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sanrobust.errors import UsageError, shown_value
from sanrobust.shards import Shard

if TYPE_CHECKING:
    from torch import nn

    Model = str | nn.Module
    """A name, or a classifier or network made in Python."""

MOST_PROCESSES = 512
"""Processes that one command may start; more are a slip of the keyboard."""
FLOAT32, TF32 = "float32", "tf32"
PRECISIONS = (FLOAT32, TF32, "bfloat16", "float16")
"""In what networks can be computed; pixels, logits and attacks are float32 in all of them."""
LARGEST_RATE = 1e38
"""Largest learning rate that float32 holds."""


@dataclass(frozen=True)
class DataConfig:
    """Which images; None for ``data`` means the embedded digits.

    Attributes:
        data: registered name, or a path, pattern or ``hf:NAME`` as ``--data`` takes it. From
            Python also ``(images, labels)`` as arrays or tensors, with ids as a third if need be,
            a ``torch.utils.data.Dataset`` of ``(image, label)``, or its ``DataLoader``.
        labels: CSV ``file,class_index`` of a flat folder.
        class_map: CSV ``folder,class_index`` of an ImageFolder.
        root: where registered datasets lie.
        download: fetch a registered dataset that is not there.
        num_samples: size of a fixed subset; None for all images.
        name: what tables call images of the user's own; ``imagenet`` for ImageNet's validation
            images puts the paper's values beside ours.

    Paths may be given as text. Raises UsageError for a value of another kind.
    """

    data: Any = None
    labels: Path | None = None
    class_map: Path | None = None
    root: Path | None = None
    download: bool = False
    num_samples: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not _may_hold_images(self.data):
            _take_text(self, "data", "--data")
        _take_text(self, "name", "--data-name")
        if self.name is not None and not self.name.isprintable():
            raise _wrong("--data-name", "a name of printable characters", self.name)
        if self.name is not None and self.name != (self.name.strip() or None):
            raise _wrong("--data-name", "a name without blanks around it", self.name)
        for option, name in (("--labels", "labels"), ("--class-map", "class_map"),
                             ("--data-root", "root")):
            _take_path(self, name, option)
        if self.num_samples is not None:
            _require_whole("--num-samples", self.num_samples, least=1)


@dataclass(frozen=True)
class ModelConfig:
    """Which models; an empty tuple means the paper's nine.

    Attributes:
        models: names, or classifiers and networks made in Python.
        checkpoint: weights for the one model named.
        use_ema: take the averaged weights of a checkpoint that holds both.
        overrides: fields of `Preprocessing` that replace the entry's own.
        precision: in what they are computed, one of `PRECISIONS`.

    Raises UsageError for a value of another kind.
    """

    models: tuple[Model, ...] = ()
    checkpoint: Path | None = None
    use_ema: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise _wrong("--precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        _take_path(self, "checkpoint", "--checkpoint")
        if self.checkpoint is not None and len(self.models) != 1:
            raise UsageError("--checkpoint must come with exactly one --model",
                             seen=f"{len(self.models)} models are named",
                             hint="type --model NAME --checkpoint FILE")
        if self.use_ema and self.checkpoint is None:
            raise UsageError("--use-ema must come with --checkpoint", seen="there is none",
                             hint="type --checkpoint FILE --use-ema, or leave it out")


@dataclass(frozen=True)
class RunConfig:
    """How to compute and where to keep it; no number of a table depends on it.

    Attributes:
        out: folder of records and tables.
        batch_size: images per batch, ``auto`` to fit it to memory, None for a default by size.
        workers: processes that decode images; 0 decodes in this one, None takes some where a CUDA
            device computes and 0 elsewhere.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        threads: of the CPU; None for torch's own number.
        backend: name of the attention kernels; None for the best that can run.
        fresh: start a new attempt beside earlier ones.
        retry_failed: measure images again that are recorded as failed.
        fold: compute a SAN as a whole by the native kernels where they can, and fold the batch
            norms of a convolution network into its convolutions.
        max_failed: part of a run's images that may fail before the command counts as failed; the
            table is the same.
        save_adversarial: keep the images that an experiment makes, in the folder of its run.
        shard: which part of the images is measured, see `sanrobust.shards`.
        command: what the user typed, for messages that say how to go on; empty from Python.

    Raises UsageError for a value of another kind or out of its range.
    """

    out: Path = Path("results")
    batch_size: int | Literal["auto"] | None = None
    workers: int | None = None
    device: str = "auto"
    threads: int | None = None
    backend: str | None = None
    fresh: bool = False
    retry_failed: bool = False
    fold: bool = True
    max_failed: float = 0.05
    save_adversarial: bool = False
    shard: Shard = Shard()
    command: str = ""

    def __post_init__(self) -> None:
        _take_path(self, "out", "--out", required=True)
        if self.batch_size not in (None, "auto"):
            _require_whole("--batch-size", self.batch_size, least=1, other="or auto")
        if self.workers is not None:
            _require_whole("--workers", self.workers, least=0, most=MOST_PROCESSES)
        if self.threads is not None:
            _require_whole("--threads", self.threads, least=1)
        if not isinstance(self.device, str):
            raise _wrong("--device", "text such as cpu or cuda:0", self.device)
        if not isinstance(self.max_failed, (int, float)) or not 0 <= self.max_failed <= 1:
            raise _wrong("--max-failed", "a part from 0 to 1", self.max_failed)
        if not isinstance(self.save_adversarial, bool):
            raise UsageError("save_adversarial must be True or False",
                             seen=f"it is {shown_value(self.save_adversarial)}",
                             hint="leave it out for False")


def _may_hold_images(data: object) -> bool:
    """Say whether a value has items; opening it will tell of what kind they are."""
    return not isinstance(data, (str, bytes, os.PathLike)) \
        and any(hasattr(type(data), each) for each in ("__getitem__", "__iter__"))


def _take_text(choice: object, name: str, option: str) -> None:
    """Turn a field given as a path into text."""
    value = getattr(choice, name)
    if isinstance(value, Path):
        object.__setattr__(choice, name, str(value))
    elif not isinstance(value, str | None):
        raise _wrong(option, "text", value)


def _take_path(choice: object, name: str, option: str, *, required: bool = False) -> None:
    """Turn a field given as text into a path."""
    value = getattr(choice, name)
    if isinstance(value, str) and value:
        object.__setattr__(choice, name, Path(os.path.expanduser(value)))
    elif not isinstance(value, Path if required else Path | None):
        raise _wrong(option, "a path", value)
    if not is_utf8(value or ""):
        raise _wrong(option, "a path in UTF-8", value)


def as_path(value: object, name: str) -> Path:
    """Return a path given as a path or as text; raises UsageError for anything else."""
    if not isinstance(value, (str, Path)) or not str(value):
        raise _wrong(name, "a path", value)
    if not is_utf8(value):
        raise _wrong(name, "a path in UTF-8", value)
    return Path(os.path.expanduser(value))


def as_names(value: object, name: str) -> tuple[str, ...]:
    """Return names that are given as one text or path, or as several; none for None.

    Raises UsageError for anything else.
    """
    several = (() if value is None else (value,) if isinstance(value, (str, Path)) else
               tuple(value) if isinstance(value, Iterable) and not isinstance(value, bytes)
               else (value,))
    wrong = [each for each in several if not isinstance(each, (str, Path)) or not str(each)]
    if wrong:
        raise _wrong(name, "names", wrong[0])
    return tuple(map(str, several))


def as_count(value: object, name: str, most: int) -> int:
    """Return a whole number from 0 to ``most``; raises UsageError for anything else."""
    _require_whole(name, value, least=0, most=most)
    return int(value)  # type: ignore[call-overload, no-any-return]


def as_points(value: object, name: str) -> float:
    """Return a finite number of points; raises UsageError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UsageError(f"{name} must be a number of points", seen=f"it is {shown_value(value)}",
                         hint="give for example -2")
    return float(value)


def is_utf8(path: str | Path) -> bool:
    """Say whether a path can be written in UTF-8, as readers of records and weights want it."""
    return not any("\ud800" <= each <= "\udfff" for each in str(path))


def _require_whole(option: str, value: Any, *, least: int, most: int | None = None,
                   other: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least \
            or (most is not None and value > most):
        rule = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise _wrong(option, f"a whole number {rule}{f' {other}' if other else ''}", value)


def _wrong(option: str, rule: str, value: object) -> UsageError:
    return UsageError(f"{option} must be {rule}", seen=f"it is {shown_value(value)}",
                      hint=f"give {option} {rule}")
