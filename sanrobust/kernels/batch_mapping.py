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

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sanrobust.kernels import (folding, learned_pairwise, learned_patchwise,  # noqa: F401
                               ops)
from sanrobust.kernels.hooks import is_watched
from sanrobust.kernels.kernelset import LearningKernels, offers
from sanrobust.kernels.plain import Window
from sanrobust.kernels.position import PositionCode, displacement_table, slopes


def takes_pairwise(mapping: nn.Module, query: Tensor, position: Tensor, window: Window,
                   backend: str) -> bool:
    """Whether `pairwise_attention` computes this mapping of relations and position."""
    channels = query.shape[1] + position.shape[1]
    return (window.padding_mode == "reflect"
            and _takes(mapping, query, channels, window.neighbours, backend)
            and _slopes(position) is not None)


def takes_patchwise(mapping: nn.Module, query: Tensor, window: Window, backend: str) -> bool:
    """Whether `patchwise_attention` computes this mapping of patches."""
    return _takes(mapping, query, query.shape[1] * (1 + window.neighbours), 1, backend)


def _takes(mapping: nn.Module, query: Tensor, channels: int, pairs: int, backend: str) -> bool:
    if (torch.compiler.is_compiling() or query.numel() == 0
            or not offers(backend, LearningKernels)
            or torch.is_autocast_enabled(query.device.type)):
        return False
    if not folding.fits(mapping, query, channels) or any(map(is_watched, mapping.modules())):
        return False
    layers = folding.layers_of(mapping)
    return (query[:, 0].numel() * pairs > 1 and layers.linear.bias is None
            and all(map(ops.by_batch, (layers.norm, layers.norm2))))


def pairwise_attention(query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                       mapping: nn.Module, window: Window, *, backend: str) -> Tensor:
    """Compute as ``reference.pairwise_attention`` what `takes_pairwise` accepts."""
    layers = folding.layers_of(mapping)
    relation, dtype = query.shape[1], query.dtype
    pairs = query[:, 0].numel() * window.neighbours
    # What queries and keys of an image have in common is not in their differences: without it
    # nothing large is multiplied or squared.
    common = key.detach().mean((2, 3), keepdim=True)
    query, key = query - common, key - common
    # Neighbouring positions differ little: their squares would cancel in float32.
    exact = position.double()
    moments = torch.cat([_Moments.apply(*maps, window)
                         for maps in ((query, key), (exact, exact))], 1)
    scale, shift = _affine(layers.norm, moments, pairs)
    own_scale, own_shift = (each[:relation, None, None].to(dtype) for each in (scale, shift))
    query, key = torch.addcmul(own_shift, query, own_scale), key * own_scale
    weight = layers.linear.weight.flatten(1)
    steps = _slopes(position)
    assert steps is not None
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
        position.shape[1], window.footprint, backend)
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
    w2 = layers.linear2.weight.view(-1, around, hidden.shape[1]).transpose(0, 1).flatten(0, 1)
    bias = layers.linear2.bias
    b2 = w2.new_zeros(len(w2)) if bias is None else bias.view(-1, around).t().flatten()
    attended: Tensor = torch.ops.sanrobust.patch_weighted(hidden, value, w2, b2, *settings)
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


def _slopes(position: Tensor) -> Tensor | None:
    return slopes(position[0].double(), torch.finfo(position.dtype).eps)


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


def _affine(norm: nn.BatchNorm2d, moments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) in float64 of a normalisation, whose running statistics move."""
    mean, variance = moments[0], moments[1].clamp(min=0)
    ops.move(norm, torch.stack((mean, variance)), count)
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    return scale, norm.bias.double() - mean * scale
