"""Training one network: passes, steps, epochs, and taking them up again.

Letters: B images, K classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sanrobust.data.imageset import ImageSet
from sanrobust.data.lost import first, undecodable
from sanrobust.errors import DataError, NonFiniteError
from sanrobust.progress import Progress, Silent
from sanrobust.training.adversarial import attacked
from sanrobust.training.feed import Feed, Pass
from sanrobust.training.group import Group
from sanrobust.training.history import Epoch
from sanrobust.training.mixing import mixed
from sanrobust.training.optimizing import make_average, make_optimizer, make_schedule, rate_of
from sanrobust.training.recipes import Recipe
from sanrobust.training.scoring import HeldOut, Score, right
from sanrobust.training.state import State, Sums
from sanrobust.zoo.classifier import Normalize

Say = Callable[[str], None]
Keep = Callable[["Training", bool], None]
"""Told of a training that could be kept now, and whether an epoch has just ended."""


@dataclass(frozen=True)
class Sets:
    """The images of a training: those that it learns from, and those that it is measured on."""

    train: ImageSet
    test: ImageSet


class Training:
    """A network on its way from initial values to trained ones.

    Args:
        network: to be trained, on the CPU; what it maps is normalised here.
        sets: its images.
        recipe: how.
        device: where.
        classes: K.
        workers: processes that decode.
        group: the processes that train together.
    """

    def __init__(self, network: nn.Module, sets: Sets, recipe: Recipe, *, device: torch.device,
                 classes: int, workers: int = 0, group: Group = Group()) -> None:
        self.network, self.sets, self.recipe, self.group = network, sets, recipe, group
        self.device = device
        wanted = recipe.preprocessing
        normalize = Normalize(wanted.mean, wanted.std)
        self.model = group.joined(nn.Sequential(normalize, network)).to(device)
        self.feed = Feed(sets.train, recipe, device, workers, group.share)
        self.held_out = HeldOut(sets.test, recipe, device, workers)
        self.optimizer = make_optimizer(network, recipe)
        self.average = make_average(network, recipe)
        self.measured = (self.model if self.average is None
                         else nn.Sequential(normalize, self.average.module))
        self.schedule = make_schedule(self.optimizer, recipe, self.feed.steps)
        self.state = State(self._no_sums())
        self.score: Score | None = None
        self._loss_of = nn.CrossEntropyLoss(
            label_smoothing=torch_smoothing(recipe.label_smoothing, classes))

    def parts(self) -> dict[str, Any]:
        """Return the state dicts of what training moves."""
        parts = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "schedule": self.schedule.state_dict()}
        if self.average is not None:
            parts["average"] = self.average.module.state_dict()
        return parts

    @property
    def result(self) -> nn.Module:
        """The network to measure and to write: the average of its weights where there is one."""
        return self.network if self.average is None else self.average.module

    def take_up(self, state: State, parts: dict[str, Any]) -> None:
        """Go on from where another training of the same kind was."""
        self.network.load_state_dict(parts["network"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.schedule.load_state_dict(parts["schedule"])
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        self.state = state

    def run(self, say: Say, keep: Keep = lambda *_: None, progress: Progress = Silent()) -> Score:
        """Train to the end; return how many held-out images the network then gets right.

        ``say`` is told each epoch's numbers and what cannot be decoded; ``keep`` is called after
        each step and each epoch. The network ends in eval mode, on its device. Raises DataError
        when no image can be decoded, and NonFiniteError when the loss, a weight or all logits are
        no numbers.
        """
        images = self.feed.steps * self.recipe.batch_size  # of an epoch
        progress.begin("training", total=self.recipe.epochs * images,
                       done=self.state.epoch * images + self.state.step * self.recipe.batch_size)
        try:
            while self.state.epoch < self.recipe.epochs:
                self._one(say, keep, progress)
        finally:
            progress.end()
        if self.score is None:  # taken up after the last epoch
            self.score = self._scored(say)
        return self.score

    def _one(self, say: Say, keep: Keep, progress: Progress) -> None:
        """Train for an epoch, or for what is left of it, and measure."""
        started, known = time.monotonic(), len(self.feed.lost)
        seen = self._epoch(keep, progress)
        seconds = time.monotonic() - started
        if len(self.feed.lost) > known:
            say(undecodable(self.feed.lost, len(self.sets.train.refs), "training"))
        self._finish(seen / seconds, say)
        self.state.seconds += time.monotonic() - started
        keep(self, True)

    def _epoch(self, keep: Keep, progress: Progress) -> int:
        """Train for the rest of an epoch; return how many images that were."""
        state, recipe = self.state, self.recipe
        self.model.train()
        steps = self.feed.steps
        seen, ready = 0, False
        self.optimizer.zero_grad(set_to_none=True)
        for each in self.feed.epoch(state.epoch, start=state.step):
            if len(each.labels) > 1:  # batch normalisation has no variance of one image
                self._learn(each)
                seen, ready = seen + len(each.labels) * self.group.share.count, True
            if not each.ends_step:
                continue
            if ready:
                self.group.average_gradients(self.network)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                if self.average is not None:
                    self.average.update(self.network, state.epoch * steps + state.step + 1)
                ready = False
            if recipe.decay == "step":
                self.schedule.step()
            state.step += 1
            progress.advance(recipe.batch_size)
            if state.step < steps:
                keep(self, False)
        if recipe.decay == "epoch":
            self.schedule.step()
        return seen

    def _learn(self, each: Pass) -> None:
        pixels, others = each.pixels, each.labels
        if each.noise is not None:
            with self._precision():
                pixels = attacked(self.model, pixels, each.labels, each.noise, self.recipe)
        if each.share < 1:
            pixels, others = mixed(pixels, each.labels, each.share)
        with self._precision():
            logits = self.model(pixels)
        logits = logits.float()
        loss: Tensor = self._loss_of(logits, each.labels)
        if each.share < 1:
            loss = each.share * loss + (1 - each.share) * self._loss_of(logits, others)
        parts = self.group.share.count * (self.recipe.batch_size
                                          // (self.recipe.micro_batch or self.recipe.batch_size))
        (loss if parts == 1 else loss / parts).backward()  # type: ignore[no-untyped-call]
        sums = self.state.sums
        top1, top5, _ = right(logits.detach(), each.labels)
        sums.values += torch.stack([loss.detach().double(), top1.double(), top5.double(),
                                    torch.full_like(loss, len(each.labels)).double()])
        sums.passes += 1

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16,
                              enabled=self.recipe.precision == "bfloat16")

    def require_finite(self) -> None:
        """Raise NonFiniteError when the loss or a weight is no finite number."""
        epoch = self.state.epoch + 1
        loss = float(self.state.sums.values[0])
        if not math.isfinite(loss):
            raise NonFiniteError("the training loss must be a finite number",
                                 seen=f"it is {loss} in epoch {epoch}",
                                 hint="lower --lr; nothing was written")
        for name, value in self.result.state_dict().items():
            if not value.isfinite().all():
                raise NonFiniteError("trained weights must be finite numbers",
                                     seen=f"{name} is not after epoch {epoch}",
                                     hint="lower --lr; nothing was written")

    def _finish(self, rate: float, say: Say) -> None:
        """Measure after an epoch, write it into the history and begin the next."""
        state = self.state
        if not state.sums.passes:
            raise DataError("training images must be decodable", seen=first(self.feed.lost),
                            hint="mend the images of --data")
        self.require_finite()
        values = self.group.summed(state.sums.values).tolist()
        loss, top1, top5, images = values
        self.score = score = self._scored(say if state.epoch + 1 == self.recipe.epochs
                                          else lambda _: None)
        made = Epoch(
            epoch=state.epoch + 1, lr=state.sums.lr, images_per_second=rate,
            loss=loss / (state.sums.passes * self.group.share.count),
            train_top1=100 * top1 / images, train_top5=100 * top5 / images,
            top1=score.percent(score.top1), top5=score.percent(score.top5))
        state.history.append(made)
        state.epoch, state.step, state.sums = state.epoch + 1, 0, self._no_sums()
        say(f"epoch {state.epoch}/{self.recipe.epochs}: loss {made.loss:.4f}, top-1 "
            f"{made.train_top1:.2f} % in training and {made.top1:.2f} % held out, "
            f"{rate:.0f} images/s")

    def _no_sums(self) -> Sums:
        return Sums(torch.zeros(4, dtype=torch.float64, device=self.device),
                    rate_of(self.optimizer))

    def _scored(self, say: Say) -> Score:
        """Measure the network; after early epochs its logits may overflow, in the end not all."""
        score = self.held_out.score(self.measured)
        if not score.finite and self.state.epoch + 1 >= self.recipe.epochs:
            raise NonFiniteError("a trained network must give finite logits",
                                 seen=f"none of {score.images} held-out images has them",
                                 hint="lower --lr; nothing was written")
        images = len(self.sets.test.refs)
        if self.held_out.lost:
            say(undecodable(self.held_out.lost, images, "held-out"))
        if score.finite < score.images:
            say(f"the logits of {score.images - score.finite} of {score.images} held-out images "
                "are not finite; these images count as wrong")
        return score


def torch_smoothing(smoothing: float, classes: int) -> float:
    """Turn the paper's smoothing (mass leaves the true class) into torch's (uniform share)."""
    return smoothing * classes / (classes - 1)
