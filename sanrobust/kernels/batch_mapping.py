"""Attention in training: its mapping's normalisations by the statistics of the batch, fused.

A mapping normalises the relations of all pairs, and its hidden layer. Mean and variance of the
relations follow from sums over windows; those of a pairwise hidden layer are an operator's, with
gradients (``learned_pairwise``), and a patchwise one is a map that is normalised as others are.
What is normalised is then a scale and a shift per channel, as in ``folding``, but made by
formulas that torch differentiates. Nothing of all pairs is stored.

Letters: B images, R relation channels, P position channels, D hidden channels, K2 neighbours.
Source: Ioffe and Szegedy, ICML 2015, for the statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sanrobust.kernels import (folding, learned_pairwise, learned_patchwise,  # noqa: F401
                               ops)
from sanrobust.kernels.hooks import is_linear, is_watched
from sanrobust.kernels.kernelset import LearningKernels, offers
from sanrobust.kernels.plain import Window
from sanrobust.kernels.position import PositionCode, displacement_table, slopes
from sanrobust.kernels.reference import mapped


def affine_steps(mapping: nn.Module, query: Tensor, position: Tensor, window: Window,
                 backend: str) -> Tensor | None:
    """Return what `pairwise_attention` is given of a position (1, P, H, W).

    It is the change (2, P) per row and column; None where the position is not affine in the
    coordinates, or the mapping of relations and position is not for `pairwise_attention`.
    """
    channels = query.shape[1] + position.shape[1]
    if window.padding_mode == "reflect" \
            and _takes(mapping, query, channels, window.neighbours, backend):
        return slopes(position[0].double(), torch.finfo(position.dtype).eps)
    return None


def takes_patchwise(mapping: nn.Module, query: Tensor, window: Window, backend: str) -> bool:
    """Whether `patchwise_attention` computes this mapping of patches."""
    return _takes(mapping, query, query.shape[1] * (1 + window.neighbours), 1, backend)


def takes_sum(mapping: nn.Module, relation: Tensor, value: Tensor, window: Window,
              backend: str) -> bool:
    """Whether `patchwise_sum` computes this mapping: the last ReLU's channels are the groups."""
    if (not mapping.training or not _may_learn(mapping, relation, backend)
            or type(mapping) is not nn.Sequential or len(mapping) < 2):
        return False
    relu, linear = mapping[-2:]
    if type(relu) is not nn.ReLU or not is_linear(linear):
        return False
    groups = linear.in_channels
    return (value.shape[1] % groups == 0
            and linear.out_channels == groups * window.neighbours
            and all(each.dtype == value.dtype and each.device == value.device
                    for each in (relation, linear.weight)))


def _takes(mapping: nn.Module, query: Tensor, channels: int, pairs: int, backend: str) -> bool:
    if not _may_learn(mapping, query, backend) or not folding.fits(mapping, query, channels):
        return False
    layers = folding.layers_of(mapping)
    return (query[:, 0].numel() * pairs > 1 and layers.linear.bias is None
            and all(map(ops.by_batch, (layers.norm, layers.norm2))))


def _may_learn(mapping: nn.Module, maps: Tensor, backend: str) -> bool:
    """Whether there are kernels for mappings in training, and nobody watches this one."""
    return not (torch.compiler.is_compiling() or maps.numel() == 0
                or not offers(backend, LearningKernels)
                or torch.is_autocast_enabled(maps.device.type)
                or any(map(is_watched, mapping.modules())))


def pairwise_attention(query: Tensor, key: Tensor, value: Tensor, steps: Tensor,
                       mapping: nn.Module, window: Window, *, backend: str) -> Tensor:
    """Compute as ``reference.pairwise_attention`` for the ``steps`` (2, P) of `affine_steps`."""
    layers = folding.layers_of(mapping)
    relation, dtype = query.shape[1], query.dtype
    pairs = query[:, 0].numel() * window.neighbours
    # What queries and keys of an image have in common is not in their differences: without it
    # nothing large is multiplied or squared.
    common = key.detach().mean((2, 3), keepdim=True)
    query, key = query - common, key - common
    moments = torch.cat((_Moments.apply(query, key, window),
                         _position_moments(steps, query.shape[2:], window)), 1)
    scale, shift = _affine(layers.norm, moments, pairs)
    own_scale, own_shift = (each[:relation, None, None].to(dtype) for each in (scale, shift))
    query, key = torch.addcmul(own_shift, query, own_scale), key * own_scale
    weight = layers.linear.weight.flatten(1)
    code = PositionCode(scale[relation:], shift[relation:], weight[:, relation:].double(),
                        shift.new_zeros(len(weight)))
    table = displacement_table(steps, code, window).to(dtype)
    w1 = weight[:, :relation].contiguous()
    hidden = torch.ops.sanrobust.pair_moments(query, key, table, w1, window.footprint, backend)
    scale, shift = (each.to(dtype) for each in _affine(layers.norm2, hidden, pairs))
    w2, bias = layers.linear2.weight.flatten(1), layers.linear2.bias
    if bias is not None:  # the softmax cancels it: its gradient is 0, but there is one
        w2 = w2 + 0 * bias[:, None]
    attended: Tensor
    attended, *_ = torch.ops.sanrobust.learned_pairwise(
        query, key, torch.addcmul(shift, table, scale), w1 * scale[:, None], value, w2,
        steps.shape[1], window.footprint, backend)
    return attended


