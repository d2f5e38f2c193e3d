"""Two conventions of counting as formulas by operator, for ``torch.utils.flop_counter``.

``mac`` is half of what that counter counts itself: multiply-adds of convolutions, linear layers
and matrix products, and, by the formulas of ``sanrobust.kernels.flops``, of attention.

``paper`` is what ``util/complexity.py`` of the paper's official code (hszhao/SAN, from
sovrasov/flops-counter.pytorch) counts, the source of the FLOPs of Tables 3 to 8. It hooks modules:
a convolution counts its multiply-adds and one addition per value for its bias, a linear layer
its multiply-adds alone, a batch normalisation 2 per value, a ReLU 1 per value, a pooling 1 per
value of its input, a subtraction 1 per value of its output and an aggregation one per product.
What no module does counts nothing: softmax, residual additions, concatenation, padding, and
matrix products of features. The same holds here: a batched matrix product counts only as the work
of a pointwise layer, and a relation counts what its entry in ``sanrobust.kernels.relations`` says,
for the paper printed the cost of relations whose code was never released.

Letters: B images, C channels, R relation channels, P position channels, D hidden channels, M
weight groups, K2 neighbours, H and W map pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sanrobust.complexity.settings import Convention
from sanrobust.kernels import ops  # noqa: F401 (defines the operators and their formulas)

Shape = Sequence[int]
Formula = Callable[..., int]

aten, own = torch.ops.aten, torch.ops.sanrobust

POOLS = frozenset({
    aten.max_pool2d, aten.max_pool2d_with_indices, aten.avg_pool2d, aten.adaptive_max_pool2d,
    aten.adaptive_avg_pool2d, aten._adaptive_avg_pool2d, aten.mean,
})
"""Poolings; averaging over a whole map is ``mean``."""

LAYER_PRODUCTS = frozenset({aten.bmm, aten.baddbmm})
"""Matrix products that ``paper`` counts inside a `PointwiseConv2d` alone, as its convolution."""


@dataclass(frozen=True)
class Rules:
    """How an operator counts.

    Attributes:
        formulas: by operator, called with the arguments and ``out_val``.
        layer_products: operators that count only as the work of a pointwise layer.
        relations: whether a relation counts what its entry says, not what its operators do.
    """

    formulas: Mapping[Any, Formula]
    layer_products: frozenset[Any] = frozenset()
    relations: bool = False


def rules(convention: Convention) -> Rules:
    """Return the formulas of a convention."""
    ours = _VECTORS if convention == "mac" else {**_VECTORS, **_PAPER}
    known = FlopCounterMode(display=False, custom_mapping=dict(ours)).flop_registry
    formulas = {operator: formula if operator in ours else _halved(formula)
                for operator, formula in known.items()}
    if convention == "mac":
        return Rules(formulas)
    return Rules({operator: formula for operator, formula in formulas.items()
                  if operator not in _UNSEEN}, LAYER_PRODUCTS, relations=True)


def _halved(formula: Formula) -> Formula:
    def count(*args: Any, **kwargs: Any) -> int:
        return formula(*args, **kwargs) // 2
    return count


def _convolution(maps: Shape, weight: Shape, bias: Shape | None, stride: Any, padding: Any,
                 dilation: Any, transposed: bool, *settings: Any, out_shape: Shape,
                 **kwargs: Any) -> int:
    """One per multiply-add and one per output value with a bias."""
    places = prod(maps) if transposed else prod(out_shape)
    return places * prod(weight[1:]) + (prod(out_shape) if bias is not None else 0)


def _biased_product(bias: Shape, left: Shape, right: Shape, *settings: Any, out_shape: Shape,
                    **kwargs: Any) -> int:
    """As a convolution with bias."""
    return prod(out_shape) * (left[-1] + 1)


def _normalisation(maps: Shape, *settings: Any, **kwargs: Any) -> int:
    return 2 * prod(maps)


def _input_values(maps: Shape, *settings: Any, **kwargs: Any) -> int:
    return prod(maps)


def _subtraction(*settings: Any, out_shape: Shape, **kwargs: Any) -> int:
    return prod(out_shape)


def _vector_product(*args: Any, **kwargs: Any) -> int:
    """Multiply-adds of a product with a vector: as many as the largest operand has values."""
    return max(prod(shape) for shape in args if isinstance(shape, torch.Size))


# Products that torch's own counter has no formula for.
_VECTORS: Mapping[Any, Formula] = MappingProxyType(dict.fromkeys(
    (aten.mv, aten.addmv, aten.dot, aten.vdot), _vector_product))
_NORMALISATIONS = (aten.batch_norm, aten.native_batch_norm, aten.cudnn_batch_norm,
                   aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit)
_ACTIVATIONS = (aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.leaky_relu,
                aten.leaky_relu_, aten.elu, aten.elu_, aten._prelu_kernel)
_PAPER: Mapping[Any, Formula] = MappingProxyType({
    aten.convolution: _convolution,
    aten.baddbmm: _biased_product,
    **dict.fromkeys(_NORMALISATIONS, _normalisation),
    **dict.fromkeys(_ACTIVATIONS, _input_values),
    **dict.fromkeys(POOLS, _input_values),
    own.subtraction: _subtraction,
})
# Matrix products of features, which hooks on modules do not see.
_UNSEEN = frozenset({
    aten._scaled_dot_product_efficient_attention, aten._scaled_dot_product_flash_attention,
    aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_cudnn_attention,
})
