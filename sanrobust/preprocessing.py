"""How a model wants its images: a value that travels with the model's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from sanrobust.errors import UsageError, shown_value

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CROP_MODES = ("center", "squash", "border")
LARGEST_SIDE = 8192
"""Longest side in pixels of a crop or a resized short side; one such image takes 0.8 GB."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop the centre, scale to [0, 1]; normalise inside the model.

    Field names are timm's. ``img_size`` is the side of the square crop in pixels, ``crop_pct``
    the part of the resized side that the crop keeps (0.875: resize 256, crop 224; above 1 the
    crop is wider than the image and filled), ``mean`` and ``std`` are per channel in units of the
    [0, 1] pixel range. ``crop_mode`` says what is resized to ``resize_size``: the short side and
    the rest is cut (``center``), both sides whatever their ratio (``squash``), or the long side
    and what lacks is filled with ``mean`` (``border``).

    Raises UsageError for a value outside these rules.
    """

    img_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        _require(_is_side(self.img_size), "--img-size", f"a whole number from 1 to {LARGEST_SIDE}",
                 self.img_size, "224")
        _require(_is_number(self.crop_pct) and self.crop_pct > 0, "--crop-pct",
                 "a number above 0", self.crop_pct, "0.875")
        _require(self.interpolation in INTERPOLATIONS, "--interpolation",
                 f"one of {', '.join(INTERPOLATIONS)}", self.interpolation, "bilinear")
        _require(self.crop_mode in CROP_MODES, "--crop-mode",
                 f"one of {', '.join(CROP_MODES)}", self.crop_mode, "center")
        _require(_is_triple(self.mean), "--mean", "three finite numbers", self.mean, "0.5,0.5,0.5")
        _require(_is_triple(self.std) and min(self.std) > 0, "--std",
                 "three finite positive numbers", self.std, "0.5,0.5,0.5")
        # One type whatever the caller wrote, because a run's identity is spelled from these.
        self._set(img_size=int(self.img_size), crop_pct=float(self.crop_pct),
                  mean=tuple(map(float, self.mean)), std=tuple(map(float, self.std)))
        _require(self.img_size / self.crop_pct < LARGEST_SIDE + 1 and self.resize_size >= 1,
                 "--crop-pct", "a number that divides --img-size into a resized side of 1 to "
                 f"{LARGEST_SIDE} pixels", self.crop_pct, "0.875")

    @property
    def resize_size(self) -> int:
        """Length of the resized side in pixels (timm's floor, safe against rounding)."""
        return math.floor(self.img_size / self.crop_pct + 1e-6)

    def as_dict(self) -> dict[str, object]:
        """Return the fields as plain values for a run's specification."""
        values: dict[str, object] = {**asdict(self), "mean": list(self.mean),
                                     "std": list(self.std)}
        if self.crop_mode == "center":  # runs from before there were others keep their identity
            del values["crop_mode"]
        return values

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


def _is_side(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) \
        and 1 <= int(value) <= LARGEST_SIDE


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def _is_triple(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3 \
        and all(map(_is_number, values))


def _require(holds: bool, option: str, rule: str, seen: object, example: str) -> None:
    if not holds:
        raise UsageError(f"{option} must be {rule}", seen=f"it is {shown_value(seen)}",
                         hint=f"type for example {option} {example}")
