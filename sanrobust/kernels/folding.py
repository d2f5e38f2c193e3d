"""A frozen mapping as the few matrices that the fused kernels read.

The mapping is the paper's gamma as ``modules`` builds it: normalisation, ReLU, linear layer,
twice. In eval mode a normalisation is a scale and a shift per channel, so that

- pairwise: relu(norm(query_i - key_j)) = relu(query'_i - key'_j) with query' = query * scale +
  shift and key' = key * scale (a product takes the scale into its query, and the shift is added to
  it; of a concatenation each half is normalised by itself); the second normalisation goes into
  the first linear layer; the
  last bias is the same for all neighbours, so the softmax cancels it; and what the position adds
  to the hidden layer depends on the displacement alone where the position is affine in the
  pixel coordinates: a table.
- patchwise: the first normalisation differs between neighbours, so the key's stays an affine
  map of its own; nothing cancels.

Letters: R relation channels, P position channels, D hidden channels, M weight groups, K2
neighbours (row by row), H and W map pixels. Folding computes in float64 and rounds once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.kernels import foldcache
from sanrobust.kernels.hooks import is_altered, is_linear
from sanrobust.kernels.position import PositionCode, keep_tables
from sanrobust.kernels.relations import Delta

Folded = TypeVar("Folded")


@dataclass(frozen=True)
class FoldedPairwise:
    """A pairwise mapping before the map's size is known.

    Attributes:
        delta: what the relation does with query and key.
        query_scale, query_shift, key_scale, key_shift: (R,) or None; the operator is given
            query * query_scale + query_shift, and the key likewise.
        offset: (R,) or (1,), added to products; None where there are none.
        w1: (D, N) from relations to the hidden layer; w1t its transpose.
        w2: (M, D) from the hidden layer to the weights; w2t its transpose.
        code: what the position adds to the hidden layer.
    """

    delta: Delta
    query_scale: Tensor
    query_shift: Tensor | None
    key_scale: Tensor | None
    key_shift: Tensor | None
    offset: Tensor | None
    w1: Tensor
    w1t: Tensor
    w2: Tensor
    w2t: Tensor
    code: PositionCode

    def tensors(self) -> list[Tensor]:
        """Return w1, w1t, w2, w2t and four of the code; of products the offset too, of a
        concatenation what is outside.
        """
        code = self.code
        last = self.offset if code.outside is None else code.outside
        return [self.w1, self.w1t, self.w2, self.w2t, code.scale, code.shift, code.weight,
                code.bias, *([] if last is None else [last])]


@dataclass(frozen=True)
class PairwiseMatrices:
    """What a pairwise kernel reads besides the maps (``PairwiseArgs`` of the native api.h).

    Attributes:
        w1, w1t: those of ``FoldedPairwise``; None of a concatenation, whose query and key come
            multiplied by the two halves, the key with the other sign.
        w2, w2t, delta, offset: those of ``FoldedPairwise``.
        table: (1 or H * W, K2 + 1, D), the hidden layer's initial value by displacement of a
            neighbour inside the map; entry K2 is that of a neighbour outside it. Or, by place,
            (H * W + 1, D), by the pixel that the neighbour is, the outside last.
    """

    w1: Tensor | None
    w1t: Tensor | None
    w2: Tensor
    w2t: Tensor
    table: Tensor
    delta: Delta = "subtraction"
    offset: Tensor | None = None

    @property
    def by_place(self) -> bool:
        """Whether the table is one by place."""
        return self.table.dim() == 2


@dataclass(frozen=True)
class PatchwiseMatrices:
    """What a patchwise kernel reads besides the maps (``PatchwiseArgs`` of the native api.h).

    Attributes:
        key_scale, key_shift: (K2, R), the key's first normalisation for each neighbour.
        w1: (D, (1 + K2) * R), the query, then neighbour by neighbour; w1t its transpose.
        b1: (D,).
        w2: (K2 * M, D), neighbour by neighbour; w2t its transpose.
        b2: (K2 * M,).
    """

    key_scale: Tensor
    key_shift: Tensor
    w1: Tensor
    w1t: Tensor
    b1: Tensor
    w2: Tensor
    w2t: Tensor
    b2: Tensor


@dataclass(frozen=True)
class FoldedPatchwise:
    """A patchwise mapping; the kernels are given query * query_scale + query_shift (R,)."""

    query_scale: Tensor
    query_shift: Tensor
    matrices: PatchwiseMatrices


def tensors(matrices: PairwiseMatrices | PatchwiseMatrices) -> dict[str, Tensor]:
    """Return the tensors of ``matrices`` by name, those that there are."""
    return {name: each for name, each in vars(matrices).items() if isinstance(each, Tensor)}


@dataclass(frozen=True)
class FirstNorm:
    """Where the first normalisation of a pairwise mapping goes, before query and key are compared.

    Attributes:
        delta: how they are compared.
        scale, shift: (N,), of the relation's channels.
    """

    delta: Delta
    scale: Tensor
    shift: Tensor

    def of_query(self, channels: int) -> tuple[Tensor, Tensor | None]:
        """Return scale and shift of the query's ``channels``."""
        scale = self.scale[:channels].expand(channels)
        return scale, None if self._multiplies else self.shift[:channels]

    def of_key(self, channels: int) -> tuple[Tensor | None, Tensor | None]:
        """Return those of the key; what is subtracted needs no shift."""
        if self.delta == "concatenation":
            return self.scale[channels:], self.shift[channels:]
        return None if self._multiplies else self.scale, None

    @property
    def offset(self) -> Tensor | None:
        """What is added to products."""
        return self.shift if self._multiplies else None

    def outside(self, weight: Tensor) -> Tensor | None:
        """Return what ``weight`` (D, N) makes of a key of 0, (D,), where its pixel is all it needs.

        Elsewhere None.
        """
        if self.delta != "concatenation":
            return None
        of_key = weight.chunk(2, 1)[1]
        return of_key @ torch.relu(self.shift.chunk(2)[1]).to(weight.dtype)

    @property
    def _multiplies(self) -> bool:
        return self.delta in ("hadamard", "dot")


