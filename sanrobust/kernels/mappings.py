"""The mapping gamma from relations to attention weights, and the layer that computes relations.

Letters: B images, R channels of query and of key, K2 neighbours, L positions, N channels of a
relation, M weight groups, H and W map pixels. Source: Zhao, Jia and Koltun, CVPR 2020, Sections
3.1, 3.2 and 5.3; widths of hidden layers are those that give the parameters of Tables 4 to 6.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from sanrobust.design import Mapping
from sanrobust.kernels import functional, reference
from sanrobust.kernels.hooks import is_altered
from sanrobust.kernels.plain import Window
from sanrobust.kernels.pointwise import PointwiseConv2d
from sanrobust.kernels.relations import Relation, Sizes


def pairwise_mapping(mapping: Mapping, relation: int, hidden: int, groups: int) -> nn.Sequential:
    """Return gamma of pairwise attention, (B, N, K2, L) to (B, M, K2, L).

    Args:
        mapping: ``L`` N -> M, ``LRL`` N -> hidden -> M, ``LRLRL`` N -> hidden -> hidden -> M.
        relation: N, position channels included.
        hidden: width of the hidden layers.
        groups: M.
    """
    return _chain(relation, *[hidden] * mapping.count("R"), groups)


def patchwise_mapping(mapping: Mapping, relation: int, hidden: int, groups: int,
                      neighbours: int) -> nn.Sequential:
    """Return gamma of patchwise attention, (B, N, 1, L) to (B, M * K2, 1, L).

    Args:
        mapping: ``L`` N -> M * K2, ``LRL`` N -> M -> M * K2, ``LRLRL`` N -> hidden -> M -> M * K2.
        relation: N.
        hidden: width of the first of two hidden layers.
        groups: M.
        neighbours: K2.
    """
    hidden_layers = (hidden, groups)[2 - mapping.count("R"):]
    return _chain(relation, *hidden_layers, groups * neighbours)


def widest(mapping: nn.Sequential) -> int:
    """Return the channels of the widest tensor between the layers of a mapping."""
    return max(max(layer.in_channels, layer.out_channels) for layer in mapping
               if isinstance(layer, nn.Conv2d))


def _chain(*widths: int) -> nn.Sequential:
    """Linear layers from each width to the next, each behind normalisation and ReLU as released.

    Only the last has a bias: the others' is the next normalisation's.
    """
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for depth, (inputs, outputs) in enumerate(pairwise(widths)):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True),
                   PointwiseConv2d(inputs, outputs, bias=depth == last)]
    return nn.Sequential(*layers)


class RelationLayer(nn.Module):
    """A relation function at a footprint; a module without values, for hooks and counters.

    Attributes:
        relation: the entry of `sanrobust.kernels.relations`.
        sizes: what it compares.
        window: its footprint.
    """

    def __init__(self, relation: Relation, sizes: Sizes, window: Window) -> None:
        super().__init__()
        self.relation, self.sizes, self.window = relation, sizes, window

    @property
    def width(self) -> int:
        """N, the channels of the relation."""
        return self.relation.width(self.sizes)

    @property
    def fused(self) -> Callable[[Tensor], Tensor] | None:
        """That of the relation; None also where somebody changes, or waits for, what is returned.
        """
        plain = type(self) is RelationLayer and not is_altered(self)
        return self.relation.fused if plain else None

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Return the relation of query and key (B, R, H, W) in parts along its N channels."""
        return self.relation.compute(self, query, key)

    def centres(self, maps: Tensor) -> Tensor:
        """Return the value at each position, (B, C, 1, L)."""
        return maps.flatten(2).unsqueeze(2)

    def neighbours(self, maps: Tensor) -> Tensor:
        """Return the values at each position's neighbours, (B, C, K2, L)."""
        return functional.neighbours(maps, footprint=self.window.footprint,
                                     padding_mode=self.window.padding_mode)

    def subtraction(self, query: Tensor, key: Tensor) -> Tensor:
        """Return query_i - key_j, (B, R, K2, L)."""
        return functional.subtraction(query, key, footprint=self.window.footprint,
                                      padding_mode=self.window.padding_mode)

    def dot_product(self, query: Tensor, key: Tensor, *, groups: int) -> Tensor:
        """Return query_i * key_j summed over the channels of each group, (B, groups, K2, L)."""
        return functional.dot_product(query, key, groups=groups, footprint=self.window.footprint,
                                      padding_mode=self.window.padding_mode)

    def pair_products(self, query: Tensor, key: Tensor) -> Tensor:
        """Return query_j . key_k of all neighbours j and k, j by j, (B, K2 * K2, 1, L)."""
        # Evaluation counts them as the paper does; there whole networks have kernels of their own.
        return functional.pair_products(query, key, footprint=self.window.footprint,
                                        padding_mode=self.window.padding_mode,
                                        backend=None if self.training else reference.NAME)
