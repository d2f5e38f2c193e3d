"""The paper's structural claims about its operators, measured on layers with random weights.

Everything is computed in float64, so that what is zero by structure is zero up to rounding.
Source: Zhao, Jia and Koltun, CVPR 2020, Sections 3.1, 3.2 and 4, Table 2.

Letters: M weight groups, K2 neighbours of a position, O value channels, C channels before and Q
channels after a layer, L positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from sanrobust.design import SCALAR
from sanrobust.errors import UsageError
from sanrobust.kernels import functional
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.plain import PaddingMode
from sanrobust.zoo.build import build, parameter_count
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.forms import imagenet_config, small_config

SHARED_CHANNELS = 8
FOOTPRINTS = (3, 5, 7, 9, 11)
ROUNDING = 1e-9  # a relative change below is none, after a whole network in float64
CLEAR = 1e-3  # a relative change above is one
_CHANNELS = 16
_FOOTPRINT = 5

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Adaptivity:
    """A row of Table 2.

    Attributes:
        operation: what aggregates.
        content: how much its weights change from one image to another.
        channel: how much they differ between channels. Both are root mean squares of differences
            over that of the weights; zero means that they do not adapt.
        paper: the paper's answers for content and channel.
    """

    operation: str
    content: float
    channel: float
    paper: tuple[bool, bool]

    @property
    def holds(self) -> bool:
        """Whether the measured answers are the paper's."""
        return all(_is(change, wanted) for change, wanted
                   in zip((self.content, self.channel), self.paper, strict=True))


@dataclass(frozen=True)
class Claim:
    """A claim, a case of it and what was measured there.

    Attributes:
        text: the claim.
        case: the operator or network, and what was done to it.
        measured: what came out, in words.
        holds: whether that is what the claim says.
    """

    text: str
    case: str
    measured: str
    holds: bool


@dataclass(frozen=True)
class Report:
    """Table 2 and the other claims, measured."""

    table2: tuple[Adaptivity, ...]
    claims: tuple[Claim, ...]

    @property
    def holds(self) -> bool:
        """Whether every claim does."""
        return all(row.holds for row in self.table2) and all(each.holds for each in self.claims)

    def lines(self) -> Iterator[str]:
        """Yield the report as text."""
        yield "Weights change from image to image (content) and differ between channels (Table 2)"
        yield f"  {'':<28}{'content':>16}{'channel':>16}"
        for row in self.table2:
            yield (f"  {row.operation:<28}{_answer(row.content):>16}{_answer(row.channel):>16}"
                   f"   {'as' if row.holds else 'NOT as'} in the paper")
        text = ""
        for claim in self.claims:
            if claim.text != text:
                text = claim.text
                yield f"\n{text}"
            verdict = "" if claim.holds else "   NOT as claimed"
            yield f"  {claim.case:<44}{claim.measured}{verdict}"


