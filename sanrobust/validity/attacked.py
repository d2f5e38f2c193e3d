"""What attacks make of the images of a check, each attack made once when a line asks for it.

They run away from the model's own prediction, so that nothing here depends on the labels. Letters:
N images, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from sanrobust.attacks.budget import LEVELS, Budget
from sanrobust.attacks.guards import sealed
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.problem import forward, gradient_of
from sanrobust.attacks.randomness import starts
from sanrobust.attacks.result import zero_share
from sanrobust.attacks.settings import AttackSettings
from sanrobust.metrics import wilson
from sanrobust.progress import Progress
from sanrobust.steady import FixedSizeBatches
from sanrobust.tensors import Attacked, Ready
from sanrobust.validity.settings import CheckSettings

Broken = NDArray[np.float64]
"""(N,) 1 where the prediction was changed, 0 where it stayed, nan where there are no numbers."""
NOISES = 8
"""Draws of noise, any of which may change a prediction."""
UNLIMITED = 128.0
WALK_STEPS = 10
RESTARTS = 3


@dataclass(frozen=True)
class Walk:
    """Plain steps of one length, seen one by one.

    Attributes:
        losses: (N, WALK_STEPS + 1) what is descended; nan without numbers.
        zero: (N, WALK_STEPS) part of each gradient that was exactly zero; 0 where the prediction is
            lost.
    """

    losses: NDArray[np.float64]
    zero: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) which images have numbers at every step."""
        return np.asarray(np.isfinite(self.losses).all(1))


@dataclass(frozen=True, eq=False)
class Pair:
    """The same images under two attacks, the first of which should not be the stronger one.

    Attributes:
        n: images with numbers under both.
        weak, strong: percent that each breaks.
        only_weak, only_strong: images that one alone breaks.
        p: of so many that the weak one alone breaks, or more, if neither were stronger: the exact
            one-sided McNemar test.
        low: lower bound, in percent of the images, of those that the weak one alone breaks.
        known: (N,) bool, of which images there are numbers under both.
    """

    n: int
    weak: float
    strong: float
    only_weak: int
    only_strong: int
    p: float
    low: float
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, weak: Broken, strong: Broken) -> Pair:
        """Compare two attacks image by image."""
        both = ~(np.isnan(weak) | np.isnan(strong))
        a, b = weak[both] == 1, strong[both] == 1
        n, only_a, only_b = int(both.sum()), int((a & ~b).sum()), int((b & ~a).sum())
        odd = only_a + only_b
        p = float(binomtest(only_a, odd, alternative="greater").pvalue) if odd else 1.0
        rate_a, rate_b = (100 * float(each.mean()) if n else math.nan for each in (a, b))
        return cls(n, rate_a, rate_b, only_a, only_b, p, wilson(only_a, n)[0], both)


