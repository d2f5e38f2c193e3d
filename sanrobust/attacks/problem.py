"""What an attack sees: images with their labels, the model, and the ball that it may not leave.

Letters: B images, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanrobust.attacks import guards
from sanrobust.attacks.norms import Norm, column
from sanrobust.attacks.randomness import starts
from sanrobust.attacks.result import nonzero
from sanrobust.errors import ModelError

if TYPE_CHECKING:
    from sanrobust.attacks.losses import Loss
    from sanrobust.attacks.norms import Projection

Classifier = guards.Classifier


@dataclass(frozen=True)
class Forward:
    """A forward pass: where (B, 3, H, W) and the logits (B, K), with their graph if asked for."""

    pixels: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Point:
    """Where the model was asked, and what it said.

    Attributes:
        pixels: (B, 3, H, W).
        logits: (B, K).
        loss: (B,), to be made small.
        gradient: (B, 3, H, W) of the loss; None where it was not asked for.
        wrong: (B,) bool, not classified as the label.
    """

    pixels: Tensor
    logits: Tensor
    loss: Tensor
    gradient: Tensor | None
    wrong: Tensor

    def part(self, index: Tensor) -> Point:
        """Return the point of some images."""
        # For images several times as fast as indexing with brackets.
        return self._each(lambda mine: mine.index_select(0, index))

    def where(self, choice: Tensor, other: Point) -> Point:
        """Return the other point of each image that is chosen, (B,) bool, and this of the rest.

        Where none is chosen it is this very point.
        """
        rows = choice.nonzero().squeeze(1)
        if not len(rows):
            return self
        made = self.copy()
        made.put(rows, other, rows)
        return made

    def copy(self) -> Point:
        """Return a point in memory of its own."""
        return self._each(Tensor.clone)

    def put(self, rows: Tensor, other: Point, its: Tensor) -> None:
        """Overwrite the points of some images, (b,) int64, with those of the other, (b,) int64."""
        if not len(rows):
            return
        for mine, theirs in zip(vars(self).values(), vars(other).values()):
            if mine is not None:
                mine.index_copy_(0, rows, theirs.index_select(0, its))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Point:
        gradient = None if self.gradient is None else change(self.gradient)
        return Point(change(self.pixels), change(self.logits), change(self.loss), gradient,
                     change(self.wrong))


@dataclass(frozen=True)
class Tries:
    """Several tries of each image side by side, of which one that wins makes the later ones idle.

    Attributes:
        image: (B,) int64, of which image each is.
        turn: (B,) int64, which try of it.
    """

    image: Tensor
    turn: Tensor

    @classmethod
    def of(cls, images: int, count: int, device: torch.device) -> Tries:
        """Return ``count`` tries of each image, the first of all images before the second."""
        return cls(torch.arange(images, device=device).repeat(count),
                   torch.arange(count, device=device).repeat_interleave(images))

    def part(self, index: Tensor) -> Tries:
        """Return some of them."""
        return Tries(self.image[index], self.turn[index])


@dataclass(frozen=True)
class Problem:
    """A batch to be attacked until the label is lost.

    Attributes:
        model: pixels in [0, 1] to logits, in eval mode and sealed.
        images: (B, 3, H, W) float32 in [0, 1].
        labels: (B,) int64.
        ids: B image ids; with ``seed`` they decide all that is drawn.
        clean_logits: (B, K) of the images.
        norm: of the ball.
        radius: of the ball, in the pixel range.
        seed: of what is drawn.
        room: how many images a pass may have where several tries of an image are made at once.
        pass_size: images of which passes are made up, see `sanrobust.steady.FixedSizeBatches`; more
            take longer in proportion. None where a pass takes what it is given.
        tries: where the images are tries of fewer.
    """

    model: Classifier
    images: Tensor
    labels: Tensor
    ids: Sequence[str]
    clean_logits: Tensor
    norm: Norm
    radius: float
    seed: int
    room: int = 1
    pass_size: int | None = None
    tries: Tries | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return self.clean_logits.shape[1]

    def part(self, index: Tensor) -> Problem:
        """Return the problem of some images, (b,) int64."""
        return replace(self, images=self.images.index_select(0, index), labels=self.labels[index],
                       ids=[self.ids[place] for place in index.tolist()],
                       clean_logits=self.clean_logits[index],
                       tries=None if self.tries is None else self.tries.part(index))

    def tried(self, count: int) -> Problem:
        """Return the problem with ``count`` tries of each image, see `Tries.of`."""
        if count == 1:
            return self
        tries = Tries.of(len(self.ids), count, self.images.device)
        return replace(self.part(tries.image), tries=tries)

    @cached_property
    def project(self) -> Projection:
        """What moves pixels, in place, to the nearest legal images."""
        return self.norm.projection(self.images, self.radius)

    def start(self, purpose: str, restart: int, share: float = 1.0) -> Tensor:
        """Return a random point of each image, ``share`` of the radius away before it is clipped.

        Args:
            purpose: what it is drawn for.
            restart: which of several.
            share: part of the radius.
        """
        noise = starts(self.images, self.ids, self.seed, restart, purpose)
        unit = noise / column(self.norm.size(noise), noise)
        return (self.images + unit * (self.radius * share)).clamp_(0, 1)

    def look(self, pixels: Tensor, loss: Loss, targets: Tensor | None = None, *,
             with_gradient: bool = True, looks: int = 1) -> Point:
        """Ask the model once, forward and if asked for backward.

        Args:
            pixels: (B, 3, H, W).
            loss: of which the gradient is taken.
            targets: (B,) int64, where the loss has them.
            with_gradient: whether it is needed.
            looks: passes of a model that is random, of which loss and gradient are the means.
        """
        point = self._look(pixels, loss, targets, with_gradient=with_gradient)
        for count in range(1, looks):
            other = self._look(pixels, loss, targets, with_gradient=with_gradient)
            share = 1 / (count + 1)
            gradient = point.gradient
            if gradient is not None and other.gradient is not None:
                gradient = torch.lerp(gradient, other.gradient, share)
            point = replace(other, gradient=gradient,
                            loss=torch.lerp(point.loss, other.loss, share))
        return point

    def _look(self, pixels: Tensor, loss: Loss, targets: Tensor | None, *,
              with_gradient: bool) -> Point:
        run = forward(self.model, pixels, with_graph=with_gradient, num_classes=self.num_classes)
        values = loss(run.logits, targets, self.labels)
        gradient = gradient_of(values, run) if with_gradient else None
        logits = run.logits.detach()
        guards.check_finite(logits, gradient)
        return Point(run.pixels.detach(), logits, values.detach(), gradient,
                     logits.argmax(1) != self.labels)


def forward(model: Classifier, pixels: Tensor, *, with_graph: bool,
            num_classes: int | None = None) -> Forward:
    """Run the model; raises ModelError when it changes its input or cannot be differentiated."""
    leaf = pixels.detach().requires_grad_(with_graph)
    version = leaf._version
    with torch.set_grad_enabled(with_graph):
        logits = model(leaf)
    if leaf._version != version:
        raise ModelError("the model must leave its input as it is", seen="it changed it in place",
                         hint="normalise into a new tensor")
    guards.check_form(logits, len(pixels), num_classes)
    if with_graph and not logits.requires_grad:
        raise ModelError("the model must be differentiable in its input",
                         seen="its logits carry no gradient", hint="remove no_grad and detach")
    return Forward(leaf, logits.float())


def finite_logits(model: Classifier, pixels: Tensor, num_classes: int | None = None) -> Tensor:
    """Return logits (B, K) without a graph; raises as `forward` and `guards.check_finite` do."""
    logits = forward(model, pixels, with_graph=False, num_classes=num_classes).logits
    guards.check_finite(logits)
    return logits


def gradient_of(values: Tensor, run: Forward) -> Tensor:
    """Return the gradient of each image's value (B,) in its pixels; the graph is freed."""
    # Of each image by itself, no mean: a gradient must not depend on its batch.
    return torch.autograd.grad(values, run.pixels, torch.ones_like(values))[0]


