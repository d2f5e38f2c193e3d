"""Attacks that end once the label is lost, alone and one after the other as in AutoAttack.

Each attacks only the images that all before it have left. Source of AutoAttack: Croce & Hein (2020,
arXiv 2003.01690), whose published code fixes the order and the strengths. Letters: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanrobust.attacks import guards
from sanrobust.attacks.apgd import Walk
from sanrobust.attacks.budget import LEVELS, Budget
from sanrobust.attacks.fab import Fab
from sanrobust.attacks.losses import cross_entropy, dlr_or_margin, margin
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.problem import AttackOutcome, Problem, finite_logits, prepared
from sanrobust.attacks.result import BudgetResult, distance
from sanrobust.attacks.square import Square
from sanrobust.attacks.versions import Version, version_of
from sanrobust.errors import NonFiniteError
from sanrobust.steady import FixedSizeBatches

if TYPE_CHECKING:
    from sanrobust.attacks.guards import Classifier
    from sanrobust.attacks.losses import Loss
    from sanrobust.attacks.settings import AttackSettings

TARGETS = 9
"""Wrong classes that the targeted attacks try at most, the likeliest first."""
CLEAN = "clean"
"""What has broken an image that is misclassified as it is."""


@dataclass(frozen=True)
class Strength:
    """How much is tried.

    Attributes:
        iters: steps of Auto-PGD and FAB.
        queries: of Square.
        rescaled: whether its squares shrink over all of them.
        restarts: of each attack, and of each of its targets.
        looks: passes per step, for a model that is random.
    """

    iters: int = 100
    queries: int = 5000
    rescaled: bool = False
    restarts: int = 1
    looks: int = 1


@dataclass(frozen=True)
class Try:
    """One of the walks that an attack makes of each image.

    Attributes:
        rank: of the target among the wrong classes by their logit, 1 the highest; 0 without one.
        restart: which of several from the same kind of start.
    """

    rank: int
    restart: int

    def purpose(self, name: str) -> str:
        """Return what is drawn for it."""
        return f"{name}:{self.rank}" if self.rank else name


@dataclass(frozen=True)
class Member:
    """An attack of a suite.

    Attributes:
        attack: makes the given tries of each image of a problem, see `Problem.tried`.
        targeted: whether it has a try for each target.
        abreast: whether it can make several tries at once.
    """

    attack: Callable[[Problem, Sequence[Try], Strength], AttackOutcome]
    targeted: bool = False
    abreast: bool = True

    def tries(self, num_classes: int, strength: Strength) -> list[Try]:
        """Return what it tries, in order; a later one counts only if all before it have failed."""
        aims = ranks(num_classes, TARGETS) if self.targeted else (0,)
        return [Try(rank, restart) for rank in aims for restart in range(strength.restarts)]


def _descent(name: str, loss_for: Callable[[int], Loss], problem: Problem, tries: Sequence[Try],
             strength: Strength) -> AttackOutcome:
    start = torch.cat([problem.start(each.purpose(name), each.restart) for each in tries])
    walk = Walk(loss_for(problem.num_classes), strength.iters, start, _aims(problem, tries),
                strength.looks)
    return walk(problem.tried(len(tries)))


def _boundary(name: str, problem: Problem, tries: Sequence[Try], strength: Strength
              ) -> AttackOutcome:
    # The first start is the image, others are random points of half the radius.
    start = torch.cat([problem.start(each.purpose(name), each.restart, share=0.5) if each.restart
                       else problem.images for each in tries])
    return Fab(strength.iters, start, _aims(problem, tries))(problem.tried(len(tries)))


def _aims(problem: Problem, tries: Sequence[Try]) -> Tensor | None:
    if not tries[0].rank:
        return None
    return torch.cat([runner_up(problem.clean_logits, problem.labels, each.rank)
                      for each in tries])


def runner_up(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """Return the wrong class of the ``rank``-th highest logit (1 the highest), (B,) int64."""
    others = logits.scatter(1, labels.unsqueeze(1), float("-inf"))
    return others.topk(rank, dim=1).indices[:, rank - 1]


def ranks(num_classes: int, most: int) -> Sequence[int]:
    """Return the ranks of the wrong classes that are tried, at most ``most`` of them."""
    return range(1, min(most, num_classes - 1) + 1)


def _search(name: str, problem: Problem, tries: Sequence[Try], strength: Strength) -> AttackOutcome:
    (only,) = tries
    return Square(strength.queries, strength.rescaled, f"{name}:{only.restart}")(problem)


MEMBERS: dict[str, Member] = {
    "apgd-ce": Member(partial(_descent, "apgd-ce", lambda _: cross_entropy)),
    "apgd-dlr": Member(partial(_descent, "apgd-dlr", partial(dlr_or_margin, targeted=False))),
    "apgd-t": Member(partial(_descent, "apgd-t", partial(dlr_or_margin, targeted=True)),
                     targeted=True),
    "fab": Member(partial(_boundary, "fab")),
    "fab-t": Member(partial(_boundary, "fab-t"), targeted=True),
    "square": Member(partial(_search, "square"), abreast=False),
}


@dataclass(frozen=True, eq=False)
class Found:
    """What several attacks have made of a batch.

    Attributes:
        pixels: (B, 3, H, W): where an image lost its label, else its lowest margin at the end of an
            attack, the clean image among them.
        logits: (B, K) of them.
        by: which attack broke each image; None for those that keep their label.
        step: (B,) int64, step or query of it; 0 for images misclassified as they are, -1 for None.
        zero: (B,) float32, least share of a gradient that was exactly zero; nan without gradients.
        paths: the losses of the attack that ``pixels`` are from; empty for the clean image.
    """

    pixels: Tensor
    logits: Tensor
    by: Sequence[str | None]
    step: Tensor
    zero: Tensor
    paths: Sequence[Sequence[float]]


def attack_until_broken(problem: Problem, version: Version, strength: Strength) -> Found:
    """Run the attacks of a version in their order, each on the images that are still right."""
    state = _State(problem)
    for name in version.members:
        member = MEMBERS[name]
        strength = replace(strength, restarts=version.restarts.get(name, 1))
        waiting, abreast = member.tries(problem.num_classes, strength), member.abreast
        while waiting and len(left := state.left()):
            # Images that have left make room for further tries of the others; what comes of a try
            # does not depend on those beside it.
            now = waiting[:max(problem.room // len(left), 1) if abreast else 1]
            try:
                made = member.attack(problem.part(left), now, strength)
            except NonFiniteError:  # of a try that would not be made, perhaps
                if len(now) == 1:
                    raise
                abreast = False
                continue
            waiting = waiting[len(now):]
            state.enter(name, made, left, len(now))
    return state.found()


class _State:
    """What the attacks so far have made of a batch."""

    def __init__(self, problem: Problem) -> None:
        self._labels = problem.labels
        self._whole = AttackOutcome.of(problem)
        self._whole.step[self._whole.broken] = 0
        self._lowest = margin(self._whole.logits, None, problem.labels)
        self._zero = torch.full_like(self._lowest, torch.nan)
        self._by: list[str | None] = [CLEAN if broken else None
                                      for broken in self._whole.broken.tolist()]
        self._paths: list[Sequence[float]] = [()] * len(self._by)

    def left(self) -> Tensor:
        """Return the images that are still right, (b,) int64."""
        return (~self._whole.broken).nonzero().squeeze(1)

    def enter(self, name: str, made: AttackOutcome, left: Tensor, tries: int) -> None:
        """Enter the tries of an attack on the images that were left, in their order."""
        told, zero = made.paths(), made.zero()
        for turn in range(tries):
            right = (~self._whole.broken[left]).nonzero().squeeze(1)
            rows = right + turn * len(left)
            self._enter_try(name, made, left[right], rows, told)
            self._zero[left[right]] = torch.fmin(self._zero[left[right]], zero[rows])

    def _enter_try(self, name: str, made: AttackOutcome, left: Tensor, rows: Tensor,
                   told: Sequence[Sequence[float]]) -> None:
        """Enter the rows (b,) of an outcome as those of the images (b,) that are left."""
        whole = self._whole
        value = margin(made.logits[rows], None, self._labels[left])
        better = (made.broken[rows] | (value < self._lowest[left])).nonzero().squeeze(1)
        left, rows = left[better], rows[better]
        for at, row, broken in zip(left.tolist(), rows.tolist(), made.broken[rows].tolist()):
            self._paths[at] = told[row]
            self._by[at] = name if broken else None
        for part in ("pixels", "logits", "broken", "step"):
            getattr(whole, part)[left] = getattr(made, part)[rows]
        self._lowest[left] = value[better]

    def found(self) -> Found:
        """Return it all."""
        whole = self._whole
        return Found(whole.pixels, whole.logits, self._by, whole.step, self._zero, self._paths)


def suite(model: Classifier, images: Tensor, labels: Tensor, ids: Sequence[str],
          settings: AttackSettings) -> list[BudgetResult]:
    """Attack a batch with one attack of `MEMBERS` or with AutoAttack, once per budget.

    Args:
        model: pixels in [0, 1] to logits (B, K), in eval mode; its state is not changed.
        images: (B, 3, H, W) float32 in [0, 1].
        labels: (B,) int64, the true classes.
        ids: B image ids; with the seed they decide what is drawn.
        settings: the attack, its budgets and how much is tried.

    Returns:
        One result per budget, in their order; none depends on another.

    Raises NonFiniteError when logits or gradients are not finite, and ProtocolError or ModelError
    when another rule of the experiment is broken.
    """
    version = (version_of(settings.version) if settings.attack == "autoattack"
               else Version((settings.attack,), {settings.attack: settings.restarts}))
    norm = NORMS.get(settings.norm)
    size = model.size if isinstance(model, FixedSizeBatches) else None
    with prepared(model, images, labels, ids) as (images, labels):
        clean = finite_logits(model, images)
        guards.check_labels(labels, clean.shape[1])
        results = []
        for budget in settings.strengths:
            radius = budget.eps / (LEVELS if norm.levels else 1)
            problem = Problem(model, images, labels, ids, clean, norm, radius, settings.seed,
                              size or len(ids), size)
            found = attack_until_broken(problem, version, Strength(
                iters=budget.iters or 0, queries=settings.queries,
                rescaled=settings.attack != "autoattack", looks=version.looks))
            guards.check_ball(found.pixels, images, radius, norm)
            results.append(_result(found, problem, budget))
        return results


def _result(found: Found, problem: Problem, budget: Budget) -> BudgetResult:
    return BudgetResult(
        budget=budget, eps=budget.eps, adversarial=found.pixels,
        clean_logits=problem.clean_logits, adv_logits=found.logits, targets=None, hit=None,
        hit_any=None, linf=distance(found.pixels, problem.images), target_loss=None,
        zero_gradient=found.zero.unsqueeze(1), broken_by=found.by,
        broken_at=[None if at < 0 else at for at in found.step.tolist()], losses=found.paths)
