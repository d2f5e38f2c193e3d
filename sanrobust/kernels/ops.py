"""The operators as the backends call them: custom operators of torch.

Each has a fake kernel (for torch.compile and export), a gradient and a formula for
``torch.utils.flop_counter``; for forward-mode derivatives plain torch computes. Maps are
(B, C, H, W), letters those of ``plain``; ``backend`` names the kernel set that computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanrobust.kernels import flops, gradients, operators  # noqa: F401 (they register)
from sanrobust.kernels.folding import FoldedPairwise, FoldedPatchwise
from sanrobust.kernels.plain import PlainKernels, Window, differentiates_forwards


def aggregation(value: Tensor, weight: Tensor, window: Window, *, backend: str) -> Tensor:
    """Sum the neighbours under their weights by the kernels of ``backend``."""
    if differentiates_forwards():
        return PlainKernels().aggregation(value, weight, window)
    summed: Tensor = torch.ops.sanrobust.aggregation(value, weight, *_spelled(window), backend)
    return summed


def subtraction(query: Tensor, key: Tensor, window: Window, *, backend: str) -> Tensor:
    """Return centre minus neighbours by the kernels of ``backend``."""
    if differentiates_forwards():
        return PlainKernels().subtraction(query, key, window)
    relation: Tensor = torch.ops.sanrobust.subtraction(query, key, *_spelled(window), backend)
    return relation


def dot_product(query: Tensor, key: Tensor, groups: int, window: Window, *,
                backend: str) -> Tensor:
    """Sum query_i * key_j over the channels of each group by the kernels of ``backend``."""
    centres = query[:, :, ::window.stride, ::window.stride]
    if differentiates_forwards():
        like = key.new_empty(key.shape[0], groups, window.neighbours, centres[0, 0].numel())
        return PlainKernels().aggregation_backward(centres, key, like, window, False, True)[1]
    product: Tensor = gradients.DotProduct.apply(centres, key, groups, *_spelled(window), backend)
    return product


def pairwise_attention(query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                       folded: FoldedPairwise, window: Window, *, absolute: bool = False,
                       backend: str) -> Tensor:
    """Attend by a folded mapping with the fused kernels of ``backend``; maps as projected.

    Where ``absolute`` the place of a neighbour counts, not its difference to the centre's.
    """
    attended: Tensor = torch.ops.sanrobust.pairwise_attention(
        _scaled(query, folded.query_scale, folded.query_shift),
        _scaled(key, folded.key_scale, folded.key_shift), value, position, folded.tensors(),
        folded.delta, absolute, window.footprint, window.padding_mode, backend)
    return attended


def patchwise_attention(query: Tensor, key: Tensor, value: Tensor, folded: FoldedPatchwise,
                        window: Window, *, backend: str) -> Tensor:
    """Attend by a folded mapping with the fused kernels of ``backend``; maps as projected."""
    scale, shift = folded.query_scale[:, None, None], folded.query_shift[:, None, None]
    read = folded.matrices
    matrices = [read.key_scale, read.key_shift, read.w1, read.w1t, read.b1, read.w2, read.w2t,
                read.b2]
    attended: Tensor = torch.ops.sanrobust.patchwise_attention(
        torch.addcmul(shift, query, scale).to(query.dtype), key, value,
        matrices, window.footprint, window.padding_mode, backend)
    return attended


def local_attention(query: Tensor, key: Tensor | None, value: Tensor, embedding: Tensor | None,
                    heads: int, window: Window, *, backend: str) -> Tensor:
    """Attend by heads with the fused kernels of ``backend``."""
    attended: Tensor = torch.ops.sanrobust.local_attention(
        query, key, value, embedding, heads, window.footprint, window.padding_mode, backend)
    return attended


def norm_relu(norm: nn.BatchNorm2d, features: Tensor, *, pooled: bool, backend: str) -> Tensor:
    """Normalise (B, C, ...) by the statistics of the batch, and ReLU, by the kernels of
    ``backend``; moves the running statistics as torch does. Maxima of 2x2 where ``pooled``.
    """
    normalised: Tensor
    normalised, stats, _ = torch.ops.sanrobust.norm_relu(features, norm.weight, norm.bias,
                                                         norm.eps, pooled, backend)
    move(norm, stats, features.numel() // features.shape[1])
    return normalised


def by_batch(norm: nn.Module) -> bool:
    """Whether ``norm`` normalises by the statistics of the batch as torch's own class does."""
    return (type(norm) is nn.BatchNorm2d and norm.training and norm.weight is not None
            and norm.bias is not None and norm.eps > 0
            and norm.track_running_stats == (norm.running_mean is not None)
            and (norm.running_mean is None or norm.num_batches_tracked is not None))


@torch.no_grad()
def move(norm: nn.BatchNorm2d, stats: Tensor, count: int) -> None:
    """Move the running statistics towards mean and biased variance (2, C) of ``count`` values."""
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    mean, variance = stats[0], stats[1] * (count / (count - 1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


def _scaled(maps: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is None:
        return maps
    scaled = maps * scale[:, None, None] if shift is None else torch.addcmul(
        shift[:, None, None], maps, scale[:, None, None])
    return scaled.to(maps.dtype)


def _spelled(window: Window) -> tuple[int, int, int, str]:
    """A window as the arguments of an operator."""
    return window.footprint, window.stride, window.dilation, window.padding_mode
