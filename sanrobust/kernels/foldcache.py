"""Folded mappings from one call to the next.

Nobody says when a network's weights change, and version counters miss changes through
``tensor.data``. So on a CPU the numbers that a mapping was folded from are compared at each call;
elsewhere comparing would wait for the device, and the mapping is folded anew. `Unchanging` says
that there are no changes, and then it is folded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Folded = TypeVar("Folded")


class Unchanging:
    """Mappings that nobody changes as long as this lives: each is folded once."""

    def __init__(self) -> None:
        self._folded: dict[tuple[nn.Module, str], Any] = {}

    @contextmanager
    def assumed(self) -> Iterator[None]:
        """Take mappings as unchanged inside the block."""
        token = _UNCHANGING.set(self)
        try:
            yield
        finally:
            _UNCHANGING.reset(token)

    def fold(self, fold: Callable[[], Folded], mapping: nn.Module, kind: str) -> Folded:
        """Return what the first call for this mapping returned."""
        key = mapping, kind
        if key not in self._folded:
            self._folded[key] = _made(fold)
        return cast(Folded, self._folded[key])


_UNCHANGING: ContextVar[Unchanging | None] = ContextVar("unchanging", default=None)
_KEPT: WeakKeyDictionary[nn.Module, tuple[str, list[Tensor | None], Any]] = WeakKeyDictionary()


def unchanging() -> Unchanging | None:
    """Return who says that mappings do not change now; None: nobody, or a compiler is tracing."""
    return None if torch.compiler.is_compiling() else _UNCHANGING.get()


def kept(fold: Callable[[], Folded], mapping: nn.Module, tensors: Sequence[Tensor | None],
         kind: str) -> Folded:
    """Return ``fold()`` or, where nothing has changed, what it returned before.

    Args:
        fold: folds ``mapping``.
        tensors: everything that it reads, None for what is absent.
        kind: what else decides the result, spelled out.
    """
    sworn = unchanging()
    if sworn is not None:
        return sworn.fold(fold, mapping, kind)
    if torch.compiler.is_compiling() or not all(map(_comparable, tensors)):
        with torch.no_grad():
            return fold()
    last = _KEPT.get(mapping)
    if last is not None and last[0] == kind and all(map(_same, last[1], tensors)):
        return cast(Folded, last[2])
    folded = _made(fold)
    with torch.inference_mode(False), torch.no_grad():
        copies = [None if each is None else each.detach().clone() for each in tensors]
    _KEPT[mapping] = (kind, copies, folded)
    return folded


def _made(fold: Callable[[], Folded]) -> Folded:
    """Fold outside of inference mode, so that a later call may save it for a backward pass."""
    with torch.inference_mode(False), torch.no_grad():
        return fold()


def _comparable(tensor: Tensor | None) -> bool:
    """Whether it is absent or plain numbers in memory, not a tracer's stand-in."""
    return tensor is None or (type(tensor) in (Tensor, nn.Parameter)
                              and tensor.device.type == "cpu")


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)