@contextmanager
def prepared(model: Classifier, images: Tensor, labels: Tensor, ids: Sequence[str]
             ) -> Iterator[tuple[Tensor, Tensor]]:
    """Check a batch and give copies of it that gradients can be taken of, the model sealed."""
    guards.check_batch(images, labels, ids)
    guards.check_eval(model)
    # Tensors made in inference mode carry no gradient, copies made outside it do.
    with torch.inference_mode(False), torch.enable_grad(), guards.sealed(model):
        yield images.detach().clone(), labels.detach().to(images.device)


@dataclass(eq=False)
class AttackOutcome:
    """What came of attacking each image of a problem; filled while images leave the batch.

    Attributes:
        pixels: (B, 3, H, W), what is scored.
        logits: (B, K) of them.
        broken: (B,) bool, the label is lost there.
        step: (B,) int64, step or query at which it was lost; -1 where it was not.
        noted: the losses (b,) of the images (b,) that were looked at together, in order.
        nonzero: the same of how many entries of their gradients were not zero, where one was taken.
        tries: where the images are tries of fewer: what a later try comes to is then unknown.
        first: (B,) int64, the first try that has broken each image; B for none.
    """

    pixels: Tensor
    logits: Tensor
    broken: Tensor
    step: Tensor
    noted: list[tuple[Tensor, Tensor]]
    nonzero: list[tuple[Tensor, Tensor]]
    tries: Tries | None
    first: Tensor

    @classmethod
    def of(cls, problem: Problem) -> AttackOutcome:
        """Return the outcome of an attack that does nothing."""
        labels = problem.labels
        return cls(problem.images.clone(), problem.clean_logits.clone(),
                   problem.clean_logits.argmax(1) != labels, torch.full_like(labels, -1),
                   [], [], problem.tries, torch.full_like(labels, len(labels)))

    def take(self, index: Tensor, point: Point) -> None:
        """Enter where some images are now, (b,) int64."""
        self.pixels[index], self.logits[index] = point.pixels, point.logits
        self.broken[index] = point.wrong

    def note(self, index: Tensor, point: Point) -> None:
        """Enter the loss and the gradient of some images."""
        self.noted.append((index, point.loss))
        if point.gradient is not None:
            self.nonzero.append((index, nonzero(point.gradient)))

    def leave(self, index: Tensor, point: Point, step: int | Tensor) -> Tensor:
        """Enter the images that have just lost their label; return which of ``index`` go on.

        Args:
            index: (b,) int64, the images.
            point: where they are.
            step: the step or query, of all or of each.
        """
        gone = point.wrong.nonzero().squeeze(1)
        if not len(gone):
            return torch.arange(len(index), device=index.device)
        self.take(index[gone], point.part(gone))
        self.step[index[gone]] = step if isinstance(step, int) else step[gone]
        on = ~point.wrong
        if self.tries is not None:
            lost = self.tries.part(index[gone])
            self.first.scatter_reduce_(0, lost.image, lost.turn, "amin")
            here = self.tries.part(index)
            on &= here.turn < self.first[here.image]
        return on.nonzero().squeeze(1)

    def zero(self) -> Tensor:
        """Return the least share of a gradient that was 0, (B,) float32; nan without gradients."""
        most = torch.full_like(self.broken, torch.nan, dtype=torch.float32)
        if self.nonzero:
            index, counts = map(torch.cat, zip(*self.nonzero))
            most.scatter_reduce_(0, index, counts, "amax", include_self=False)
        entries = self.pixels[0].numel()
        return (entries - most) / entries

    def paths(self) -> list[list[float]]:
        """Return the loss at each step, of each image."""
        found: list[list[float]] = [[] for _ in self.step]
        for index, losses in self.noted:
            for place, value in zip(index.tolist(), losses.tolist()):
                found[place].append(value)
        return found
