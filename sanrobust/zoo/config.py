"""How a network from elsewhere wants its images: what it says itself, and what is assumed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from sanrobust.errors import ModelError, UsageError
from sanrobust.preprocessing import (
    CROP_MODES, IMAGENET_MEAN, IMAGENET_STD, INTERPOLATIONS, Preprocessing,
)

Shape = tuple[int, int, int]
FIELDS = ("img_size", "crop_pct", "interpolation", "mean", "std")
USUAL_SHAPE: Shape = (3, 224, 224)

_CONFIGS = ("pretrained_cfg", "default_cfg")
_TRANSFORMS = ("weights", "transforms")
_PARTS = ("module", "model", "backbone", "network", "net")
_SHAPE_RULE = "must take the central square of RGB images"


@dataclass(frozen=True)
class Wanted:
    """How a model wants its images.

    Attributes:
        preprocessing: every field.
        assumed: the fields that nobody told.
        silent: who does not say them.
        like: whose preprocessing was taken instead, in words; empty for the usual one.
        note: what else was assumed, a sentence.
    """

    preprocessing: Preprocessing
    assumed: tuple[str, ...] = ()
    silent: str = ""
    like: str = ""
    note: str = ""

    def sentence(self, given: Collection[str]) -> str:
        """Return what was assumed and how to change it, but for the fields ``given``."""
        left = [name for name in self.assumed if name not in given]
        if not left:
            return self.note
        topic = "its preprocessing" if len(left) == len(FIELDS) else "all of its preprocessing"
        verb = "says nothing of" if len(left) == len(FIELDS) else "does not say"
        like = f" as for {self.like}" if self.like else ""
        said = (f"{self.silent} {verb} {topic}: assumed {_listed(self._words(left))}{like}; "
                f"{_listed(_options(left))} change{'s' * (len(left) == 1)} that")
        return f"{said}; {self.note}" if self.note else said

    def _words(self, names: Collection[str]) -> list[str]:
        wanted = self.preprocessing
        statistics = {name: value for name, value in (("mean", wanted.mean), ("std", wanted.std))
                      if name in names}
        words = {"img_size": f"{wanted.img_size} pixels", "crop_pct": f"crop {wanted.crop_pct:.3g}",
                 "interpolation": wanted.interpolation}
        return [words[name] for name in names if name in words] + _statistics(statistics)


def _statistics(values: Mapping[str, tuple[float, ...]]) -> list[str]:
    names = {"mean": "mean", "std": "deviation"}
    if not values:
        return []
    if all(values[name] == {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}[name] for name in values):
        return ["ImageNet's " + " and ".join(names[name] for name in values)]
    return [f"{names[name]} {','.join(f'{each:g}' for each in value)}"
            for name, value in values.items()]


def _options(names: Collection[str]) -> list[str]:
    options = ["--" + name.replace("_", "-") for name in names]
    if "mean" in names and "std" in names:
        options[-1] += " or --no-normalize"
    return options


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def from_config(name: str, config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that a timm-style table describes.

    Keys that are absent take ImageNet's usual values. Raises ModelError for one that differs from
    a square crop of RGB images.
    """
    channels, height, width = input_shape(name, config)
    interpolation = config.get("interpolation") or "bilinear"
    mode = config.get("crop_mode") or "center"
    refusal = None
    if channels != 3:
        refusal = f"it takes {channels} channels"
    elif height != width:
        refusal = f"it takes images of {height} x {width} pixels"
    elif mode not in CROP_MODES:
        refusal = f"its crop mode is {mode!r}"
    elif interpolation not in INTERPOLATIONS:
        refusal = f"its interpolation is {interpolation!r}"
    if refusal:
        raise ModelError(f"{name} {_SHAPE_RULE}", seen=refusal,
                         hint="choose other weights of this model, or another model")
    usual = Preprocessing()
    try:
        crop_pct = config.get("crop_pct")
        return Preprocessing(img_size=height,
                             crop_pct=usual.crop_pct if crop_pct is None else crop_pct,
                             interpolation=interpolation, crop_mode=mode,
                             mean=_triple(config.get("mean"), usual.mean),
                             std=_triple(config.get("std"), usual.std))
    except (UsageError, TypeError, ValueError) as error:
        raise ModelError(f"{name} {_SHAPE_RULE}", seen=f"its own table says otherwise ({error})",
                         hint="mend its default_cfg") from error


def input_shape(name: str, config: Mapping[str, Any]) -> Shape:
    """Return channels, height and width of a timm-style table, ImageNet's usual by default.

    Raises ModelError for what is no shape.
    """
    shape = config.get("input_size") or USUAL_SHAPE
    try:
        channels, height, width = (int(size) for size in shape)
    except (TypeError, ValueError) as error:
        raise ModelError(f"the input_size of {name} must be channels, height and width",
                         seen=f"it is {shape!r}",
                         hint="mend its default_cfg, such as input_size=(3, 224, 224)") from error
    return channels, height, width


def _triple(values: Any, usual: tuple[float, ...]) -> Any:
    if values is None:
        return usual
    if isinstance(values, Tensor):
        values = values.flatten().tolist()
    return tuple(float(value) for value in values)


def wanted_by(name: str, network: nn.Module) -> Wanted:
    """Return how a user's network wants its images: by its own word, by a part's, or the usual.

    Its word is ``pretrained_cfg`` or ``default_cfg`` as timm writes them, or the ``weights`` or
    ``transforms`` of torchvision. Raises ModelError for one that cannot be honoured.
    """
    own = description(network)
    if own is not None:
        told = {key for key in FIELDS
                if own.get("input_size" if key == "img_size" else key) is not None}
        return Wanted(from_config(name, own), tuple(key for key in FIELDS if key not in told),
                      silent=name)
    for part in _PARTS:
        inner = getattr(network, part, None)
        config = description(inner) if isinstance(inner, nn.Module) else None
        if config is not None:
            # The whole may do more than the part, normalise by itself for example.
            return Wanted(from_config(name, config), FIELDS, silent=name,
                          like=f"its part {part!r}")
    return Wanted(Preprocessing(), FIELDS, silent=name)


def description(network: nn.Module) -> Mapping[str, Any] | None:
    """Return a network's own word on its images as a timm-style table; None when it has none."""
    for key in _CONFIGS:
        value = getattr(network, key, None)
        if is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in fields(value)}
        if isinstance(value, Mapping) and value:
            return value
    for key in _TRANSFORMS:
        config = _torchvisions(getattr(network, key, None))
        if config is not None:
            return config
    return None


def _torchvisions(value: Any) -> Mapping[str, Any] | None:
    if "torchvision.models" not in sys.modules:  # then nothing of its can be here
        return None
    from torchvision.models import WeightsEnum
    from torchvision.transforms._presets import ImageClassification

    if isinstance(value, WeightsEnum):
        value = value.transforms
    if isinstance(value, partial) and value.func is ImageClassification:
        value = value()
    return from_transforms(value) if isinstance(value, ImageClassification) else None


def from_transforms(transforms: Any) -> dict[str, Any]:
    """Return torchvision's preset for classification as a timm-style table."""
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    return {"input_size": (3, size, size), "crop_pct": size / resized,
            "interpolation": transforms.interpolation.value, "mean": transforms.mean,
            "std": transforms.std}
