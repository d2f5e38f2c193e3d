"""Plain grey images and perfect classifiers of them: class k is the grey level 10 + 15 k.

Each is a few numbers on 32x32 pixels, so that tests of the whole program cost next to nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

CLASSES = 6


def level(label: int) -> int:
    return 10 + 15 * label


def grey(path: Path, label: int, size: tuple[int, int] = (40, 40)) -> Path:
    """Write a plain image of a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level(label),) * 3).save(path)
    return path


def folders(root: Path, labels: list[int], *, shown: list[int] | None = None) -> Path:
    """Write an ImageFolder with one image for each label; ``shown`` replaces what they show."""
    for number, (label, seen) in enumerate(zip(labels, shown or labels, strict=True)):
        grey(root / f"c{label}" / f"{number}.png", seen)
    return root


class Grey(nn.Module):
    """The perfect classifier, which may be told to be ``shift`` classes wrong."""

    default_cfg = dict(input_size=(3, 32, 32), crop_pct=1.0, mean=(0., 0., 0.), std=(1., 1., 1.))
    levels: Tensor

    def __init__(self, classes: int = CLASSES, shift: int = 0) -> None:
        super().__init__()
        levels = torch.tensor([level((label + shift) % classes) for label in range(classes)])
        self.register_buffer("levels", levels / 255)

    def forward(self, images: Tensor) -> Tensor:
        return -1000 * (images.mean((1, 2, 3)).unsqueeze(1) - self.levels) ** 2


class Blind(Grey):
    """Rounds its input, so that its gradient is zero everywhere."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images * 255).round() / 255)


class Failing(Grey):
    """Gives no number for the images of the classes from ``first`` on."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first

    def forward(self, images: Tensor) -> Tensor:
        bright = images.mean((1, 2, 3)).unsqueeze(1) > (level(self.first) - 5) / 255
        return super().forward(images).masked_fill(bright, float("nan"))


class Noisy(Grey):
    """Answers differently every time."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.5))


def right() -> nn.Module:
    return Grey()


def wrong() -> nn.Module:
    return Grey(shift=1)


def blind() -> nn.Module:
    return Blind()


def noisy() -> nn.Module:
    return Noisy()


def one_fails() -> nn.Module:
    return Failing(5)


def most_fail() -> nn.Module:
    return Failing(1)