def refusal(mapping: nn.Module, maps: Tensor | None = None,
            channels: int | None = None) -> str | None:
    """Return why ``mapping`` cannot be folded, as a clause; None when it can.

    Args:
        maps: what it will be applied to; a mapping of another dtype or device is not folded.
        channels: of the relations that it will be given.
    """
    if not _is_mapping(mapping):
        return "the mapping is not a normalisation, a ReLU and a 1x1 convolution, twice"
    if any(map(is_altered, mapping.modules())):
        return "the mapping has hooks, or a layer with a forward of its own"
    layers = layers_of(mapping)
    if any(norm.training or norm.running_mean is None for norm in (layers.norm, layers.norm2)):
        return "the mapping normalises by the statistics of the batch"
    if torch.is_grad_enabled() and any(each.requires_grad for each in mapping.parameters()):
        return "the mapping's weights require gradients"
    return _misfit(layers, maps, channels)


def fits(mapping: nn.Module, maps: Tensor, channels: int) -> bool:
    """Whether ``mapping`` has the layers that are folded, for ``channels`` and of the maps' dtype.
    """
    return _is_mapping(mapping) and _misfit(layers_of(mapping), maps, channels) is None


def shares(mapping: nn.Module, value: Tensor, neighbours: int) -> bool:
    """Whether the weights that ``mapping`` makes for ``neighbours`` at once divide ``value``."""
    weights = layers_of(mapping).linear2.weight.shape[0]
    groups = weights // neighbours
    return weights % neighbours == 0 and value.shape[1] % groups == 0


def fold_pairwise(mapping: nn.Module, channels: int, dtype: torch.dtype,
                  delta: Delta = "subtraction") -> FoldedPairwise:
    """Fold a mapping of what ``delta`` makes of R = ``channels``, then P position channels.

    ``refusal`` must have returned None.
    """
    layers = layers_of(mapping)
    relation = {"dot": 1, "concatenation": 2 * channels}.get(delta, channels)

    def fold() -> FoldedPairwise:
        scale, shift = affine(layers.norm)
        w1, b1 = _hidden(layers)
        w2 = layers.linear2.weight.flatten(1)
        first = FirstNorm(delta, scale[:relation].to(dtype), shift[:relation].to(dtype))
        code = PositionCode(scale[relation:], shift[relation:], w1[:, relation:], b1,
                            first.outside(w1[:, :relation]))
        if foldcache.unchanging():
            keep_tables(code)
        return FoldedPairwise(delta, *first.of_query(channels), *first.of_key(channels),
                              first.offset, *_both(w1[:, :relation], dtype), *_both(w2, dtype),
                              code)

    return _kept(fold, mapping, layers, f"pairwise {delta} {channels} {dtype}")


def fold_patchwise(mapping: nn.Module, relation: int, dtype: torch.dtype, *,
                   with_query: bool = True, to_weights: bool = True) -> FoldedPatchwise:
    """Fold a mapping of R = ``relation`` query channels and then R * K2 key channels.

    ``refusal`` must have returned None. Without the query, which then is among the keys, its
    channels are of no weight. A mapping that does not end in weights of neighbours keeps the order
    of its last layer.
    """
    layers = layers_of(mapping)

    def fold() -> FoldedPatchwise:
        scale, shift = affine(layers.norm)
        w1, b1 = _hidden(layers)
        if not with_query:
            scale, shift, w1 = (F.pad(each, (relation, 0)) for each in (scale, shift, w1))
        # The mapping counts a key's channels first, then its neighbours; kernels the reverse.
        of_key = w1[:, relation:].view(len(w1), relation, -1).transpose(1, 2)
        w1 = torch.cat((w1[:, :relation], of_key.flatten(1)), 1)
        w2, b2 = weights_of(layers.linear2, of_key.shape[1] if to_weights else 1)
        key_scale, key_shift = (_dense(each[relation:].view(relation, -1).t(), dtype)
                                for each in (scale, shift))
        matrices = PatchwiseMatrices(key_scale, key_shift, *_both(w1, dtype), b1.to(dtype),
                                     *_both(w2, dtype), b2.to(dtype))
        return FoldedPatchwise(scale[:relation].to(dtype), shift[:relation].to(dtype), matrices)

    return _kept(fold, mapping, layers, f"patchwise {relation} {dtype} {with_query} {to_weights}")


