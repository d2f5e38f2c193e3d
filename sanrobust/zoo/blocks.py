"""Blocks of a network in a row, and computing them again for their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sanrobust.kernels import backends


class Blocks(nn.Sequential):
    """``nn.Sequential`` that may keep of a block no more than its input until gradients need it.

    Attributes:
        recompute: whether it does so in training (Chen et al. 2016, arXiv:1604.06174): more time,
            less memory, and the same gradients and running statistics bit for bit.
    """

    recompute = False

    def forward(self, input: Tensor) -> Tensor:
        """Return what the blocks make of ``input``."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            made: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
            return made
        for block in self:
            # What is compiled moves the statistics once by itself.
            contexts: dict[str, Any] = {} if torch.compiler.is_compiling() else {
                "context_fn": partial(_contexts, block)}
            input = checkpoint(block, input, use_reentrant=False, **contexts)
        return input


class BlockNetwork(nn.Module):
    """A network of `Blocks`."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let all blocks be computed again for their gradients, or kept; named as in timm."""
        for part in self.modules():
            if isinstance(part, Blocks):
                part.recompute = enable


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None],
                                         AbstractContextManager[None]]:
    """Return where the block is computed first, and where again."""
    return nullcontext(), _Again(block)


class _Again(AbstractContextManager[None]):
    """Where a block is computed again, as often as gradients are asked for."""

    def __init__(self, block: nn.Module) -> None:
        self._block, self._backend = block, backends.requested()
        self._left: list[ExitStack] = []

    def __enter__(self) -> None:
        with ExitStack() as entered:
            entered.enter_context(backends.use_backend(self._backend))
            entered.enter_context(_unmoved(self._block))
            self._left.append(entered.pop_all())

    def __exit__(self, *reason: object) -> None:
        self._left.pop().close()


# Held while a block has copies, so that no thread takes those of another for the block's own.
_copied = RLock()


@contextmanager
def _unmoved(block: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are: what moves are copies, as gradients may keep them."""
    with _copied:
        owned = [(part, dict(part._buffers)) for part in block.modules()]
        try:
            for part, buffers in owned:
                part._buffers.update({name: each if each is None else each.clone()
                                      for name, each in buffers.items()})
            yield
        finally:
            for part, buffers in owned:
                part._buffers.update(buffers)
