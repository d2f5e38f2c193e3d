"""Every architecture as a configuration, for ImageNet and for small images; no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from math import gcd, lcm
from typing import Literal

from sanrobust.design import DEFAULTS, AttentionConfig
from sanrobust.errors import UnknownNameError
from sanrobust.zoo.entry import Architecture, ResNetConfig, SanConfig, SasaConfig
from sanrobust.zoo.names import (
    FAMILIES, RESNETS, SASA_RESNETS, WIDTH, ModelName, architecture, options, parse,
)

ARCHITECTURES: tuple[str, ...] = (
    "resnet26", "san10-pair", "san10-patch",
    "resnet38", "san15-pair", "san15-patch",
    "resnet50", "san19-pair", "san19-patch",
)
"""The nine networks of the paper's Tables 9 and 10, in their order."""

SMALL_SIDE = 32

_RESNET_LAYERS: dict[str, tuple[int, int, int, int]] = {
    "26": (1, 2, 4, 1),
    "38": (2, 3, 5, 2),
    "50": (3, 4, 6, 3),
}
_SAN_LAYERS: dict[str, tuple[int, int, int, int, int]] = {
    "san10": (2, 1, 2, 4, 1),
    "san15": (3, 2, 3, 5, 2),
    "san19": (3, 3, 4, 6, 3),
}
_SAN_TIMES = (1, 4, 8, 16, 32)  # channels of each stage, in those of the stem
_SAN_UNIT = 32
_SMALL_SHARE = 8
_SMALL_HEADS = 4
_SMALL_FOOTPRINT = 5
# Reflection on the 4x4 maps of the last two stages of a small SAN ends here.
_SMALL_LAST_FOOTPRINT = 7
_COMPARED = {"scalar": 16, "sasa": 4}


def imagenet_config(arch: str, num_classes: int = 1000) -> Architecture:
    """Return the configuration of ``arch`` as published for ImageNet (the paper's Table 1).

    Args:
        arch: name of an architecture, with or without options (`sanrobust.zoo.names`);
            ``resnet26`` and ``resnet38`` are the paper's own depths (1, 2, 4, 1) and
            (2, 3, 5, 2), not the networks of these names in other collections. The option
            ``footprint=k`` means (3, k, k, k, k) as in the paper's Table 7, ``width=w`` w
            channels in the stem and w / 64 of the paper's in every other layer.
        num_classes: length of the logits.

    Raises UnknownNameError for any other name.
    """
    name = architecture(arch)
    if name.network in RESNETS:
        return ResNetConfig(layers=_resnet_layers(name), width=_width(name),
                            kernel=_number(name, "kernel"), num_classes=num_classes)
    if name.network in SASA_RESNETS:
        return _sasa(name, SasaConfig(layers=_resnet_layers(name), width=_width(name),
                                      stem=_stem(name), num_classes=num_classes), share=1)
    side = _number(name, "footprint", 7)
    config = SanConfig(layers=_san_layers(name), design=_design(name),
                       footprints=_each_stage(name) or (3, side, side, side, side),
                       widths=_san_widths(_width(name)), num_classes=num_classes)
    _require_san_heads(name, config, share=1)
    return config


def small_config(arch: str, num_classes: int = 10) -> Architecture:
    """Return ``arch`` for 32x32 images: the paper's depths, an eighth of its form's widths.

    The option ``width=w`` is that of the form for ImageNet: this one has w / 8. Widths of a SAN are
    rounded up to multiples of 32, its stem to 32 by default.

    A SAN of this form works on maps of 16, 16, 8, 4 and 4 pixels with footprints of 3 and 5; the
    option ``footprint=k`` means (3, k, k, k, k), no more than 7 on the smallest maps. A ResNet
    starts with a 3x3 convolution of stride 1 and no pooling, and so does a SASA network without
    an attention stem, whose footprints are 5. SASA has four heads.

    Args:
        arch: as for `imagenet_config`.
        num_classes: length of the logits.

    Raises UnknownNameError for any other name, or one with footprints too large for such images.
    """
    name = architecture(arch)
    if name.network in RESNETS:
        return ResNetConfig(layers=_resnet_layers(name), width=_width(name) // _SMALL_SHARE,
                            stem="small", kernel=_number(name, "kernel"), num_classes=num_classes)
    if name.network in SASA_RESNETS:
        stem: Literal["attention", "small"] = "attention" if _stem(name) != "conv" else "small"
        return _sasa(name, SasaConfig(layers=_resnet_layers(name), stem=stem,
                                      width=_width(name) // _SMALL_SHARE,
                                      num_classes=num_classes), share=_SMALL_SHARE)
    config = SanConfig(layers=_san_layers(name), design=_design(name, heads=_SMALL_HEADS),
                       footprints=_small_footprints(name),
                       widths=_san_widths(_width(name), _SMALL_SHARE),
                       pools=(True, False, True, True, False), num_classes=num_classes)
    _require_small_footprints(name, config)
    _require_san_heads(name, config, share=_SMALL_SHARE)
    return config


