"""What each epoch of a training came to, as rows, as a CSV file and as a curve."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sanrobust.files import atomic_write, write_text


@dataclass(frozen=True)
class Epoch:
    """One epoch; accuracies are in percent.

    Attributes:
        epoch: its number, from 1.
        lr: rate of its first step.
        loss: mean over its steps, in nats.
        train_top1: of the images as they were trained on: moved, cut, or attacked.
        train_top5: likewise, among the five highest logits.
        top1: of the held-out images after it.
        top5: likewise.
        images_per_second: of training, without measuring.
    """

    epoch: int
    lr: float
    loss: float
    train_top1: float
    train_top5: float
    top1: float
    top5: float
    images_per_second: float


def write_history(epochs: Sequence[Epoch], folder: Path) -> None:
    """Write ``history.csv`` and its curve ``history.png``; raises OutputError."""
    names = [field.name for field in fields(Epoch)]
    lines = [",".join(names)]
    lines += [",".join(_cell(value) for value in asdict(each).values()) for each in epochs]
    write_text(folder / "history.csv", "\n".join(lines) + "\n")
    with atomic_write(folder / "history.png") as stream:
        stream.write(_curve(epochs))


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _curve(epochs: Sequence[Epoch]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    number = [each.epoch for each in epochs]
    losses.plot(number, [each.loss for each in epochs], color="black")
    losses.set(xlabel="epoch", ylabel="training loss (nats)")
    accuracy.plot(number, [each.train_top1 for each in epochs], color="0.6", label="training")
    accuracy.plot(number, [each.top1 for each in epochs], color="black", label="held out")
    accuracy.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(0, 100))
    accuracy.legend(frameon=False, loc="lower right")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    return drawn.getvalue()