@dataclass(frozen=True)
class FoldedProducts:
    """A mapping of N products of queries and keys.

    Attributes:
        scale, shift: (N,) float64, what the first normalisation does to the products.
        w1, b1: (D, N) and (D,), float64.
        w2: (K2 * M, D), neighbour by neighbour; w2t its transpose.
        b2: (K2 * M,).
    """

    scale: Tensor
    shift: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    w2t: Tensor
    b2: Tensor


def fold_products(mapping: nn.Module, neighbours: int, dtype: torch.dtype) -> FoldedProducts:
    """Fold a mapping of products to weights of K2 ``neighbours``; ``refusal`` must have returned
    None.
    """
    layers = layers_of(mapping)
    scale, shift = affine(layers.norm)
    w2, b2 = weights_of(layers.linear2, neighbours)
    return FoldedProducts(scale, shift, *_hidden(layers), *_both(w2, dtype), b2.to(dtype))


def _kept(fold: Callable[[], Folded], mapping: nn.Module, layers: Layers, kind: str) -> Folded:
    return foldcache.kept(fold, mapping, layers.tensors(),
                          f"{kind} {layers.norm.eps} {layers.norm2.eps}")


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return a normalisation by stored statistics as scale and shift (C,), both float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def weights_of(linear: nn.Conv2d, count: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a last layer, its rows neighbour by neighbour for ``count`` of them."""
    weight = linear.weight.flatten(1)
    by_neighbour = weight.view(-1, count, weight.shape[1]).transpose(0, 1).flatten(0, 1)
    return by_neighbour, _bias(linear).view(-1, count).t().flatten()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which kernels multiply and add values of ``dtype``."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


@dataclass(frozen=True)
class Layers:
    """The layers of a mapping that have numbers.

    Attributes:
        norm, linear, norm2, linear2: in their order.
    """

    norm: nn.BatchNorm2d
    linear: nn.Conv2d
    norm2: nn.BatchNorm2d
    linear2: nn.Conv2d

    def tensors(self) -> list[Tensor | None]:
        """Everything that folding reads."""
        return [*(each for norm in (self.norm, self.norm2)
                  for each in (norm.weight, norm.bias, norm.running_mean, norm.running_var)),
                *(each for linear in (self.linear, self.linear2)
                  for each in (linear.weight, linear.bias))]


def layers_of(mapping: nn.Module) -> Layers:
    """Name the layers of a mapping that `fits`."""
    assert isinstance(mapping, nn.Sequential)
    norm, _, linear, norm2, _, linear2 = mapping
    return Layers(*cast(Any, (norm, linear, norm2, linear2)))


def _is_mapping(mapping: nn.Module) -> bool:
    """Whether these are exactly the layers whose formula is folded; subclasses may differ."""
    if type(mapping) is not nn.Sequential or len(mapping) != 6:
        return False
    return all(type(norm) is nn.BatchNorm2d and type(relu) is nn.ReLU and is_linear(linear)
               for norm, relu, linear in (mapping[:3], mapping[3:]))


def _misfit(layers: Layers, maps: Tensor | None, channels: int | None) -> str | None:
    hidden, inputs = layers.linear.weight.shape[:2]
    fitting = (inputs, hidden, hidden, inputs if channels is None else channels)
    if fitting != (layers.norm.num_features, layers.norm2.num_features,
                   layers.linear2.weight.shape[1], inputs):
        return "the mapping's layers and the relations do not fit together"
    if maps is not None and any(
            each is not None and (each.dtype not in _dtypes_for(maps)
                                  or each.device != maps.device) for each in layers.tensors()):
        return "the mapping has another dtype or device than the maps"
    return None


def _dtypes_for(maps: Tensor) -> tuple[torch.dtype, ...]:
    """What a mapping of ``maps`` may be of: autocast leaves weights in full precision."""
    if torch.is_autocast_enabled(maps.device.type):
        return maps.dtype, accumulator(maps.dtype)
    return (maps.dtype,)


def _bias(layer: nn.Conv2d) -> Tensor:
    if layer.bias is None:
        return layer.weight.new_zeros(layer.weight.shape[0], dtype=torch.float64)
    return layer.bias.double()


def _hidden(layers: Layers) -> tuple[Tensor, Tensor]:
    """Weight and bias of the hidden layer, its normalisation folded in."""
    scale, shift = affine(layers.norm2)
    return (layers.linear.weight.flatten(1).double() * scale[:, None],
            _bias(layers.linear) * scale + shift)


def _both(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A matrix and its transpose, both dense."""
    return _dense(weight, dtype), _dense(weight.t(), dtype)


def _dense(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of its own, as custom operators must not be given one tensor twice."""
    return matrix.to(dtype, copy=True, memory_format=torch.contiguous_format)
