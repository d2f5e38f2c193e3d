"""Every design of vector attention as loops over pixels, neighbours and channels, in float64.

Nothing of ``sanrobust.kernels`` computes here; parameters are read from its modules. A new
relation function needs one row in `PAIRS` or in `PATCHES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from oracles import loop_aggregation, loop_grid, loop_linear, loop_mapping, offsets, reflect
from torch import Tensor

from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention

# The values (B,) of one pixel's channels.
Features = Sequence[Tensor]


def dot(one: Features, other: Features) -> Tensor:
    total = torch.zeros_like(one[0])
    for a, b in zip(one, other, strict=True):
        total = total + a * b
    return total


# delta(phi(x_i), psi(x_j)), channel by channel.
PAIRS: dict[str, Callable[[Features, Features], list[Tensor]]] = {
    "subtraction": lambda query, key: [q - k for q, k in zip(query, key)],
    "summation": lambda query, key: [q + k for q, k in zip(query, key)],
    "concatenation": lambda query, key: [*query, *key],
    "hadamard": lambda query, key: [q * k for q, k in zip(query, key)],
    "dot": lambda query, key: [dot(query, key)],
}
# delta of the patch: phi and psi of all its pixels, of which number len // 2 is i itself.
PATCHES: dict[str, Callable[[list[Features], list[Features]], list[Tensor]]] = {
    "concatenation": lambda queries, keys: [
        *([] if keys is queries else queries[len(queries) // 2]),
        *(key[c] for c in range(len(keys[0])) for key in keys)],
    "star": lambda queries, keys: [dot(queries[len(queries) // 2], key) for key in keys],
    "clique": lambda queries, keys: [dot(query, key) for query in queries for key in keys],
}


def loop_attention(layer: PairwiseAttention | PatchwiseAttention, features: Tensor) -> Tensor:
    """The output (B, O, H, W) of a layer of either family."""
    value = loop_linear(layer.conv3 if layer.design.transforms > 1 else layer.conv1, features)
    return loop_aggregation(value, loop_weights(layer, features),
                            footprint=layer.window.footprint,
                            padding_mode=layer.window.padding_mode)


def loop_weights(layer: PairwiseAttention | PatchwiseAttention, features: Tensor) -> Tensor:
    """The attention weights (B, M, K2, H * W) of a layer of either family."""
    count = layer.window.footprint ** 2
    pixels = list(product(range(features.shape[2]), range(features.shape[3])))
    query = loop_linear(layer.conv1, features)
    key = loop_linear(layer.conv2, features) if layer.design.transforms == 3 else query
    if isinstance(layer, PatchwiseAttention):
        delta = torch.stack([_patch(layer, query, key, *place) for place in pixels], -1)
        mapped = loop_mapping(layer.conv_w, delta.transpose(0, 1).unsqueeze(2))
        groups = range(mapped.shape[1] // count)
        return torch.stack([torch.stack([mapped[:, g * count + n, 0] for n in range(count)], 1)
                            for g in groups], 1)
    delta = torch.stack([_pairs(layer, query, key, *place) for place in pixels], -1)
    scores = loop_mapping(layer.conv_w, delta.permute(2, 1, 0, 3)).exp()
    total = torch.zeros_like(scores[:, :, 0])
    for n in range(count):
        total = total + scores[:, :, n]
    return scores / total.unsqueeze(2)


def _patch(layer: PatchwiseAttention, query: Tensor, key: Tensor, y: int, x: int) -> Tensor:
    """delta of one patch, (N, B)."""
    queries = _around(layer, query, y, x)
    keys = queries if key is query else _around(layer, key, y, x)
    return torch.stack(PATCHES[layer.design.relation](queries, keys))


def _pairs(layer: PairwiseAttention, query: Tensor, key: Tensor, y: int, x: int) -> Tensor:
    """delta of one pixel with each neighbour and what the position adds, (K2, N, B)."""
    centre = query[:, :, y, x].unbind(1)
    found = [PAIRS[layer.design.relation](centre, each) for each in _around(layer, key, y, x)]
    if layer.design.position != "none":
        encoded = loop_linear(layer.conv_p, loop_grid(*query.shape[-2:]))
        encoded = encoded.expand(len(query), -1, -1, -1)
        for pair, place in zip(found, _around(layer, encoded, y, x)):
            relative = layer.design.position == "relative"
            pair += [encoded[:, c, y, x] - place[c] if relative else place[c] for c in range(2)]
    return torch.stack([torch.stack(pair) for pair in found])


def _around(layer: PairwiseAttention | PatchwiseAttention, maps: Tensor, y: int,
            x: int) -> list[Features]:
    """The channels of each neighbour of a pixel, row by row; past the border reflected or 0."""
    height, width = maps.shape[-2:]
    zeros = layer.window.padding_mode == "zeros"

    def at(row: int, column: int) -> Tensor:
        if zeros and not (0 <= row < height and 0 <= column < width):
            return torch.zeros_like(maps[:, :, 0, 0])
        return maps[:, :, reflect(row, height), reflect(column, width)]

    return [at(y + dy, x + dx).unbind(1) for dy, dx in offsets(layer.window.footprint)]
