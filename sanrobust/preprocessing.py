"""How a model wants its images: a value that travels with the model's weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from sanrobust.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, crop the centre, scale to [0, 1]; normalise inside the model.

    Field names are timm's. ``img_size`` is the side of the square crop in pixels, ``crop_pct``
    the part of the resized short side that the crop keeps (0.875: resize 256, crop 224), ``mean``
    and ``std`` are per channel in units of the [0, 1] pixel range.
    """

    img_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        _require(self.img_size >= 1, "--img-size", "at least 1 pixel", self.img_size)
        _require(0 < self.crop_pct <= 1, "--crop-pct", "in (0, 1]", self.crop_pct)
        _require(self.interpolation in INTERPOLATIONS, "--interpolation",
                 f"one of {', '.join(INTERPOLATIONS)}", self.interpolation)
        _require(len(self.mean) == 3, "--mean", "three numbers", self.mean)
        _require(len(self.std) == 3 and min(self.std) > 0, "--std",
                 "three positive numbers", self.std)

    @property
    def resize_size(self) -> int:
        """Length of the resized short side in pixels (timm's floor, safe against rounding)."""
        return math.floor(self.img_size / self.crop_pct + 1e-6)

    def as_dict(self) -> dict[str, object]:
        """Return the fields as plain values for a run's specification."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


def _require(holds: bool, option: str, rule: str, seen: object) -> None:
    if not holds:
        raise UsageError(f"{option} must be {rule}", seen=f"it is {seen}",
                         hint=f"give {option} a value that is {rule}")
