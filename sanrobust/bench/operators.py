"""The attention operators alone as contenders, at the shapes of the published networks.

Letters: C channels of a stage's maps, R = C / 16 relation channels, O = C / 4 value channels,
M = O / 8 weight groups, S side of a map in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from sanrobust.bench.contender import Contender
from sanrobust.bench.settings import ATTACK, COMPILED, FORWARD, OURS, PLAIN, UNFOLD, Shape
from sanrobust.bench.unfold import unfold_pairwise, unfold_patchwise
from sanrobust.kernels import functional, reference
from sanrobust.kernels.backends import Call, choose
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention, position_grid
from sanrobust.kernels.reference import Window
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.san import RELATION_REDUCTION, SHARED_CHANNELS, VALUE_REDUCTION

Attention = Callable[..., Tensor]


@dataclass(frozen=True)
class Operator:
    """One attention operator with its arguments.

    Attributes:
        name: kind and shape, for reports.
        paired: pairwise attention, otherwise patchwise.
        maps: query and key (B, R, S, S) and value (B, O, S, S), of which gradients are taken.
        fixed: the frozen arguments after them: the position of pairwise attention, the mapping.
        window: the footprint.
    """

    name: str
    paired: bool
    maps: tuple[Tensor, ...]
    fixed: tuple[Tensor | nn.Module, ...]
    window: Window


def operators(shape: Shape) -> Iterator[Operator]:
    """Yield both operators at every stage of a SAN that images of ``shape`` allow."""
    config = SanConfig(layers=(1, 1, 1, 1, 1))
    side = shape.img_size
    for channels, footprint in zip(config.widths, config.footprints, strict=True):
        side //= 2
        if side > footprint // 2:
            for paired in (True, False):
                yield _operator(channels, footprint, side, shape, paired=paired)


def contenders(operator: Operator, names: tuple[str, ...]) -> Iterator[Contender]:
    """Yield those of ``names`` that are formulations of an operator."""
    for name in names:
        if name in _MAKERS:
            attention, computed_by = _MAKERS[name](operator)
            yield Contender(name=name, computed_by=computed_by,
                            calls={FORWARD: partial(_forward, attention, operator),
                                   ATTACK: partial(_attack, attention, operator)})


def _operator(channels: int, footprint: int, side: int, shape: Shape, *,
              paired: bool) -> Operator:
    dtype, device = getattr(torch, shape.dtype), torch.device(shape.device)
    kind = PairwiseAttention if paired else PatchwiseAttention
    relation, values = channels // RELATION_REDUCTION, channels // VALUE_REDUCTION
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        layer = kind(channels, relation_channels=relation, value_channels=values,
                     weight_groups=values // SHARED_CHANNELS, footprint=footprint)
        maps = tuple(torch.randn(shape.batch_size, width, side, side).to(device, dtype)
                     for width in (relation, relation, values))
    layer = layer.eval().requires_grad_(False).to(device, dtype)
    fixed: tuple[Tensor | nn.Module, ...] = (layer.conv_w,)
    if isinstance(layer, PairwiseAttention):
        fixed = (layer.conv_p(position_grid(side, side, dtype=dtype, device=device)), layer.conv_w)
    name = f"{'pairwise' if paired else 'patchwise'} C{channels} {side}x{side} k{footprint}"
    return Operator(name=name, paired=paired, maps=maps, fixed=fixed, window=layer.window)


def _forward(attention: Attention, operator: Operator) -> Tensor:
    with torch.no_grad():
        return attention(*operator.maps, *operator.fixed)


def _attack(attention: Attention, operator: Operator) -> tuple[Tensor, ...]:
    leaves = [each.detach().requires_grad_() for each in operator.maps]
    attended = attention(*leaves, *operator.fixed)
    return torch.autograd.grad(attended, leaves, operator.maps[2])


def _ours(operator: Operator) -> tuple[Attention, str]:
    return _public(operator), choose(_call(operator)).name


def _plain(operator: Operator) -> tuple[Attention, str]:
    return partial(_public(operator), backend="reference"), "reference"


def _unfold(operator: Operator) -> tuple[Attention, str]:
    attention = unfold_pairwise if operator.paired else unfold_patchwise
    return partial(attention, window=operator.window), "unfold"


def _compiled(operator: Operator) -> tuple[Attention, str]:
    attention = (reference.pairwise_attention if operator.paired
                 else reference.patchwise_attention)
    return (torch.compile(partial(attention, window=operator.window)),
            "torch.compile, reference formulation")


_MAKERS: dict[str, Callable[[Operator], tuple[Attention, str]]] = {
    OURS: _ours, PLAIN: _plain, UNFOLD: _unfold, COMPILED: _compiled,
}
NAMES = tuple(_MAKERS)


def _public(operator: Operator) -> Attention:
    attention = (functional.pairwise_attention if operator.paired
                 else functional.patchwise_attention)
    return partial(attention, footprint=operator.window.footprint)


def _call(operator: Operator) -> Call:
    tensors = (*operator.maps, *(each for each in operator.fixed if isinstance(each, Tensor)))
    mapping = next(each for each in operator.fixed if isinstance(each, nn.Module))
    return Call("pairwise_attention" if operator.paired else "patchwise_attention", tensors,
                operator.window, mapping)