def patchwise_attention(query: Tensor, key: Tensor, value: Tensor, mapping: nn.Module,
                        window: Window, *, backend: str) -> Tensor:
    """Compute as ``reference.patchwise_attention`` what `takes_patchwise` accepts."""
    layers = folding.layers_of(mapping)
    relation, dtype, around = query.shape[1], query.dtype, window.neighbours
    own = torch.stack(torch.var_mean(query.double(), (0, 2, 3), correction=0)[::-1])
    moments = torch.cat((own, _shifted_moments(key, window)), 1)
    scale, shift = (each.to(dtype) for each in _affine(layers.norm, moments,
                                                       query[:, 0].numel()))
    own_scale, own_shift = (each[:relation, None, None] for each in (scale, shift))
    key_scale, key_shift = (each[relation:].view(relation, around).t().contiguous()
                            for each in (scale, shift))
    settings = window.footprint, window.padding_mode, backend
    # The mapping counts a key's channels first, then its neighbours; kernels the reverse.
    weight = layers.linear.weight.flatten(1)
    of_keys = weight[:, relation:].view(-1, relation, around).transpose(1, 2).flatten(1)
    hidden = torch.ops.sanrobust.patch_hidden(
        torch.addcmul(own_shift, query, own_scale), key, key_scale, key_shift,
        torch.cat((weight[:, :relation], of_keys), 1), *settings)
    hidden = ops.norm_relu(layers.norm2, hidden, pooled=False, backend=backend)
    return _weighted(hidden, value, layers.linear2, window, backend)


def patchwise_sum(relation: Tensor, value: Tensor, mapping: nn.Module, window: Window, *,
                  backend: str) -> Tensor:
    """Compute as ``reference.patchwise_sum`` what `takes_sum` accepts."""
    assert isinstance(mapping, nn.Sequential)
    hidden = mapped(mapping[:-1], relation, backend=backend)
    linear = mapping[-1]
    assert isinstance(linear, nn.Conv2d)
    return _weighted(hidden.view(*hidden.shape[:2], *value.shape[2:]), value, linear, window,
                     backend)


def _weighted(hidden: Tensor, value: Tensor, linear: nn.Conv2d, window: Window,
              backend: str) -> Tensor:
    """Sum the values under the weights that ``linear`` makes of a hidden layer (B, D, H, W)."""
    # A mapping counts the groups first, then the neighbours; kernels the reverse.
    around, bias = window.neighbours, linear.bias
    w2 = linear.weight.view(-1, around, hidden.shape[1]).transpose(0, 1).flatten(0, 1)
    b2 = w2.new_zeros(len(w2)) if bias is None else bias.view(-1, around).t().flatten()
    attended: Tensor = torch.ops.sanrobust.patch_weighted(
        hidden, value, w2, b2, window.footprint, window.padding_mode, backend)
    return attended


def _shifted_moments(key: Tensor, window: Window) -> Tensor:
    """Mean and biased variance (2, C * K2) of each neighbour of all positions, in float64."""
    key = key.double()
    down, across = (_shifts(side, window, key) for side in key.shape[2:])
    centre = key.detach().mean((0, 2, 3))[:, None, None]
    key = key - centre
    first, second = (down @ each.mean(0) @ across.t() for each in (key, key.square()))
    # The rest is outside the map, where keys are 0.
    outside = 1 - down.sum(1)[:, None] * across.sum(1)
    first, second = first - outside * centre, second + outside * centre.square()
    return torch.stack((first + centre, second - first.square())).flatten(1)


def _position_moments(steps: Tensor, sides: Sequence[int], window: Window) -> Tensor:
    """Mean and biased variance (2, P) of p_i - p_j over all pairs, for a position of ``steps``.

    Opposite borders reflect opposite ways: the mean is 0, and rows and columns do not correlate.
    """
    spreads = steps.new_tensor([_spread(side, window) for side in sides])
    return torch.stack((torch.zeros_like(steps[0]), spreads @ steps.square()))


