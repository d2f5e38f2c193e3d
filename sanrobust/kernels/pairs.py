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
        size = products.shape[2] - footprint + 1, products.shape[3] - footprint + 1
        return torch.stack(list(_patches(products, footprint, size)), 1).flatten(1, 3)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(grad, ctx.footprint), None


class _Spread(torch.autograd.Function):
    """The gradient of the products for that of all patches."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, footprint: int) -> Tensor:
        ctx.footprint = footprint
        images, _, height, width = grad.shape
        products = grad.new_zeros(images, (2 * footprint - 1) ** 2, height + footprint - 1,
                                  width + footprint - 1)
        places = torch.unflatten(grad, 1, (-1, footprint, footprint)).unbind(1)
        for product, patch in zip(_patches(products, footprint, (height, width)), places):
            product.add_(patch)
        return products

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered(grad, ctx.footprint), None


def _patches(products: Tensor, footprint: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield the part (B, K, K, H, W) of each place that the query has in a patch, row by row."""
    by_offset = torch.unflatten(products, 1, (2 * footprint - 1,) * 2)
    height, width = size
    for row in range(footprint):
        for column in range(footprint):
            down, across = footprint - 1 - row, footprint - 1 - column
            yield by_offset[:, down:down + footprint, across:across + footprint,
                            row:row + height, column:column + width]
