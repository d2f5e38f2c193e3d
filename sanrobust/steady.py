"""Batches of one size, so that an image's arithmetic does not depend on how many came with it.

CPU libraries choose how to sum by the shape of a batch: filling small batches up is not enough,
for 33 images may be summed in another order than 64, and 8 in another than 16. Where a smaller pass
is seen to give the very bits of a full one, what is left of a batch goes through such passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

# With more threads a pass of few images would leave some of them without work.
MOST_THREADS = 8
# Images of a pass by their largest side in pixels: as many as cost no time against larger passes.
_SIZES = ((64, 32), (384, 8))
_PASS_COSTS = 2
"""What a pass costs besides its images, in images: measured on ResNet26 and 50 at 32 pixels."""
_PATIENCE = 8
"""How many full passes are spent on copies before smaller ones are tried out, which costs about 6.
"""


def pass_size(img_size: int, device: torch.device) -> int | None:
    """Return how many images each pass must have; None where no number would help.

    Args:
        img_size: side of the images in pixels.
        device: where the model computes.
    """
    if device.type != "cpu" or torch.get_num_threads() > MOST_THREADS:
        return None
    return next((size for side, size in _SIZES if img_size <= side), 1)


class _Kind(NamedTuple):
    """What a library may choose by, besides the number of images."""

    shape: torch.Size
    dtype: torch.dtype
    with_gradient: bool
    threads: int


class FixedSizeBatches(nn.Module):
    """A classifier in eval mode that is given the same number of images in each of its passes.

    What is left of a batch is filled up with copies of its last image, whose logits are dropped.
    Once many copies were made, smaller passes are tried out on random pixels; those that give
    the logits and gradients of a full pass bit by bit are used for what is left from then on.

    Args:
        model: maps pixels (B, 3, H, W) to logits (B, K), each image by itself.
        size: images of a pass; None: as many as there are.
    """

    def __init__(self, model: nn.Module, size: int | None) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self._copies: Counter[_Kind] = Counter()
        self._equal: dict[_Kind, tuple[int, ...]] = {}
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, K) of ``pixels`` (B, 3, H, W)."""
        count = len(pixels)
        if self.size is None or count in (0, self.size):
            return self.model(pixels)  # type: ignore[no-any-return]
        whole, rest = divmod(count, self.size)
        lengths = [self.size] * whole
        if rest:
            lengths += passes_of(rest, self._sizes(_kind(pixels), self.size, self.size - rest))
        filled = _filled(pixels, sum(lengths) - count)
        parts = torch.split(filled, lengths) if len(lengths) > 1 else (filled,)
        made: list[Tensor] = [self.model(part) for part in parts]
        logits = torch.cat(made) if len(made) > 1 else made[0]
        return logits if filled is pixels else logits[:count]

    def _sizes(self, kind: _Kind, size: int, copies: int) -> tuple[int, ...]:
        """Return the sizes of passes that are known to give the same bits, the full one first.

        Args:
            kind: of the pixels.
            size: images of a full pass.
            copies: how many of them would be copies.
        """
        if kind not in self._equal:
            if self._copies[kind] < _PATIENCE * size:
                self._copies[kind] += copies
                return (size,)
            self._equal[kind] = (size, *_equal_sizes(self.model, kind, size))
        return self._equal[kind]


def _kind(pixels: Tensor) -> _Kind:
    return _Kind(pixels.shape[1:], pixels.dtype, torch.is_grad_enabled() and pixels.requires_grad,
                 torch.get_num_threads())


def _filled(pixels: Tensor, missing: int) -> Tensor:
    if not missing:
        return pixels
    return torch.cat([pixels, pixels[-1:].detach().expand(missing, -1, -1, -1)])


@cache
def passes_of(images: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of the passes that cost least for ``images``, the larger ones first."""
    if images <= 0:
        return ()
    ways = ((size, *passes_of(images - size, sizes[place:])) for place, size in enumerate(sizes))
    return min(ways, key=lambda way: sum(way) + _PASS_COSTS * len(way))


def _equal_sizes(model: nn.Module, kind: _Kind, size: int) -> Iterator[int]:
    """Yield the smaller sizes whose passes give the bits of a full one, by halves down to 2."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(size, *kind.shape, generator=generator).to(kind.dtype)
    # A model that draws goes on as if it had not been asked.
    with torch.random.fork_rng(devices=[]):
        full = _answers(model, pixels, size, kind.with_gradient)
        half = size // 2
        while half > 1:
            answers = _answers(model, pixels, half, kind.with_gradient)
            if all(map(torch.equal, answers, full)):
                yield half
            half //= 2


def _answers(model: nn.Module, pixels: Tensor, size: int, with_gradient: bool) -> list[Tensor]:
    """Return what a model makes of pixels in passes of a size: logits and, if asked, gradients."""
    logits: list[Tensor] = []
    gradients: list[Tensor] = []
    for part in torch.split(pixels, size):
        leaf = part.clone().requires_grad_(with_gradient)
        made = model(leaf)
        logits.append(made.detach())
        if with_gradient:
            # Another weight of each class, so that none cancels another.
            weights = torch.linspace(1, 2, made.shape[1], dtype=made.dtype).expand_as(made)
            gradients += torch.autograd.grad(made, leaf, weights)
    return [torch.cat(each) for each in (logits, gradients) if each]