class _Moments(torch.autograd.Function):
    """Mean and biased variance (2, C) of query_i - key_j over all pairs, returned in float64.

    Its gradients are formulas of the same sums over windows.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, window: Window) -> Tensor:
        ctx.save_for_backward(query, key)
        ctx.window = window
        return _moments(query, key, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Views, as both may be one tensor.
            query, key = query.view_as(query), key.view_as(key)
            moments = _moments(query, key, ctx.window)
            return (*torch.autograd.grad(moments, (query, key), grad, create_graph=True), None)
        sums = _Sums(query, key, ctx.window)
        of_mean, of_square = grad[:, :, None, None].to(query.dtype)
        positions = len(query) * query.shape[2] * query.shape[3]
        of_query = of_mean / positions + of_square * (2 / positions) \
            * (sums.query - sums.gap - sums.around())
        of_key = (2 * of_square * (sums.key + sums.gap) - of_mean) * sums.share \
            - of_square * (2 / positions) * sums.seen()
        return of_query, of_key, None


def _moments(query: Tensor, key: Tensor, window: Window) -> Tensor:
    sums = _Sums(query, key, window)
    square = (sums.query * (sums.query - 2 * sums.around())).mean((0, 2, 3)) \
        + (sums.key.square() * sums.share).sum((0, 2, 3)) - sums.gap.flatten().square()
    return torch.stack((sums.mean, square.double()))


class _Sums:
    """Queries and keys less their means, so that the squares that cancel are small.

    Attributes:
        query, key: less their means.
        gap: the mean of query_i - key_j over all pairs of these (C, 1, 1).
        mean: that of query_i - key_j as they were given (C,), in float64.
        share: of all pairs, those that a pixel is the neighbour of (H, W).
    """

    def __init__(self, query: Tensor, key: Tensor, window: Window) -> None:
        self._down, self._across = (_windows(side, window, query) for side in query.shape[2:])
        self._positions = query.shape[2] * query.shape[3]
        self.share = self._down.sum(0)[:, None] * self._across.sum(0) / len(query)
        centres = [each.detach().mean((0, 2, 3)) for each in (query, key)]
        self.query, self.key = (each - centre[:, None, None]
                                for each, centre in zip((query, key), centres))
        gap = self.query.mean((0, 2, 3)) - (self.key * self.share).sum((0, 2, 3))
        self.gap = gap[:, None, None]
        self.mean = centres[0].double() - centres[1].double() + gap.double()

    def around(self) -> Tensor:
        """Return the mean of the keys that each position sees."""
        return self._down @ self.key @ self._across.t() * self._positions

    def seen(self) -> Tensor:
        """Return what each pixel has of the queries that see it, each as its mean over keys."""
        return self._down.t() @ self.query @ self._across * self._positions


def _windows(side: int, window: Window, like: Tensor) -> Tensor:
    """How often each pixel of a side (second axis) is a neighbour of each position, as a share of
    all pairs.
    """
    times = _seen(side, window).sum(0)
    return torch.as_tensor(times / times.sum(), dtype=like.dtype, device=like.device)


def _shifts(side: int, window: Window, like: Tensor) -> Tensor:
    """For each step along a side (K, side), the share of positions that see a pixel by it."""
    shares = _seen(side, window).sum(1) / side
    return torch.as_tensor(shares, dtype=like.dtype, device=like.device)


@lru_cache(maxsize=64)
def _seen(side: int, window: Window) -> NDArray[np.float64]:
    """Which pixel of a side (last axis) each step (first) from each position meets: 1, else 0."""
    reach = window.padding
    mode: Any = "reflect" if window.padding_mode == "reflect" else "constant"
    padded = np.pad(np.eye(side), ((reach, reach), (0, 0)), mode=mode)
    return np.stack([padded[step:step + side] for step in range(window.footprint)])


@lru_cache(maxsize=64)
def _spread(side: int, window: Window) -> float:
    """The mean square of the pixels between a position of a side and its neighbours."""
    pixels = _seen(side, window).argmax(2)
    return float(np.square(pixels - np.arange(side)).mean())


def _affine(norm: nn.BatchNorm2d, moments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) in float64 of a normalisation, whose running statistics move."""
    mean, variance = moments[0], moments[1].clamp(min=0)
    ops.move(norm, torch.stack((mean, variance)), count)
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    return scale, norm.bias.double() - mean * scale
