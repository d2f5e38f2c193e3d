"""The names that a count can be asked with; no torch."""

from __future__ import annotations

from typing import Literal

Convention = Literal["paper", "mac"]

CONVENTIONS: dict[Convention, str] = {
    "paper": "what the official code's counter counts: convolutions with their bias, linear "
             "layers without, 2 per value normalised, 1 per value through a ReLU or into a "
             "pooling, 1 per product of an aggregation and per channel of a compared pair; no "
             "softmax, residual addition or matrix product of features",
    "mac": "multiply-adds of convolutions, linear layers and attention alone; no bias, "
           "normalisation, activation or pooling",
}
"""What each convention counts, in words for a caption."""

TABLES: tuple[str, ...] = ("1", "3", "4", "5", "6", "7", "8")
"""The paper's tables that a count reproduces: 1 the architectures, the others with figures."""

IMG_SIZE = 224
"""Side in pixels of the images of the paper's tables."""
