"""Kernel sets: what a device must offer so that the operators run on it.

Letters are those of ``plain``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from sanrobust.errors import BackendError
from sanrobust.kernels.folding import PairwiseMatrices, PatchwiseMatrices
from sanrobust.kernels.plain import PlainKernels, Window
from sanrobust.registry import Registry


class Kernels(Protocol):
    """The elementary operators of a kernel set, without autograd.

    Inputs may have any strides and no images at all. Outputs are new contiguous tensors.
    """

    def aggregation(self, value: Tensor, weight: Tensor, window: Window) -> Tensor:
        """Sum (B, O, H, W) under weights (B, M, K2, L) to (B, O, H', W')."""
        ...

    def aggregation_backward(self, grad: Tensor, value: Tensor, weight: Tensor, window: Window,
                             needs_value: bool, needs_weight: bool) -> tuple[Tensor, Tensor]:
        """Return the gradients of value and weight; one not needed has no elements."""
        ...

    def subtraction(self, query: Tensor, key: Tensor, window: Window) -> Tensor:
        """Subtract (B, R, H, W) from (B, R, H, W) to (B, R, K2, L)."""
        ...

    def subtraction_backward(self, grad: Tensor, size: tuple[int, int],
                             window: Window) -> tuple[Tensor, Tensor]:
        """Return the gradients of query and key, maps of ``size`` (H, W)."""
        ...


@runtime_checkable
class FusedKernels(Kernels, Protocol):
    """A kernel set with attention by a folded mapping.

    Query (and in pairwise attention key) come scaled by the folding. Gradients are those of
    query, key and value in this order.
    """

    def pairwise(self, query: Tensor, key: Tensor, value: Tensor, matrices: PairwiseMatrices,
                 window: Window) -> Tensor:
        """Return the attended values (B, O, H, W)."""
        ...

    def pairwise_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                          matrices: PairwiseMatrices,
                          window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the maps."""
        ...

    def patchwise(self, query: Tensor, key: Tensor, value: Tensor, matrices: PatchwiseMatrices,
                  window: Window) -> Tensor:
        """Return the attended values (B, O, H, W)."""
        ...

    def patchwise_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                           matrices: PatchwiseMatrices,
                           window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the maps."""
        ...


@runtime_checkable
class LocalKernels(Kernels, Protocol):
    """A kernel set with scalar attention by heads; heads are groups of channels c with c % N.

    There is a key, an embedding (2, K, R / 2) of row and column offsets, or both.
    """

    def local(self, query: Tensor, key: Tensor | None, value: Tensor, embedding: Tensor | None,
              heads: int, window: Window) -> Tensor:
        """Return the attended values (B, O, H, W)."""
        ...

    def local_backward(self, grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor,
                       embedding: Tensor | None, heads: int,
                       window: Window) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of query, key, value and embedding; what is not there is empty."""
        ...


