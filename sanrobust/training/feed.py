"""The training images of an epoch, in its order and moved as it moves them.

What is drawn belongs to (seed, epoch) and to an image's place in the order, or for random crops to
(seed, epoch, image): not to workers, devices, processes, or to where an epoch was taken up again.
Letters: B images, S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import Batch, batches
from sanrobust.data.lost import note_lost
from sanrobust.device import free_memory
from sanrobust.training.adversarial import draw_noise
from sanrobust.training.crops import RandomCrops
from sanrobust.training.mixing import draw_share
from sanrobust.training.recipes import Recipe

HELD_BYTES = 2 << 30
"""Sets whose pixels take no more than this, and no more than a quarter of what is free, are decoded
once and kept on the device."""
_CHUNK = 256
_Found = tuple[Tensor, Tensor, Tensor | slice]  # pixels, labels, and their places in the plan


@dataclass(frozen=True)
class Share:
    """Which part of every pass this process computes: ``rank`` of ``count``."""

    rank: int = 0
    count: int = 1


@dataclass(frozen=True)
class Moves:
    """How the images of a batch are moved.

    Attributes:
        limit: pixels by which the border is continued.
        corners: (B, 2), the top left corner of each image in that frame; None for no shift.
        flips: (B,) bool, which are mirrored left to right; None for no flips.
    """

    limit: int = 0
    corners: Tensor | None = None
    flips: Tensor | None = None

    def part(self, rows: Tensor | slice) -> Moves:
        """Return the moves of some of the images."""
        return Moves(self.limit, None if self.corners is None else self.corners[rows],
                     None if self.flips is None else self.flips[rows])

    def applied(self, pixels: Tensor) -> Tensor:
        """Return the moved pixels (B, 3, S, S)."""
        if self.corners is not None:
            pixels = _shifted(pixels, self.limit, self.corners.to(pixels.device))
        if self.flips is not None:
            mirrored = self.flips.to(pixels.device).view(-1, 1, 1, 1)
            pixels = torch.where(mirrored, pixels.flip(3), pixels)
        return pixels


def draw_moves(count: int, recipe: Recipe, generator: torch.Generator) -> Moves:
    """Draw how ``count`` images are moved; random crops are drawn image by image instead."""
    if recipe.crop == "random":
        return Moves()
    corners = flips = None
    if recipe.shift:
        corners = torch.randint(0, 2 * recipe.shift + 1, (count, 2), generator=generator)
    if recipe.flip:
        flips = torch.rand(count, generator=generator) < 0.5
    return Moves(recipe.shift, corners, flips)


def _shifted(pixels: Tensor, limit: int, corners: Tensor) -> Tensor:
    count, channels, side = pixels.shape[:3]
    padded = F.pad(pixels, (limit,) * 4, mode="replicate")
    along = torch.arange(side, device=pixels.device)
    rows, columns = (corners[:, axis, None] + along for axis in (0, 1))
    image = torch.arange(count, device=pixels.device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=pixels.device).view(1, -1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


@dataclass(frozen=True)
class Pass:
    """The images of one forward pass that are this process's.

    Attributes:
        pixels: (B, 3, S, S) in [0, 1].
        labels: (B,) int64.
        ends_step: whether the weights are updated after it.
        noise: (B, 3, S, S), where an attack on them starts; None where the recipe has none.
        share: what an image keeps of itself where images are mixed in pairs; 1 where they are not.
    """

    pixels: Tensor
    labels: Tensor
    ends_step: bool
    noise: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True)
class _Planned:
    """A pass before its images are there: their indices, which rows of the batch, and the step."""

    indices: Tensor
    moves: Moves
    rows: slice
    step: int
    ends_step: bool

    def passed(self, pixels: Tensor, labels: Tensor, good: Tensor | slice, noise: Tensor | None,
               share: float) -> Pass:
        """Return the pass of the images that are ``good``."""
        if noise is not None:
            noise = noise[self.rows][good].to(pixels.device)
        return Pass(self.moves.part(good).applied(pixels), labels, self.ends_step, noise, share)


@dataclass(eq=False)
class Feed:
    """The passes of any epoch, from any step on.

    Attributes:
        images: the training set.
        recipe: how they are cut, moved and put into batches.
        device: where they are wanted.
        workers: processes that decode.
        share: which images of each pass are this process's.
        lost: ids of images that could not be decoded, with the reason.
    """

    images: ImageSet
    recipe: Recipe
    device: torch.device
    workers: int = 0
    share: Share = Share()
    lost: dict[str, str] = field(default_factory=dict)
    _held: Held | None = None

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.images.refs) // self.recipe.batch_size

    def epoch(self, number: int, *, start: int = 0) -> Iterator[Pass]:
        """Yield the passes of epoch ``number``, from 0, from its step ``start`` on.

        Images that cannot be decoded enter ``lost``. Raises DataError for some that could not be
        read, of which another try may give more.
        """
        plan = [each for each in self._plan(number) if each.step >= start]
        if self.recipe.crop == "whole" and self._holds():
            assert self._held is not None
            decoded: Iterator[_Found] = map(self._held.taken, (each.indices for each in plan))
        else:
            decoded = self._decoded(number, plan)
        step, noise, share = -1, None, 1.0
        for each, (pixels, labels, good) in zip(plan, decoded, strict=True):
            if each.step != step:
                step, side = each.step, self.recipe.img_size
                if self.recipe.eps:
                    noise = draw_noise((self.recipe.batch_size, 3, side, side), self.recipe,
                                       number, step)
                if self.recipe.mixup:
                    share = draw_share(self.recipe, number, step)
            yield each.passed(pixels, labels, good, noise, share)

    def in_order(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images as they are for testing, pixels (B, 3, S, S) and labels (B,)."""
        count = len(self.images.refs)
        plan = [torch.arange(begin, min(begin + size, count)) for begin in range(0, count, size)]
        if self._holds():
            assert self._held is not None
            for indices in plan:
                yield self._held.taken(indices)[:2]
            return
        for batch in batches(self.images, self.recipe.preprocessing, workers=self.workers,
                             plan=[indices.tolist() for indices in plan]):
            note_lost(batch, self.lost)
            yield batch.pixels.to(self.device), batch.labels.to(self.device)

    def _plan(self, number: int) -> Iterator[_Planned]:
        recipe, size = self.recipe, self.recipe.batch_size
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + number)
        order = torch.randperm(len(self.images.refs), generator=generator)
        width = recipe.micro_batch or size
        own = width // self.share.count
        for step in range(self.steps):
            batch = order[step * size:(step + 1) * size]
            moves = draw_moves(size, recipe, generator)
            for begin in range(0, size, width):
                first = begin + self.share.rank * own
                rows = slice(first, first + own)
                yield _Planned(batch[rows], moves.part(rows), rows, step, begin + width == size)

    def _holds(self) -> bool:
        """Decode the set and keep it, where there is room; say whether it is kept."""
        side = self.recipe.img_size
        size = len(self.images.refs) * 3 * side * side * 4
        if self._held is None and size <= min(HELD_BYTES, free_memory(self.device) // 4):
            self._held = hold(self.images, self.recipe, self.device, self.workers, self.lost)
        return self._held is not None

    def _decoded(self, number: int, plan: list[_Planned]) -> Iterator[_Found]:
        """Yield pixels, labels, and the places in the plan of those that could be decoded."""
        images = (RandomCrops(self.images, self.recipe, number)
                  if self.recipe.crop == "random" else self.images)
        decoded = batches(images, self.recipe.preprocessing, workers=self.workers,
                          plan=[each.indices.tolist() for each in plan])
        for each, batch in zip(plan, decoded, strict=True):
            note_lost(batch, self.lost)
            yield (batch.pixels.to(self.device), batch.labels.to(self.device),
                   self._places(each.indices, batch))

    def _places(self, indices: Tensor, batch: Batch) -> Tensor | slice:
        if not batch.failures:
            return slice(None)
        there = set(batch.ids)
        return torch.tensor([place for place, index in enumerate(indices.tolist())
                             if self.images.refs[index].id in there], dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Held:
    """A decoded set, in its order: pixels (N, 3, S, S), labels (N,), and which images it has (N,).
    """

    pixels: Tensor
    labels: Tensor
    good: Tensor

    def taken(self, indices: Tensor) -> _Found:
        """Return pixels and labels of the images at ``indices`` that it has, and which these are.
        """
        good = self.good[indices]
        there = indices[good].to(self.pixels.device)
        return self.pixels.index_select(0, there), self.labels.index_select(0, there), good


def hold(images: ImageSet, recipe: Recipe, device: torch.device, workers: int,
         lost: dict[str, str]) -> Held:
    """Decode a whole set as it is for testing; images that cannot be decoded enter ``lost``."""
    count, side = len(images.refs), recipe.img_size
    pixels = torch.zeros(count, 3, side, side, device=device)
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    good = torch.ones(count, dtype=torch.bool)
    plan = [range(begin, min(begin + _CHUNK, count)) for begin in range(0, count, _CHUNK)]
    for chunk, batch in zip(plan, batches(images, recipe.preprocessing, plan=plan,
                                          workers=workers), strict=True):
        note_lost(batch, lost)
        bad = {failure.id for failure in batch.failures}
        rows = torch.tensor([index for index in chunk if images.refs[index].id not in bad],
                            dtype=torch.int64)
        good[chunk.start:chunk.stop] = False
        good[rows] = True
        pixels[rows.to(device)] = batch.pixels.to(device)
        labels[rows.to(device)] = batch.labels.to(device)
    return Held(pixels, labels, good)
