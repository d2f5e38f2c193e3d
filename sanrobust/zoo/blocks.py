"""Blocks of a network in a row, and computing them again for their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
            input = checkpoint(block, input, use_reentrant=False,
                               context_fn=partial(_contexts, block))
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
    return nullcontext(), _unmoved(block)


@contextmanager
def _unmoved(block: nn.Module) -> Iterator[None]:
    """Leave running statistics as they are: what moves are copies, as gradients may keep them."""
    owned = [(part, dict(part._buffers)) for part in block.modules()]
    try:
        for part, buffers in owned:
            part._buffers.update({name: each if each is None else each.clone()
                                  for name, each in buffers.items()})
        yield
    finally:
        for part, buffers in owned:
            part._buffers.update(buffers)
