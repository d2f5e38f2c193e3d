"""Self-attention networks (Zhao, Jia and Koltun, CVPR 2020, Table 1); no torch.

In the form for ImageNet the option ``footprint=k`` means (3, k, k, k, k), as in the paper's Table
7, and ``width=w`` w channels in the stem and w / 64 of the paper's in every other layer. The form
for 32x32 images has an eighth, rounded up to multiples of 32, and works on maps of 16, 16, 8, 4
and 4 pixels with footprints of 3 and 5, or of k but no more than 7 on the smallest maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, ClassVar

from sanrobust.design import DEFAULTS, PAIRWISE, Attention, AttentionConfig
from sanrobust.errors import UnknownNameError
from sanrobust.kernels import relations
from sanrobust.zoo.families.attention import (
    CONTENT, POSITIONS, SIDES, operator, require_heads, settle_content,
)
from sanrobust.zoo.families.base import (
    SMALL_SHARE, SMALL_SIDE, Family, ModelName, Option, Sizes, joined, width_option,
)

if TYPE_CHECKING:
    from torch import nn

STAGES = 5
_ATTENTION: Mapping[str, Attention] = {
    "pair": "pairwise", "patch": "patchwise", "scalar": "scalar", "sasa": "sasa"}
_LAYERS: dict[str, tuple[int, int, int, int, int]] = {
    "san10": (2, 1, 2, 4, 1),
    "san15": (3, 2, 3, 5, 2),
    "san19": (3, 3, 4, 6, 3),
}
_TIMES = (1, 4, 8, 16, 32)  # channels of each stage, in those of the stem
_UNIT = 32  # a quarter of a stage's channels attends, in planes of eight
_COMPARED = {"scalar": 16, "sasa": 4}
# Reflection on the 4x4 maps of the last two stages of a small SAN ends here.
_SMALL_LAST_FOOTPRINT = 7


@dataclass(frozen=True)
class SanConfig:
    """A self-attention network (Zhao et al. 2020, Table 1); one tuple item per stage.

    Attributes:
        kind: what files call such networks.
        layers: self-attention blocks of each stage.
        design: the self-attention operator of every block.
        footprints: side of each stage's square attention footprint in pixels.
        widths: channels of each stage; the first is also the width of the stem.
        pools: whether a 2x2 max pooling with stride 2 precedes the stage.
        num_classes: length of the logits.
    """

    kind: ClassVar[str] = "san"

    layers: tuple[int, ...]
    design: AttentionConfig = PAIRWISE
    footprints: tuple[int, ...] = (3, 7, 7, 7, 7)
    widths: tuple[int, ...] = (64, 256, 512, 1024, 2048)
    pools: tuple[bool, ...] = (True, True, True, True, True)
    num_classes: int = 1000

    @property
    def sizes(self) -> Sizes:
        """What decides how large the network is."""
        return Sizes(channels=self.widths, sides=self.footprints)

    def describe(self) -> str:
        """Return the network in words, without its attention operator."""
        return (f"SAN, blocks {joined(self.layers)}, footprints {joined(self.footprints)}, "
                f"widths {joined(self.widths)}")


def _smallest_input(config: SanConfig) -> int:
    """Return the shortest side of an image on which every attention map is legal.

    Reflection needs a map wider than half the footprint; each pooling before it doubles that.
    """
    scale, smallest = 1, 1
    for footprint, pooled in zip(config.footprints, config.pools):
        scale *= 2 if pooled else 1
        smallest = max(smallest, (footprint // 2 + 1) * scale)
    return smallest


def _attention(network: str) -> Attention:
    return _ATTENTION[network.partition("-")[2]]


def _options(network: str) -> tuple[Option, ...]:
    attention = _attention(network)
    default = DEFAULTS[attention]
    places = (Option("footprint", SIDES), Option("footprints", SIDES, items=STAGES))
    position = Option("position", POSITIONS, default.position)
    if attention == "scalar":
        return (*places, Option("position", ("none",), "none"),
                Option("heads", ("1", "2", "4"), str(default.heads)), width_option(_UNIT))
    if attention == "sasa":
        return (*places, position, Option("heads", ("1", "2", "4", "8")), CONTENT,
                width_option(_UNIT))
    return (
        # Relations can be registered at any time.
        Option("relation", relations.names(attention), default.relation),
        Option("mapping", ("L", "LRL", "LRLRL"), default.mapping),
        Option("transforms", ("3", "2", "1"), str(default.transforms)),
        *places,
        *([position] if attention == "pairwise" else []),
        width_option(_UNIT),
    )


def _settle(typed: Mapping[str, str]) -> Mapping[str, str]:
    """Write a list of equal footprints as one."""
    if "footprint" in typed and "footprints" in typed:
        raise UnknownNameError("footprints must be given once",
                               seen=f"footprint={typed['footprint']} is all stages but the first, "
                                    "footprints is each",
                               hint="leave out one of the two")
    chosen = dict(typed)
    first, *later = chosen.get("footprints", "").split("-")
    if first == "3" and len(set(later)) == 1:
        del chosen["footprints"]
        chosen["footprint"] = later[0]
    return settle_content(chosen)


def _form(name: ModelName, *, small: bool) -> SanConfig:
    share = SMALL_SHARE if small else 1
    attention = _attention(name.network)
    config = SanConfig(
        layers=_LAYERS[name.network.partition("-")[0]],
        design=operator(name, attention, small=small),
        footprints=_footprints(name, small=small),
        widths=_widths(name.number("width"), share),
        pools=(True, not small, True, True, not small))
    if small:
        _require_small_footprints(name, config)
    compared = _COMPARED.get(attention, 1)
    require_heads(name, config.design, lambda width: gcd(*_widths(width, share)) // compared)
    return config


def _widths(width: int, share: int) -> tuple[int, ...]:
    """Return the channels of each stage in a form that has one ``share``th of ``width``."""
    return tuple(-(-width * times // (share * _UNIT)) * _UNIT for times in _TIMES)


def _footprints(name: ModelName, *, small: bool) -> tuple[int, ...]:
    side = name.number("footprint")
    if side:
        last = min(side, _SMALL_LAST_FOOTPRINT) if small else side
        return (3, side, side, last, last)
    typed = name.value("footprints") or ("3-5-5-5-3" if small else "3-7-7-7-7")
    return tuple(map(int, typed.split("-")))


def _require_small_footprints(name: ModelName, config: SanConfig) -> None:
    needed = _smallest_input(config)
    if needed > SMALL_SIDE:
        raise UnknownNameError(
            f"footprints of a network for {SMALL_SIDE}x{SMALL_SIDE} images must fit its maps",
            seen=f"{name.architecture} needs images of {needed}x{needed}",
            hint=f"its last two stages take at most {_SMALL_LAST_FOOTPRINT}")


def _build(config: SanConfig) -> nn.Module:
    from sanrobust.zoo.san import San
    return San(config)


SAN = Family(
    config=SanConfig,
    networks=tuple(f"{depth}-{kind}" for kind in _ATTENTION for depth in _LAYERS),
    options=_options,
    settle=_settle,
    form=_form,
    build=_build,
    free={"widths": ("width",), "footprints": ("footprint", "footprints")},
    smallest_input=_smallest_input,
    listed=False,
)
