"""A few digits to train on and to be measured on."""

from __future__ import annotations

from sanrobust.data.datasets import open_dataset
from sanrobust.training.loop import Sets


def few(images: int) -> Sets:
    """Return so many training images, and twenty held-out ones."""
    return Sets(open_dataset("digits", root=None, split="train", num_samples=images),
                open_dataset("digits", root=None, num_samples=20))
