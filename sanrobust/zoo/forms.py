"""The nine networks of the paper's Tables 9 and 10 as configurations; no torch."""

from __future__ import annotations

from sanrobust.errors import UnknownNameError
from sanrobust.registry import unknown_name
from sanrobust.zoo.entry import Architecture, Attention, ResNetConfig, SanConfig

ARCHITECTURES: tuple[str, ...] = (
    "resnet26", "san10-pair", "san10-patch",
    "resnet38", "san15-pair", "san15-patch",
    "resnet50", "san19-pair", "san19-patch",
)

_RESNET_LAYERS: dict[str, tuple[int, int, int, int]] = {
    "resnet26": (1, 2, 4, 1),
    "resnet38": (2, 3, 5, 2),
    "resnet50": (3, 4, 6, 3),
}
_SAN_LAYERS: dict[str, tuple[int, int, int, int, int]] = {
    "san10": (2, 1, 2, 4, 1),
    "san15": (3, 2, 3, 5, 2),
    "san19": (3, 3, 4, 6, 3),
}
_ATTENTIONS: dict[str, Attention] = {"pair": "pairwise", "patch": "patchwise"}


def imagenet_form(arch: str, num_classes: int = 1000) -> Architecture:
    """Return the configuration of ``arch`` as published for ImageNet (the paper's Table 1).

    Args:
        arch: one of ``ARCHITECTURES``; ``resnet26`` and ``resnet38`` are the paper's own depths
            (1, 2, 4, 1) and (2, 3, 5, 2), not the networks of these names in other collections.
        num_classes: length of the logits.

    Raises UnknownNameError for any other name.
    """
    if arch in _RESNET_LAYERS:
        return ResNetConfig(layers=_RESNET_LAYERS[arch], num_classes=num_classes)
    layers, attention = _san_parts(arch)
    return SanConfig(attention=attention, layers=layers, num_classes=num_classes)


def small_form(arch: str, num_classes: int = 10) -> Architecture:
    """Return ``arch`` for 32x32 images: the paper's depths, an eighth of its widths.

    A SAN of this form works on maps of 16, 16, 8, 4 and 4 pixels with footprints of 3 and 5; a
    ResNet starts with a 3x3 convolution of stride 1 and no pooling.

    Args:
        arch: one of ``ARCHITECTURES``.
        num_classes: length of the logits.

    Raises UnknownNameError for any other name.
    """
    if arch in _RESNET_LAYERS:
        return ResNetConfig(layers=_RESNET_LAYERS[arch], width=8, stem="small",
                            num_classes=num_classes)
    layers, attention = _san_parts(arch)
    return SanConfig(attention=attention, layers=layers, footprints=(3, 5, 5, 5, 3),
                     widths=(32, 32, 64, 128, 256), pools=(True, False, True, True, False),
                     num_classes=num_classes)


def smallest_input(config: SanConfig) -> int:
    """Return the shortest side in pixels of an image on which every attention map is legal.

    Reflection needs a map wider than half the footprint; each pooling before it doubles that.
    """
    scale, smallest = 1, 1
    for footprint, pooled in zip(config.footprints, config.pools):
        scale *= 2 if pooled else 1
        smallest = max(smallest, (footprint // 2 + 1) * scale)
    return smallest


def _san_parts(arch: str) -> tuple[tuple[int, ...], Attention]:
    depth, _, kind = arch.partition("-")
    if depth not in _SAN_LAYERS or kind not in _ATTENTIONS:
        raise _unknown(arch)
    return _SAN_LAYERS[depth], _ATTENTIONS[kind]


def _unknown(arch: str) -> UnknownNameError:
    return unknown_name("architecture", arch, ARCHITECTURES,
                        listing=f"the list {', '.join(ARCHITECTURES)}")