def smallest_input(config: SanConfig) -> int:
    """Return the shortest side in pixels of an image on which every attention map is legal.

    Reflection needs a map wider than half the footprint; each pooling before it doubles that.
    """
    scale, smallest = 1, 1
    for footprint, pooled in zip(config.footprints, config.pools):
        scale *= 2 if pooled else 1
        smallest = max(smallest, (footprint // 2 + 1) * scale)
    return smallest


def mismatch(arch: str, config: Architecture) -> str | None:
    """Return how ``config`` contradicts the name ``arch``, as a clause; None when it does not.

    What its options decide must be as in one of the architecture's forms; sizes that no option
    names are free, as weights from elsewhere may have any.
    """
    try:
        name = parse(arch)
    except UnknownNameError as error:
        return error.seen
    for form in _forms(name.architecture):
        if type(form) is type(config) and all(
                getattr(form, field) == getattr(config, field) for field in _decided(name, form)):
            return None
    return f"the network described is no {arch}"


def _forms(arch: str) -> list[Architecture]:
    forms = []
    for form in (imagenet_config, small_config):
        try:
            forms.append(form(arch))
        except UnknownNameError:
            continue  # legal in the other form alone
    return forms


def _decided(name: ModelName, form: Architecture) -> set[str]:
    """Return the fields of ``form`` that options of the network decide."""
    chosen = set(dict(name.options))
    decided = {"design", "widths", *(option.name for option in options(name.network))}
    if not {"footprint", "footprints"} & chosen:
        decided -= {"footprints"}  # of a SAN, each stage's may be any
    if "width" not in chosen:
        decided -= {"width", "widths"}
    return decided & {field.name for field in fields(form)}


def _design(name: ModelName, *, heads: int | None = None) -> AttentionConfig:
    """Return the operator that the options name.

    ``heads`` are those of a SASA operator whose name leaves them out; None for the paper's.
    """
    attention = FAMILIES.get(name.network.partition("-")[2], "sasa")
    default = DEFAULTS[attention]
    if heads is not None and attention == "sasa":
        default = replace(default, heads=heads)
    chosen: dict[str, object] = {}
    for option, value in name.options:
        if hasattr(default, option):
            chosen[option] = (value == "yes" if option == "content"
                              else int(value) if value.isdecimal() else value)
    return replace(default, **chosen)  # type: ignore[arg-type]


def _san_widths(width: int, share: int = 1) -> tuple[int, ...]:
    """Return the channels of each stage in a form that has one ``share``th of ``width``."""
    unit = share * _SAN_UNIT
    return tuple(-(-width * times // unit) * _SAN_UNIT for times in _SAN_TIMES)


def _sasa(name: ModelName, config: SasaConfig, *, share: int) -> SasaConfig:
    small = share > 1
    design = _design(name, heads=_SMALL_HEADS if small else None)
    _require_heads(name, design, lambda width: width // share)
    return replace(config, design=design, convolutions=_number(name, "convolutions"),
                   footprint=_number(name, "footprint", _SMALL_FOOTPRINT if small else 7))


def _stem(name: ModelName) -> Literal["conv", "attention"]:
    return "attention" if name.value("stem") == "attention" else "conv"


def _width(name: ModelName) -> int:
    return _number(name, "width", WIDTH)


def _number(name: ModelName, option: str, default: int = 0) -> int:
    value = name.value(option)
    return default if value is None else int(value)


def _resnet_layers(name: ModelName) -> tuple[int, int, int, int]:
    return _RESNET_LAYERS[name.network[-2:]]


def _san_layers(name: ModelName) -> tuple[int, ...]:
    return _SAN_LAYERS[name.network.partition("-")[0]]


def _each_stage(name: ModelName) -> tuple[int, ...] | None:
    typed = name.value("footprints")
    return None if typed is None else tuple(map(int, typed.split("-")))


def _small_footprints(name: ModelName) -> tuple[int, ...]:
    side = name.value("footprint")
    if side is None:
        return _each_stage(name) or (3, 5, 5, 5, 3)
    last = min(int(side), _SMALL_LAST_FOOTPRINT)
    return (3, int(side), int(side), last, last)


def _require_small_footprints(name: ModelName, config: SanConfig) -> None:
    needed = smallest_input(config)
    if needed > SMALL_SIDE:
        raise UnknownNameError(
            f"footprints of a network for {SMALL_SIDE}x{SMALL_SIDE} images must fit its maps",
            seen=f"{name.architecture} needs images of {needed}x{needed}",
            hint=f"its last two stages take at most {_SMALL_LAST_FOOTPRINT}")


def _require_san_heads(name: ModelName, config: SanConfig, *, share: int) -> None:
    compared = _COMPARED.get(config.attention, 1)
    _require_heads(name, config.design,
                   lambda width: gcd(*_san_widths(width, share)) // compared)


def _require_heads(name: ModelName, design: AttentionConfig,
                   channels: Callable[[int], int]) -> None:
    """Each head must have channels, and as many for row as for column offsets.

    ``channels`` tells of a width how many are compared where they are fewest.
    """
    if design.attention not in ("scalar", "sasa"):
        return
    own = channels(_width(name))
    needed = _shared_by(design.heads, design)
    if own % needed == 0:
        return
    legal = {option.name: option.values for option in options(name.network)}
    heads = [each for each in legal["heads"] if own % _shared_by(int(each), design) == 0]
    widths = sorted((int(each) for each in legal["width"] if channels(int(each)) % needed == 0),
                    key=lambda each: abs(each - _width(name)))
    ways = [f"width={width}" for width in widths[:1]]
    if heads:
        ways += [f"heads={heads[0]}" if len(heads) == 1 else f"heads one of {', '.join(heads)}"]
    raise UnknownNameError(
        f"channels that {name.network} compares must be a multiple of {needed} for "
        f"{design.heads} heads with position {design.position}",
        seen=f"{name.architecture} has {own} in this form", hint=f"use {' or '.join(ways)}")


def _shared_by(heads: int, design: AttentionConfig) -> int:
    """Return what must divide the channels that ``heads`` compare at the design's position."""
    if design.position == "absolute":
        return lcm(heads, 4)  # sines and cosines of rows and of columns
    return heads * (2 if design.position == "relative" else 1)
