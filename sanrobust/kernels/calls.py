"""What a backend is asked, and what it must answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from sanrobust.kernels.plain import Window
from sanrobust.kernels.relations import Relation, Sizes

Operation = Literal["aggregation", "subtraction", "dot_product", "neighbours",
                    "pair_products", "pairwise_attention", "patchwise_attention", "patchwise_sum",
                    "local_attention", "norm_relu"]


class Comparison(Protocol):
    """A relation function at a footprint (``mappings.RelationLayer``)."""

    @property
    def relation(self) -> Relation:
        """Which one."""
        ...

    @property
    def sizes(self) -> Sizes:
        """What it compares."""
        ...

    @property
    def window(self) -> Window:
        """Its footprint."""
        ...

    @property
    def fused(self) -> Callable[[Tensor], Tensor] | None:
        """What makes of a key that of a fused operator; None where it must be called itself."""
        ...

    @property
    def width(self) -> int:
        """N, the channels that it makes."""
        ...

    def __call__(self, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        """Return the relation of query and key (B, R, H, W) in parts along its N channels."""
        ...


@dataclass(frozen=True)
class Call:
    """What a backend is asked to compute, as it decides whether it can.

    Attributes:
        operation: name of the operator, also the name of the backend's method.
        tensors: the tensor arguments in the operator's order, checked and of one dtype and device.
        window: the neighbours of a position.
        mapping: the network from relations to attention weights; None for the plain operators.
    """

    operation: Operation
    tensors: tuple[Tensor, ...]
    window: Window
    mapping: nn.Module | None = None


class Backend(Protocol):
    """A way to compute the operators; the methods are those of ``kernels.reference``."""

    @property
    def name(self) -> str:
        """What users type to ask for this backend."""
        ...

    def refusal(self, call: Call) -> str | None:
        """Return why this backend cannot compute ``call``, as a clause; None when it can."""
        ...

    def aggregation(self, value: Tensor, weight: Tensor, window: Window) -> Tensor: ...

    def subtraction(self, query: Tensor, key: Tensor, window: Window) -> Tensor: ...

    def dot_product(self, query: Tensor, key: Tensor, groups: int, window: Window) -> Tensor: ...

    def neighbours(self, maps: Tensor, window: Window) -> Tensor: ...

    def pair_products(self, query: Tensor, key: Tensor, window: Window) -> Tensor: ...

    def pairwise_attention(self, query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                           mapping: nn.Module, window: Window, *, affine: bool = False,
                           compare: Comparison | None = None,
                           absolute: bool = False) -> Tensor: ...

    def patchwise_attention(self, query: Tensor, key: Tensor, value: Tensor,
                            mapping: nn.Module, window: Window) -> Tensor: ...

    def patchwise_sum(self, relation: Tensor, value: Tensor, mapping: nn.Module,
                      window: Window) -> Tensor: ...

    def local_attention(self, query: Tensor, key: Tensor | None, value: Tensor,
                        embedding: Tensor | None, heads: int, window: Window) -> Tensor: ...