@runtime_checkable
class NormKernels(Kernels, Protocol):
    """A kernel set with the normalisation of training and the ReLU behind it as one operator."""

    def norm_relu(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float,
                  pooled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return what becomes of (B, C, ...), float64 mean and biased variance (2, C), and codes.

        Where ``pooled`` of (B, C, H, W) the maxima of squares of 2x2 are made; the codes then
        tell backward where they were, and are empty otherwise.
        """
        ...

    def norm_relu_backward(self, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor,
                           stats: Tensor, codes: Tensor, eps: float,
                           pooled: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of ``x``, weight and bias."""
        ...


@runtime_checkable
class LearningKernels(FusedKernels, Protocol):
    """A kernel set that trains the mappings of attention, and a network's first layer.

    ``backward`` methods return the gradients of their tensors in the order of these.
    """

    def learned_stem(self, pixels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return maxima over 2x2 of relu(weight pixels + bias), float32, and their places.

        Of pixels (B, 3, H, W), weight (C, 3) and bias (C,): (B, C, H // 2, W // 2).
        """
        ...

    def learned_stem_backward(self, grad: Tensor, pixels: Tensor, weight: Tensor, bias: Tensor,
                              codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of weight and bias."""
        ...

    def pairwise_learned(self, query: Tensor, key: Tensor, value: Tensor,
                         matrices: PairwiseMatrices, window: Window) -> tuple[Tensor, ...]:
        """As ``pairwise``; returns the values and three tensors for the backward pass."""
        ...

    def pairwise_learned_backward(self, grad: Tensor, query: Tensor, key: Tensor, value: Tensor,
                                  matrices: PairwiseMatrices, kept: Sequence[Tensor],
                                  window: Window) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, value, w1, w2 and the table."""
        ...

    def pairwise_moments(self, query: Tensor, key: Tensor, w1: Tensor, table: Tensor,
                         window: Window) -> Tensor:
        """Return mean and biased variance (2, D) of the first layer over all pairs, in float64.

        The layer is w1 relu(query_i - key_j) + table[displacement of j], table (K2 + 1, D).
        """
        ...

    def pairwise_moments_backward(self, slope: Tensor, query: Tensor, key: Tensor, w1: Tensor,
                                  table: Tensor, window: Window) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, w1 and the table.

        That of each pair's layer is slope[0] + slope[1] * (layer - slope[2]), ``slope`` (3, D).
        """
        ...

    def patch_hidden(self, query: Tensor, key: Tensor, key_scale: Tensor, key_shift: Tensor,
                     w1: Tensor, window: Window) -> Tensor:
        """Return the hidden layer (B, D, H, W) of patchwise attention before its normalisation.

        It is w1 [relu(query_i), relu(key_j * key_scale[j] + key_shift[j]) for every neighbour j],
        with (K2, R) scales and shifts.
        """
        ...

    def patch_hidden_backward(self, grad: Tensor, query: Tensor, key: Tensor, key_scale: Tensor,
                              key_shift: Tensor, w1: Tensor,
                              window: Window) -> tuple[Tensor, ...]:
        """Return the gradients."""
        ...

    def patch_weighted(self, hidden: Tensor, value: Tensor, w2: Tensor, b2: Tensor,
                       window: Window) -> Tensor:
        """Attend with the weights b2 + w2 hidden, neighbour by neighbour; hidden is positive."""
        ...

    def patch_weighted_backward(self, grad: Tensor, hidden: Tensor, value: Tensor, w2: Tensor,
                                b2: Tensor, window: Window) -> tuple[Tensor, ...]:
        """Return the gradients."""
        ...


def _native() -> Kernels:
    from sanrobust.kernels.native.kernels import NativeKernels
    return NativeKernels()


def _cupy() -> Kernels:
    from sanrobust.kernels.cuda.kernels import CupyKernels
    return CupyKernels()


# What makes each kernel set; it is made at the first call.
KERNELS: Registry[Callable[[], Kernels]] = Registry("kernel set", listing="sanrobust info")
KERNELS.add("cupy", _cupy)
KERNELS.add("native", _native)
KERNELS.add("reference", PlainKernels)

_made: dict[str, Kernels] = {}


def kernels(backend: str) -> Kernels:
    """Return the kernel set of ``backend``; raises UnknownNameError when there is none."""
    if backend not in _made:
        _made[backend] = KERNELS.get(backend)()
    return _made[backend]


def offers(backend: str, protocol: Any) -> bool:
    """Whether ``backend`` has a kernel set, and that has what ``protocol`` asks for."""
    return backend in KERNELS.names() and _has(type(kernels(backend)), protocol)


def fused_kernels(backend: str) -> FusedKernels:
    """Return the kernel set of ``backend``; raises BackendError when it does not attend itself."""
    found: FusedKernels = _offering(FusedKernels, backend)
    return found


def local_kernels(backend: str) -> LocalKernels:
    """As `fused_kernels`, of scalar attention."""
    found: LocalKernels = _offering(LocalKernels, backend)
    return found


def norm_kernels(backend: str) -> NormKernels:
    """As `fused_kernels`, of normalisation."""
    found: NormKernels = _offering(NormKernels, backend)
    return found


def learning_kernels(backend: str) -> LearningKernels:
    """As `fused_kernels`, of mappings that are trained."""
    found: LearningKernels = _offering(LearningKernels, backend)
    return found


def _offering(protocol: Any, backend: str) -> Any:
    found = kernels(backend)
    if not _has(type(found), protocol):
        raise BackendError("a fused operator must run on a backend that has it",
                           seen=f"backend {backend} composes it of elementary operators",
                           hint="call sanrobust.kernels.functional instead of torch.ops")
    return found


@cache
def _has(kind: type[Kernels], protocol: Any) -> bool:
    """Whether kernel sets have a protocol's methods; looking takes as long as a small kernel."""
    return issubclass(kind, protocol)
