"""The truth: every operator in plain torch, on any device, in any floating dtype.

Letters and the order of neighbours are those of ``plain``, which holds the kernels. Attention is
composed here of the two elementary operators with the mapping, any network, between them; with
another backend's elementary operators it is what that backend does where it has no fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.errors import UsageError
from sanrobust.kernels import ops
from sanrobust.kernels.calls import Comparison
from sanrobust.kernels.hooks import is_watched
from sanrobust.kernels.kernelset import NormKernels, offers
from sanrobust.kernels.plain import Window as Window
from sanrobust.kernels.plain import neighbours as neighbours

NAME = "reference"

# Values of one relation tensor kept at a time where images are independent. On a CPU, larger
# blocks go back to the system after each operator and are paged in again; elsewhere the bound is
# on memory alone, as short slices would leave the device idle.
SLICE_VALUES = {"cpu": 1 << 21}
SLICE_VALUES_ELSEWHERE = 1 << 27


def subtraction(query: Tensor, key: Tensor, window: Window) -> Tensor:
    """Return centre minus neighbours, query_i - key_j: two (B, R, H, W) to (B, R, K2, L)."""
    return ops.subtraction(query, key, window, backend=NAME)


def aggregation(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    """Sum the neighbours under their weights: (B, O, H, W) and (B, M, K2, L) to (B, O, H', W').

    Channel c takes the weights of group c % M.
    """
    return ops.aggregation(value, weight, window, backend=NAME)


def dot_product(query: Tensor, key: Tensor, groups: int, window: Window) -> Tensor:
    """Sum query_i * key_j over the channels c of each group c % G: to (B, G, K2, L)."""
    return ops.dot_product(query, key, groups, window, backend=NAME)


def pair_products(query: Tensor, key: Tensor, window: Window) -> Tensor:
    """Return query_j . key_k of all neighbours j and k, j by j: to (B, K2 * K2, 1, L)."""
    rows = neighbours(query, window).permute(0, 3, 2, 1)
    columns = neighbours(key, window).permute(0, 3, 1, 2)
    return (rows @ columns).flatten(2).transpose(1, 2).unsqueeze(2)


def pairwise_attention(query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                       mapping: nn.Module, window: Window, *, affine: bool = False,
                       compare: Comparison | None = None, absolute: bool = False,
                       backend: str = NAME) -> Tensor:
    """Softmax over neighbours of mapping([query_i - key_j, position_i - position_j]).

    ``compare`` takes the place of the first difference; where ``absolute``, position_j that of the
    second.
    """

    def relations(query: Tensor, key: Tensor) -> Tensor:
        where = position.expand(query.shape[0], -1, -1, -1)
        if compare is None and not absolute:
            return ops.subtraction(torch.cat((query, where), 1), torch.cat((key, where), 1),
                                   window, backend=backend)
        parts = (ops.subtraction(query, key, window, backend=backend),) if compare is None \
            else compare(query, key)
        if position.shape[1]:
            place = neighbours(position, window) if absolute \
                else ops.subtraction(position, position, window, backend=backend)
            parts = (*parts, place.expand(query.shape[0], -1, -1, -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        relation = relations(query, key)
        weight = torch.softmax(mapped(mapping, relation, backend=backend), dim=-2)
        return ops.aggregation(value, weight.to(value.dtype), window, backend=backend)

    channels = (query.shape[1] if compare is None else compare.width) + position.shape[1]
    return by_slices(attend, (query, key, value), mapping, channels * window.neighbours)


def patchwise_sum(relation: Tensor, value: Tensor, mapping: nn.Module, window: Window, *,
                  backend: str = NAME) -> Tensor:
    """Sum the values under mapping(relation) itself, without a softmax."""
    weight = mapped(mapping, relation, backend=backend).squeeze(2)
    groups = weight.shape[1] // window.neighbours
    if weight.shape[1] % window.neighbours or not groups or value.shape[1] % groups:
        raise UsageError(f"the mapping must make weights for {window.neighbours} neighbours, in "
                         f"groups that divide {value.shape[1]} channels",
                         seen=f"it makes {weight.shape[1]}", hint="change its last layer")
    weight = torch.unflatten(weight, 1, (-1, window.neighbours))
    return ops.aggregation(value, weight.to(value.dtype), window, backend=backend)


def patchwise_attention(query: Tensor, key: Tensor, value: Tensor, mapping: nn.Module,
                        window: Window, *,
                        summed: Callable[..., Tensor] = patchwise_sum) -> Tensor:
    """Let the values be ``summed`` by the relation [query_i, all key_j of the footprint]."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        centres = query[:, :, ::window.stride, ::window.stride].flatten(2).unsqueeze(2)
        patch = neighbours(key, window).flatten(1, 2).unsqueeze(2)
        return summed(torch.cat((centres, patch), 1), value, mapping, window)

    per_position = query.shape[1] + key.shape[1] * window.neighbours
    return by_slices(attend, (query, key, value), mapping, per_position)


