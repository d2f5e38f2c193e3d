"""The 19 corruptions in the paper's order, their groups, and the errors of AlexNet; loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

SEVERITIES = (1, 2, 3, 4, 5)
GROUPS = ("noise", "blur", "weather", "digital", "extra")
"""Columns of the paper's Table 1, and the four that it keeps for choosing hyperparameters."""


@dataclass(frozen=True)
class Corruption:
    """One kind of damage.

    Attributes:
        name: its folder in ImageNet-C.
        group: which of `GROUPS` it belongs to.
        alexnet: top-1 error of AlexNet in percent, its mean over the five severities.
    """

    name: str
    group: str
    alexnet: float

    @property
    def title(self) -> str:
        """Its name as people read it."""
        return self.name.replace("jpeg", "JPEG").replace("_", " ").removesuffix(" transform")


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("gaussian_noise", "noise", 88.6428),
    Corruption("shot_noise", "noise", 89.4468),
    Corruption("impulse_noise", "noise", 92.2640),
    Corruption("defocus_blur", "blur", 81.9880),
    Corruption("glass_blur", "blur", 82.6268),
    Corruption("motion_blur", "blur", 78.5948),
    Corruption("zoom_blur", "blur", 79.8360),
    Corruption("snow", "weather", 86.6816),
    Corruption("frost", "weather", 82.6572),
    Corruption("fog", "weather", 81.9324),
    Corruption("brightness", "weather", 56.4592),
    Corruption("contrast", "digital", 85.3204),
    Corruption("elastic_transform", "digital", 64.6056),
    Corruption("pixelate", "digital", 71.7840),
    Corruption("jpeg_compression", "digital", 60.6500),
    Corruption("speckle_noise", "extra", 84.5),
    Corruption("gaussian_blur", "extra", 78.7),
    Corruption("spatter", "extra", 71.8),
    Corruption("saturate", "extra", 65.8),
)
"""AlexNet's errors: the paper's appendix prints them with one decimal; those of the 15 common ones
stand with four, as google-research/augmix and others repeat the authors' spreadsheet."""

BY_NAME = {each.name: each for each in CORRUPTIONS}
COMMON = tuple(each.name for each in CORRUPTIONS if each.group != "extra")
"""The 15 that mean errors and mCE are over."""
EXTRA = tuple(each.name for each in CORRUPTIONS if each.group == "extra")
SETS = {"common": COMMON, **{group: tuple(each.name for each in CORRUPTIONS if each.group == group)
                             for group in GROUPS}}
"""Corruptions by the words that name several."""
ALEXNET_CLEAN = 43.5
"""Top-1 error of AlexNet on ImageNet's validation images in percent (the paper's Table 1)."""
