"""Calls of fused attention without a kink nearby, and an independent formula for them.

Maps and matrices that decide signs are multiples of powers of two, few enough that every sum in
front of a ReLU is exact in float32 (and the maps in bfloat16): all formulations agree on signs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices, tensors
from sanrobust.kernels.plain import Window, neighbours
from sanrobust.kernels.relations import Delta

Maps = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A call of pairwise or patchwise attention in float64, and the gradient of its result."""

    kind: str
    maps: Maps
    grad: Tensor
    matrices: PairwiseMatrices | PatchwiseMatrices
    window: Window

    def matrices_of(self, dtype: torch.dtype) -> PairwiseMatrices | PatchwiseMatrices:
        return replace(self.matrices, **{name: each.to(dtype).contiguous()
                                         for name, each in tensors(self.matrices).items()})

    def formula(self, dtype: torch.dtype) -> list[Tensor]:
        """The result and the gradients of query, key and value, computed in ``dtype``."""
        maps = [each.to(dtype).requires_grad_() for each in self.maps]
        matrices = self.matrices_of(dtype)
        formula: Callable[..., Tensor] = pairwise if self.kind == "pairwise" else patchwise
        out = formula(*maps, matrices, self.window)
        return [out.detach(), *torch.autograd.grad(out, maps, self.grad.to(dtype))]


def make(kind: str, relation: int, hidden: int, groups: int, channels: int, footprint: int,
         padding_mode: str, height: int, width: int, *, images: int = 2, seed: int = 0,
         delta: Delta = "subtraction", by_place: bool = False) -> Case:
    """Make a case; random numbers depend on the seed alone.

    ``delta`` and ``by_place`` are those of pairwise matrices.
    """
    random = torch.Generator().manual_seed(seed)

    def steps(*shape: int, reach: int, size: float) -> Tensor:
        """Multiples of ``size`` up to ``reach`` times it, either sign."""
        whole = torch.randint(-reach, reach + 1, shape, generator=random)
        return whole.double() * size

    def normal(*shape: int) -> Tensor:
        # Rounded to bfloat16, the coarsest storage: inputs are the same in every dtype.
        return torch.randn(*shape, generator=random).bfloat16().double()

    window = Window(footprint, padding_mode=padding_mode)  # type: ignore[arg-type]
    count = footprint ** 2
    size = (images, relation, height, width)
    maps = (steps(*size, reach=16, size=1 / 8), steps(*size, reach=16, size=1 / 8),
            normal(images, channels, height, width))
    matrices: PairwiseMatrices | PatchwiseMatrices
    if kind == "pairwise":
        per_pixel = padding_mode == "zeros"
        compared = 1 if delta == "dot" else relation
        w1 = steps(hidden, compared, reach=4, size=1 / 16)
        w2 = normal(groups, hidden) / hidden ** 0.5
        rows = (height * width + 1,) if by_place else (height * width if per_pixel else 1,
                                                       count + 1)
        table = steps(*rows, hidden, reach=64, size=1 / 128)
        multiplied = delta in ("hadamard", "dot")
        offset = steps(compared, reach=64, size=1 / 64) if multiplied else None
        first = None if delta == "concatenation" else w1
        matrices = PairwiseMatrices(first, None if first is None else w1.t(), w2, w2.t(), table,
                                    delta, offset)
    else:
        w1 = steps(hidden, (1 + count) * relation, reach=4, size=1 / 32)
        w2 = normal(count * groups, hidden) / hidden ** 0.5
        matrices = PatchwiseMatrices(
            steps(count, relation, reach=2, size=1 / 2) + 1.5,
            steps(count, relation, reach=8, size=1 / 16), w1, w1.t(),
            steps(hidden, reach=64, size=1 / 128), w2, w2.t(), normal(count * groups))
    return Case(kind, maps, normal(images, channels, height, width), matrices, window)


def pairwise(query: Tensor, key: Tensor, value: Tensor, matrices: PairwiseMatrices,
             window: Window) -> Tensor:
    """Every neighbour of every pixel, slot by slot of the unclipped window."""
    images, _, height, width = query.shape
    reach, side = window.footprint // 2, window.footprint
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = rows * width + columns if len(matrices.table) > 1 else torch.zeros_like(rows)
    logits = []
    around = neighbours(key, window).unflatten(3, (height, width))
    for slot in range(side ** 2):
        y, x = rows + slot // side - reach, columns + slot % side - reach
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        if window.padding_mode == "reflect":
            y, x = mirrored(y, height), mirrored(x, width)
            inside = torch.ones_like(inside)
        if matrices.by_place:
            initial = matrices.table[torch.where(inside, y * width + x, height * width)]
        else:
            initial = matrices.table[pixels, torch.where(
                inside, (y - rows + reach) * side + x - columns + reach, side ** 2)]
        hidden = torch.relu(initial + first_layer(query, around[:, :, slot], matrices))
        logits.append(hidden @ matrices.w2.t())
    weight = torch.softmax(torch.stack(logits), 0).permute(1, 4, 0, 2, 3).flatten(3)
    return summed(value, weight, window)


def first_layer(query: Tensor, key: Tensor, matrices: PairwiseMatrices) -> Tensor:
    """What pairs of pixels add to the hidden layer, (B, H, W, D)."""
    if matrices.w1 is None:
        return (query - key).permute(0, 2, 3, 1)
    if matrices.offset is None:
        relation = query - key
    else:
        products = query * key
        relation = (products if matrices.delta == "hadamard" else products.sum(1, keepdim=True)) \
            + matrices.offset[:, None, None]
    return torch.einsum("hr,bryx->byxh", matrices.w1, torch.relu(relation))


def patchwise(query: Tensor, key: Tensor, value: Tensor, matrices: PatchwiseMatrices,
              window: Window) -> Tensor:
    """The whole patch of every pixel at once."""
    around = neighbours(key, window).permute(0, 3, 2, 1)
    patch = torch.relu(around * matrices.key_scale + matrices.key_shift).flatten(2)
    patch = torch.cat((torch.relu(query.flatten(2).transpose(1, 2)), patch), 2)
    hidden = torch.relu(patch @ matrices.w1.t() + matrices.b1)
    weight = hidden @ matrices.w2.t() + matrices.b2
    return summed(value, weight.unflatten(2, (window.neighbours, -1)).permute(0, 3, 2, 1), window)


def summed(value: Tensor, weight: Tensor, window: Window) -> Tensor:
    around = neighbours(value, window)
    grouped = around.unflatten(1, (-1, weight.shape[1]))
    return (grouped * weight.unsqueeze(1)).sum(3).view_as(value)


def mirrored(index: Tensor, length: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= length, 2 * (length - 1) - index, index)