def measure_claims(*, seed: int = 0) -> Report:
    """Measure every claim on layers whose weights are drawn from ``seed``."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        return Report(table2=tuple(_table2()),
                      claims=(*_permutations(), *_parameters(), *_turns(), *_convolutions()))


def as_patchwise(convolution: nn.Conv2d, *, shared: int = SHARED_CHANNELS) -> nn.Sequential:
    """Return patchwise attention and a 1x1 convolution that compute ``convolution`` exactly.

    With its last linear layer zeroed, gamma returns its bias b (M, K2) whatever the image, and
    channel o is weighed by b[o % M]. Between beta (B, O x C) and a 1x1 convolution (A, Q x O) the
    attention then is the convolution with kernel

        T[q, c, n] = sum over o of A[q, o] * B[o, c] * b[o % M, n],

    and no other: a sum of O products of which each O / M share their spatial factor. Every
    depthwise convolution has this form with M = O; every dense one with M = K2 * ceil(C * M / O),
    as here: group (block of channels, n) passes its block through neighbour n alone.

    Args:
        convolution: dense, with stride and dilation 1, padded to keep the size of the map, by
            reflection or zeros.
        shared: O / M, how many channels a weight is for.

    Raises UsageError for another convolution.
    """
    footprint = _require_plain(convolution)
    channels, neighbours = convolution.in_channels, footprint ** 2
    groups = neighbours * math.ceil(channels / shared)
    mode: PaddingMode = "reflect" if convolution.padding_mode == "reflect" else "zeros"
    attention = PatchwiseAttention(channels, relation_channels=1, value_channels=groups * shared,
                                   weight_groups=groups, footprint=footprint, padding_mode=mode)
    mix = nn.Conv2d(groups * shared, convolution.out_channels, 1,
                    bias=convolution.bias is not None)
    layers = nn.Sequential(attention, mix).to(convolution.weight).eval()
    kernel = convolution.weight.flatten(2)
    with torch.no_grad():
        weight = _silence(attention).view(groups, neighbours)
        for value in (weight, *attention.conv3.parameters(), mix.weight):
            value.zero_()
        for channel in range(channels):
            block, slot = divmod(channel, shared)
            for neighbour in range(neighbours):
                group = block * neighbours + neighbour
                value_channel = slot * groups + group
                weight[group, neighbour] = 1
                attention.conv3.weight[value_channel, channel] = 1
                mix.weight[:, value_channel, 0, 0] = kernel[:, channel, neighbour]
        if mix.bias is not None and convolution.bias is not None:
            mix.bias.copy_(convolution.bias)
    return layers


def _table2() -> Iterator[Adaptivity]:
    first, second = _images(1), _images(1)
    convolution = _drawn(nn.Conv2d(_CHANNELS, _CHANNELS, _FOOTPRINT, padding=_FOOTPRINT // 2,
                                   groups=_CHANNELS))
    scalar = _drawn(LocalAttention(_CHANNELS, query_channels=_CHANNELS, value_channels=_CHANNELS,
                                   design=SCALAR, footprint=_FOOTPRINT))
    pair, patch = _pairwise(), _patchwise()
    readers: tuple[tuple[str, Layer, tuple[bool, bool]], ...] = (
        ("convolution", lambda images: _jacobian(convolution, images), (False, True)),
        ("scalar attention", scalar.attention_weights, (True, False)),
        ("vector attention, pairwise", pair.attention_weights, (True, True)),
        ("vector attention, patchwise", patch.attention_weights, (True, True)))
    for operation, read, paper in readers:
        weight, other = (read(images) for images in (first, second))
        size = _rms(weight)
        yield Adaptivity(operation, content=_rms(weight - other) / size, paper=paper,
                         channel=_rms(weight - weight.mean(1, keepdim=True)) / size)


def _permutations() -> Iterator[Claim]:
    """Shuffle the whole footprint of the middle of a map that is no larger than it."""
    text = "Pairwise attention sees its footprint as a set, patchwise attention as a sequence (3.1)"
    middle = _FOOTPRINT ** 2 // 2
    around = [place for place in range(_FOOTPRINT ** 2) if place != middle]
    order = torch.tensor(around)[torch.randperm(len(around))].tolist()
    order.insert(middle, middle)

    def shuffled(maps: Tensor) -> Tensor:
        return maps.flatten(2)[:, :, order].view(maps.shape)

    pair, patch = _pairwise(), _patchwise()
    features = _images(1, side=_FOOTPRINT)
    place = torch.randn(1, 2, _FOOTPRINT, _FOOTPRINT, dtype=torch.float64)
    for name, before, after in (
            ("pairwise", _pair_middle(pair, features, place),
             _pair_middle(pair, shuffled(features), shuffled(place))),
            ("patchwise", _middle(patch(features)), _middle(patch(shuffled(features))))):
        change = _rms(after - before) / _rms(before)
        yield Claim(text, f"{name}, neighbours shuffled", f"output changes by {change:.1e}",
                    _is(change, name == "patchwise"))


def _pair_middle(layer: PairwiseAttention, features: Tensor, place: Tensor) -> Tensor:
    return _middle(functional.pairwise_attention(
        layer.conv1(features), layer.conv2(features), layer.conv3(features), place, layer.conv_w,
        footprint=layer.window.footprint))


def _parameters() -> Iterator[Claim]:
    """Count the parameters of SAN10 (Table 7) and of one convolution."""
    text = "The footprint costs pairwise attention no parameters (3.1, Table 7)"
    for arch, constant in (("san10-pair", True), ("san10-patch", False)):
        config = imagenet_config(arch)
        assert isinstance(config, SanConfig)
        counts = [parameter_count(replace(config, footprints=(3, *(side,) * 4)))
                  for side in FOOTPRINTS]
        listed = " ".join(f"{count / 1e6:.1f}" for count in counts)
        yield Claim(text, f"{arch}, footprints {' '.join(map(str, FOOTPRINTS))}",
                    f"{listed} million", (len(set(counts)) == 1) == constant)


def _turns() -> Iterator[Claim]:
    """Turn and mirror the images of whole networks."""
    text = "Without position, pairwise networks do not notice rotations and flips (3.1, 5.4)"
    images = _images(4, channels=3, side=32)
    turned = [torch.rot90(images, quarters, (2, 3)) for quarters in (1, 2, 3)]
    views = torch.cat((images, *turned, images.flip(2), images.flip(3)))
    for arch, placed, changes in (("san10-pair", False, False), ("san10-pair", True, True),
                                  ("san10-patch", True, True)):
        network = _settled(_drawn(build(small_config(arch))), views)
        if not placed:
            for name, parameter in network.named_parameters():
                if name.endswith("conv_p.weight"):
                    parameter.zero_()
        upright, *others = network(views).view(6, len(images), -1)
        change = max(_rms(other - upright) for other in others) / _rms(upright)
        yield Claim(text, arch + ("" if placed else ", position weights zeroed"),
                    f"logits change by {change:.1e}", _is(change, changes))


def _convolutions() -> Iterator[Claim]:
    text = "Patchwise attention contains the convolution (3.2)"
    for channels, side in ((8, 3), (16, 3), (3, 7)):
        convolution = _drawn(nn.Conv2d(channels, 8, side, padding=side // 2,
                                       padding_mode="reflect"))
        images = _images(2, channels=channels)
        wanted = convolution(images)
        change = _rms(as_patchwise(convolution)(images) - wanted) / _rms(wanted)
        yield Claim(text, f"dense {side}x{side} convolution, {channels} to 8 channels",
                    f"outputs differ by {change:.1e}", _is(change, False))


def _pairwise() -> PairwiseAttention:
    return _drawn(PairwiseAttention(_CHANNELS, relation_channels=4, value_channels=_CHANNELS,
                                    weight_groups=_CHANNELS // 2, footprint=_FOOTPRINT))


def _patchwise() -> PatchwiseAttention:
    return _drawn(PatchwiseAttention(_CHANNELS, relation_channels=4, value_channels=_CHANNELS,
                                     weight_groups=_CHANNELS // 2, footprint=_FOOTPRINT))


def _drawn(module: AnyModule) -> AnyModule:
    """Return ``module`` with random weights, large enough for its attention to be selective."""
    module = module.double().eval().requires_grad_(False)
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=math.sqrt(2 / value[0].numel()))
        elif name.endswith(("running_var", "weight")):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.normal_(std=0.5)
    return module


def _settled(network: nn.Module, images: Tensor) -> nn.Module:
    """Return ``network`` with the statistics of ``images``, lest a deep one overflows on them."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(images)
    return network.eval()


