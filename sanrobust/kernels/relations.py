"""The relation functions delta of self-attention, each an entry of a table; no torch.

A relation compares the query, phi(x), with the key, psi(x), within a footprint. To add one, write
how it is computed and add its `Relation` to `ENTRIES`; layers, model names, errors and the count
of parameters and operations follow.

Letters: B images, R channels of query and of key, K2 neighbours of a position, L positions, N
channels of the relation. Source: Zhao, Jia and Koltun, CVPR 2020, Sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from sanrobust.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Family = Literal["pairwise", "patchwise"]
Delta = Literal["subtraction", "hadamard", "dot", "concatenation"]


@dataclass(frozen=True)
class Sizes:
    """What is compared.

    Attributes:
        channels: R.
        neighbours: K2.
        shared: query and key are one map, as phi is psi.
    """

    channels: int
    neighbours: int
    shared: bool = False


class Elementary(Protocol):
    """The elementary operators of a layer, at its footprint; maps are (B, C, H, W)."""

    @property
    def sizes(self) -> Sizes:
        """What is compared."""
        ...

    def centres(self, maps: Tensor) -> Tensor:
        """Return the value at each position, (B, C, 1, L)."""
        ...

    def neighbours(self, maps: Tensor) -> Tensor:
        """Return the values at each position's neighbours, (B, C, K2, L)."""
        ...

    def subtraction(self, query: Tensor, key: Tensor) -> Tensor:
        """Return query_i - key_j, (B, R, K2, L)."""
        ...

    def dot_product(self, query: Tensor, key: Tensor, *, groups: int) -> Tensor:
        """Return query_i * key_j summed over the channels of each group, (B, groups, K2, L)."""
        ...

    def pair_products(self, query: Tensor, key: Tensor) -> Tensor:
        """Return query_j . key_k of all neighbours j and k, j by j, (B, K2 * K2, 1, L)."""
        ...


@dataclass(frozen=True)
class Relation:
    """One relation function.

    Attributes:
        family: ``pairwise``: N channels for each pair of positions, (B, N, K2, L);
            ``patchwise``: N channels for each patch, (B, N, 1, L).
        name: what configurations and model names call it.
        width: N.
        compute: returns the relation of query and key (B, R, H, W) in parts, which follow each
            other along the channels.
        counted: multiply-adds of one position in the convention of the paper's own counter.
        fused: given the key, returns what the family's fused operator must be given in its place
            to compute this relation; None where no fused operator does.
        delta: what that operator does with query and key; patchwise it concatenates always.
    """

    family: Family
    name: str
    width: Callable[[Sizes], int]
    compute: Callable[[Elementary, Tensor, Tensor], tuple[Tensor, ...]]
    counted: Callable[[Sizes], int]
    fused: Callable[[Tensor], Tensor] | None = None
    delta: Delta = "subtraction"


def _subtraction(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """query_i - key_j."""
    return (local.subtraction(query, key),)


def _summation(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """query_i + key_j."""
    return (local.subtraction(query, -key),)


def _pairs(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """[query_i, key_j]."""
    around = local.neighbours(key)
    return local.centres(query).expand_as(around), around


def _hadamard(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """query_i * key_j, channel by channel."""
    return (local.dot_product(query, key, groups=local.sizes.channels),)


def _dot(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """query_i . key_j, one number."""
    return (local.dot_product(query, key, groups=1),)


def _patch(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """[query_i, all key_j], the key's neighbours channel by channel.

    Where query and key are one map the patch holds x_i already and x_i is not repeated: so count
    the published parameters (Table 6).
    """
    patch = local.neighbours(key).flatten(1, 2).unsqueeze(2)
    return (patch,) if local.sizes.shared else (local.centres(query), patch)


def _star(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """[query_i . key_j for all j]."""
    return (local.dot_product(query, key, groups=1).transpose(1, 2),)


def _clique(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """[query_j . key_k for all j and k], j by j."""
    return (local.pair_products(query, key),)


def _each_channel(sizes: Sizes) -> int:
    return sizes.channels


def _each_pair(sizes: Sizes) -> int:
    """One multiply-add for each channel of each neighbour."""
    return sizes.channels * sizes.neighbours


def _nothing(sizes: Sizes) -> int:
    return 0


def _patch_width(sizes: Sizes) -> int:
    return sizes.channels * (sizes.neighbours + (0 if sizes.shared else 1))


def _one(sizes: Sizes) -> int:
    return 1


def _both_channels(sizes: Sizes) -> int:
    return 2 * sizes.channels


def _each_neighbour(sizes: Sizes) -> int:
    return sizes.neighbours


def _each_two_neighbours(sizes: Sizes) -> int:
    return sizes.neighbours ** 2


def _as_it_is(key: Tensor) -> Tensor:
    return key


def _negated(key: Tensor) -> Tensor:
    return -key


# Functions with names, so that layers can be pickled.
ENTRIES = (
    Relation("pairwise", "subtraction", _each_channel, _subtraction, counted=_each_pair,
             fused=_as_it_is),
    Relation("pairwise", "summation", _each_channel, _summation, counted=_each_pair,
             fused=_negated),
    Relation("pairwise", "concatenation", _both_channels, _pairs, counted=_nothing,
             fused=_as_it_is, delta="concatenation"),
    Relation("pairwise", "hadamard", _each_channel, _hadamard, counted=_each_pair,
             fused=_as_it_is, delta="hadamard"),
    Relation("pairwise", "dot", _one, _dot, counted=_each_pair, fused=_as_it_is, delta="dot"),
    Relation("patchwise", "concatenation", _patch_width, _patch, counted=_nothing,
             fused=_as_it_is, delta="concatenation"),
    Relation("patchwise", "star", _each_neighbour, _star, counted=_each_pair),
    # The paper's figures leave the clique's products out: 1.9G with them would be 2.3G (Table 4).
    Relation("patchwise", "clique", _each_two_neighbours, _clique,
             counted=_nothing),
)
RELATIONS: dict[Family, Registry[Relation]] = {
    family: Registry(f"{family} relation", listing=f"sanrobust.kernels.relations.names({family!r})")
    for family in get_args(Family)}


def register(relation: Relation) -> None:
    """Add ``relation``; raises ValueError when its family has one of that name."""
    RELATIONS[relation.family].add(relation.name, relation)


def find(family: Family, name: str) -> Relation:
    """Return a family's relation; raises UnknownNameError with the closest match."""
    return RELATIONS[family].get(name)


def names(family: Family) -> tuple[str, ...]:
    """Return the names of a family's relations."""
    return RELATIONS[family].names()


for _entry in ENTRIES:
    register(_entry)