@dataclass(eq=False)
class Attacks:
    """Attacks on the images of a check.

    Attributes:
        model: what computes.
        pixels: (N, 3, H, W) on the device.
        predicted: (N,) on the CPU.
        ids: with the seed they decide what is drawn.
        settings: the attack.
        batch_size: how many are attacked together.
        progress: is told of each attack.
        name: of the model, for it.
        classes: how many the model has.
    """

    model: FixedSizeBatches
    pixels: Tensor
    predicted: Tensor
    ids: Sequence[str]
    settings: CheckSettings
    batch_size: int
    progress: Progress
    name: str
    classes: int
    _broken: dict[tuple[object, ...], Broken] = field(default_factory=dict)
    _walked: set[float] = field(default_factory=set)

    def __post_init__(self) -> None:
        # From which radius on each image has no finite numbers.
        self._lost_from = np.full(len(self.ids), np.inf)

    def broken(self, eps: float | None = None, iters: int | None = None, restart: int = 0
               ) -> Broken:
        """Return what the gradient's attack breaks.

        Args:
            eps: radius in 1/255; None for the settings'.
            iters: steps; None for the settings'.
            restart: which of several random starts.
        """
        eps, iters = eps or self.settings.radius, iters or self.settings.iters
        key = eps, iters, restart
        if key not in self._broken:
            plain = {"attack": "pgd", "targets": "none", "random_start": restart > 0}
            own = plain if self.settings.attack == "pgd" else {"attack": self.settings.attack}
            step = eps / 4 if self.settings.attack == "pgd" else None
            words = f"{self.settings.attack}, eps {eps:g}, {iters} steps"
            made, pixels = self._made(f"{words}{f', start {restart + 1}' if restart else ''}",
                                      Budget(eps, step, iters), restart, **own)
            self._broken[key] = made
            if key == (self.settings.radius, self.settings.iters, 0):
                self._stored = pixels
        return self._broken[key]

    @cached_property
    def again(self) -> tuple[Broken, Broken]:
        """What is still broken of the attack's images, predicted anew and rounded to 8 bits.

        They are passed in reverse order, and so beside other images than when they were made.
        """
        self.broken()
        stored = self._stored.flip(0)
        rounded = (stored * LEVELS).round().div(LEVELS)
        back = self.predicted.flip(0)
        return self._changed(stored, back)[::-1], self._changed(rounded, back)[::-1]

    @cached_property
    def one_step(self) -> Broken:
        """What a single step of the length of the radius breaks (Goodfellow et al. 2015)."""
        radius = self.settings.radius
        return self._made("one step", Budget(radius, radius, 1), attack="pgd", targets="none",
                          loss=self.settings.loss(self.classes))[0]

    @cached_property
    def square(self) -> Broken:
        """What random squares break, with no gradient (Andriushchenko et al. 2020)."""
        return self._made(f"square, {self.settings.queries} queries",
                          Budget(self.settings.radius), attack="square",
                          queries=self.settings.queries)[0]

    @cached_property
    def noise(self) -> Broken:
        """What any of `NOISES` random corners of the ball breaks."""
        broken = np.zeros(len(self.ids))
        for draw in range(NOISES):
            signs = starts(self.pixels, self.ids, self.settings.seed, draw, "corner").sign()
            there = (self.pixels + signs * (self.settings.radius / LEVELS)).clamp_(0, 1)
            broken = np.maximum(broken, self._changed(there, self.predicted))  # nan stays
        return broken

    @cached_property
    def walk(self) -> Walk:
        """Plain steps of a tenth of the radius, from the images, down the attack's loss."""
        return self._walk(self.settings.radius)

    def _walk(self, eps: float) -> Walk:
        labels = self.predicted.to(self.pixels.device)
        parts = [self._steps(*part, eps / LEVELS)
                 for part in zip(torch.split(self.pixels, self.batch_size),
                                 torch.split(labels, self.batch_size))]
        losses, zero = (torch.cat(each).cpu().double().numpy() for each in zip(*parts))
        return Walk(losses, zero)

    def _steps(self, images: Tensor, labels: Tensor, radius: float) -> tuple[Tensor, Tensor]:
        """Return the losses (b, WALK_STEPS + 1) and zero parts (b, WALK_STEPS) of some images."""
        loss, norm = LOSSES.get(self.settings.loss(self.classes)), NORMS.get("linf")
        project, here = norm.projection(images, radius), images
        losses, zero = [], []
        with torch.inference_mode(False), torch.enable_grad(), sealed(self.model):
            for step in range(WALK_STEPS + 1):
                run = forward(self.model, here, with_graph=True)
                values = loss(run.logits, None, labels)
                losses.append(values.detach())
                if step < WALK_STEPS:
                    gradient = gradient_of(values, run)
                    # Where the prediction is lost already, a loss may have nothing more to do.
                    lost = run.logits.argmax(1) != labels
                    zero.append(zero_share(gradient).masked_fill(lost, 0))
                    here = project(here - radius / WALK_STEPS * norm.direction(gradient))
        return torch.stack(losses, 1), torch.stack(zero, 1)

    def _changed(self, pixels: Tensor, predicted: Tensor) -> Broken:
        """Return whether pixels (N, 3, H, W) are classified otherwise than as ``predicted`` (N,).
        """
        with torch.no_grad():
            logits = torch.cat([self.model(part).float().cpu()
                                for part in torch.split(pixels, self.batch_size)])
        changed: Broken = (logits.argmax(1) != predicted).numpy().astype("float64")
        changed[~logits.isfinite().all(1).numpy()] = np.nan
        return changed

    def _sound(self, eps: float) -> NDArray[np.bool_]:
        """Return which images (N,) may be attacked in a ball: of which no step in it or in a
        smaller one is known to end in numbers that are not finite.

        Each of the others would stop the batch that it is in, which is then made in halves until
        the image stands alone: over many attacks that takes minutes. Where an image is lost, plain
        steps in each further ball find most of those that would be lost there.
        """
        if eps not in self._walked:
            self._walked.add(eps)
            if eps == self.settings.radius or np.isfinite(self._lost_from).any():
                walk = self.walk if eps == self.settings.radius else self._walk(eps)
                self._note_lost(~walk.known, eps)
        return np.asarray(self._lost_from > eps)

    def _note_lost(self, lost: NDArray[np.bool_], eps: float) -> None:
        self._lost_from[lost] = np.minimum(self._lost_from[lost], eps)

    def _made(self, words: str, budget: Budget, restart: int = 0, **keywords: object
              ) -> tuple[Broken, Tensor]:
        """Make an attack and return what it breaks and its images, those left out as they are."""
        settings = AttackSettings(budgets=(budget,), seed=self.settings.seed + restart,
                                  **keywords)  # type: ignore[arg-type]
        assert budget.eps is not None
        sound = self._sound(budget.eps)
        broken, pixels = np.full(len(self.ids), np.nan), self.pixels.clone()
        if sound.any():
            made = self._attacked(words, settings, sound)
            own = (made.table["adv_pred"] != made.table["label"]).to_numpy().astype("float64")
            own[made.table["error"].notna().to_numpy()] = np.nan
            broken[sound], pixels[torch.from_numpy(sound)] = own, made.adversarial
            self._note_lost(sound & np.isnan(broken), budget.eps)
        return broken, pixels

    def _attacked(self, words: str, settings: AttackSettings, sound: NDArray[np.bool_]
                  ) -> Attacked:
        left_out = len(sound) - int(sound.sum())
        self.progress.begin(f"check {self.name}: {words}", total=len(sound), done=left_out)
        alive = self.model.register_forward_hook(lambda *_: self.progress.beat())
        try:
            chosen = torch.from_numpy(sound)
            return Ready.of(settings).attacked(
                self.model, self.pixels[chosen], self.predicted[chosen].to(self.pixels.device),
                [name for name, one in zip(self.ids, sound) if one],
                batch_size=self.batch_size, followed=self.progress.advance)
        finally:
            alive.remove()
            self.progress.end()
