"""The products of all pairs of neighbours of a position, which a clique compares.

A pair of neighbours lies on many patches, and its product is the same on each. So the products of
every pixel with those around it are made once, and each patch gathers its own.

Letters: B images, K side of a footprint, D = 2K - 1, H and W sides of a map, H' = H + K - 1 and
W' = W + K - 1 those of a map with its margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def gathered(products: Tensor, footprint: int) -> Tensor:
    """Return the products of each patch, (B, K2 * K2, H, W), first by the query's place in it.

    Args:
        products: (B, D * D, H', W'), query_i . key_j of every pixel i and each j around it.
        footprint: K.
    """
    patches: Tensor = _Gather.apply(products, footprint)
    return patches


class _Gather(torch.autograd.Function):
    """Linear, and so its own derivative; the gradient is that of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, products: Tensor, footprint: int) -> Tensor:
        ctx.footprint = footprint
        images, _, height, width = products.shape
        margin = footprint - 1
        patches = products.new_empty(images, *[footprint] * 4, height - margin, width - margin)
        for patch, product in _pairs(patches, products, footprint):
            patch.copy_(product)
        return patches.flatten(1, 4)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.footprint), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, of_footprint: None) -> Tensor:
        return gathered(tangent, ctx.footprint)


class _Spread(torch.autograd.Function):
    """The gradient of the products for that of all patches."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, footprint: int) -> Tensor:
        ctx.footprint = footprint
        images, _, height, width = grad.shape
        margin = footprint - 1
        products = grad.new_zeros(images, (2 * footprint - 1) ** 2, height + margin,
                                  width + margin)
        patches = torch.unflatten(grad, 1, (footprint,) * 4)
        for patch, product in _pairs(patches, products, footprint):
            product.add_(patch)
        return products

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered(grad, ctx.footprint), None


def _pairs(patches: Tensor, products: Tensor, footprint: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield where each place of the query in a patch has its keys (B, K, K, H, W), in both."""
    by_offset = torch.unflatten(products, 1, (2 * footprint - 1,) * 2)
    height, width = patches.shape[-2:]
    for row in range(footprint):
        for column in range(footprint):
            down, across = footprint - 1 - row, footprint - 1 - column
            yield patches[:, row, column], by_offset[
                :, down:down + footprint, across:across + footprint,
                row:row + height, column:column + width]