def _silence(attention: PatchwiseAttention) -> Tensor:
    """Zero the last linear layer of gamma and return its bias, which then is the weights."""
    last = attention.conv_w[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    last.weight.zero_()
    return last.bias


def _require_plain(convolution: nn.Conv2d) -> int:
    """Return the side of a dense convolution that keeps the size of its map."""
    side = convolution.kernel_size[0]
    plain = nn.Conv2d(convolution.in_channels, convolution.out_channels, side,
                      padding=side // 2, device="meta")
    for name in ("kernel_size", "stride", "padding", "dilation", "groups"):
        seen, wanted = getattr(convolution, name), getattr(plain, name)
        if seen != wanted:
            raise UsageError(f"a convolution's {name} must be {wanted} to become attention",
                             seen=f"it is {seen}", hint="use a dense one that keeps the map's size")
    if convolution.padding_mode not in ("reflect", "zeros"):
        raise UsageError("a convolution's padding_mode must be reflect or zeros to become "
                         "attention", seen=f"it is {convolution.padding_mode}",
                         hint="use padding_mode='reflect'")
    return side


def _jacobian(convolution: nn.Conv2d, images: Tensor) -> Tensor:
    """Return a depthwise convolution's weights (1, C, K2, 1) at the middle, as derivatives."""
    side, reach = convolution.kernel_size[0], convolution.kernel_size[0] // 2
    y, x = (length // 2 for length in images.shape[2:])
    rows = []
    with torch.enable_grad():
        pixels = images.clone().requires_grad_()
        outputs = convolution(pixels)[0, :, y, x]
        for channel, output in enumerate(outputs):
            grad, = torch.autograd.grad(output, pixels, retain_graph=True)
            rows.append(grad[0, channel, y - reach:y - reach + side, x - reach:x - reach + side])
    return torch.stack(rows).flatten(1)[None, :, :, None]


def _images(count: int, *, channels: int = _CHANNELS, side: int = 12) -> Tensor:
    return torch.randn(count, channels, side, side, dtype=torch.float64)


def _middle(maps: Tensor) -> Tensor:
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _is(change: float, wanted: bool) -> bool:
    """Whether a relative change is there as ``wanted``, clearly; never for one that is NaN."""
    return change > CLEAR if wanted else change < ROUNDING


def _answer(change: float) -> str:
    return f"{'yes' if change > ROUNDING else 'no'} ({change:.2g})"