def local_attention(query: Tensor, key: Tensor | None, value: Tensor, embedding: Tensor | None,
                    heads: int, window: Window, *, backend: str = NAME) -> Tensor:
    """Sum the values under the softmax of the logits of each head."""

    def attend(value: Tensor, query: Tensor, *keys: Tensor) -> Tensor:
        weight = local_weights(query, keys[0] if keys else None, embedding, heads, window,
                               backend=backend)
        return ops.aggregation(value, weight.to(value.dtype), window, backend=backend)

    maps = (value, query) if key is None else (value, query, key)
    return by_slices(attend, maps, None, heads * window.neighbours)


def local_weights(query: Tensor, key: Tensor | None, embedding: Tensor | None, heads: int,
                  window: Window, *, backend: str = NAME) -> Tensor:
    """Return the weights (B, N, K2, L): softmax over neighbours of q.k, q.r or their sum."""
    logits = None if embedding is None else _offset_logits(query, embedding, heads, window)
    if key is not None:
        content = ops.dot_product(query, key, heads, window, backend=backend)
        logits = content if logits is None else content + logits
    assert logits is not None
    return torch.softmax(logits, dim=-2)


def _offset_logits(query: Tensor, embedding: Tensor, heads: int, window: Window) -> Tensor:
    """q.r (B, N, K2, L) as a sum of its rows' and its columns' part, K + K dots, not K2."""
    centres = query[:, :, ::window.stride, ::window.stride].flatten(2)
    down, across = (
        torch.einsum("bcnl,kcn->bnkl", torch.unflatten(half, 1, (-1, heads)),
                     torch.unflatten(embedded, 1, (-1, heads)))
        for half, embedded in zip(centres.chunk(2, 1), embedding))
    return (down.unsqueeze(3) + across.unsqueeze(2)).flatten(2, 3)


def norm_relu(norm: nn.Module, features: Tensor, *, pooled: bool = False,
              backend: str = NAME) -> Tensor:
    """Normalise (B, C, ...) and ReLU, then, where ``pooled``, take the maxima of 2x2 pixels.

    In training it is one operator where ``backend`` has such a kernel.
    """
    # A map without a whole square is for torch to refuse.
    if _is_one_operator(norm, features, backend) and not (pooled and min(features.shape[2:]) < 2):
        assert isinstance(norm, nn.BatchNorm2d)
        return ops.norm_relu(norm, features, pooled=pooled, backend=backend)
    made = F.relu(norm(features), inplace=True)
    return F.max_pool2d(made, 2) if pooled else made


def mapped(mapping: nn.Module, relation: Tensor, *, backend: str = NAME) -> Tensor:
    """Return what ``mapping`` makes of a relation, its normalisations joined with their ReLUs."""
    if type(mapping) is not nn.Sequential or not mapping.training or is_watched(mapping):
        made: Tensor = mapping(relation)
        return made
    layers = list(mapping)
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, nn.BatchNorm2d) and layers and type(layers[0]) is nn.ReLU \
                and not is_watched(layers[0]):
            layers.pop(0)
            relation = norm_relu(layer, relation, backend=backend)
        else:
            relation = layer(relation)
    return relation


def _is_one_operator(norm: nn.Module, features: Tensor, backend: str) -> bool:
    # The compiler joins them by itself, and one value has no variance, which torch refuses.
    if not ops.by_batch(norm) or is_watched(norm):
        return False
    assert isinstance(norm, nn.BatchNorm2d)
    return (not torch.compiler.is_compiling() and features.dim() == 4
            and features.dtype == norm.weight.dtype and features.device == norm.weight.device
            and features.numel() > features.shape[1] == norm.num_features
            and offers(backend, NormKernels))


def by_slices(attend: Callable[..., Tensor], maps: tuple[Tensor, ...],
              mapping: nn.Module | None, values_per_position: int) -> Tensor:
    """Attend a few images at a time where ``mapping`` treats images independently.

    Args:
        attend: takes the maps of some images and returns what it makes of them, images first.
        maps: (B, C, H, W) each.
        mapping: the network that ``attend`` applies, if any.
        values_per_position: values of its largest tensor for each position of the maps.
    """
    query = maps[0]
    values_per_image = values_per_position * query.shape[-2] * query.shape[-1]
    bound = SLICE_VALUES.get(query.device.type, SLICE_VALUES_ELSEWHERE)
    images = max(1, bound // max(1, values_per_image))
    if images >= query.shape[0] or (mapping is not None and _mixes_images(mapping)):
        return attend(*maps)
    slices = zip(*(torch.split(each, images) for each in maps))
    return torch.cat([attend(*each) for each in slices])


def _mixes_images(mapping: nn.Module) -> bool:
    """Whether batch statistics (or dropout) tie the images of a batch together."""
    return any(module.training or (isinstance(module, nn.modules.batchnorm._BatchNorm)
                                   and module.running_mean is None)
               for module in mapping.modules())
