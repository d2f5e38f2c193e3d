"""Attacks that end once the label is lost, alone and one after the other as in AutoAttack.

Each attacks only the images that all before it have left. Source of AutoAttack: Croce & Hein (2020,
arXiv 2003.01690), whose published code fixes the order and the strengths. Letters: B images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sanrobust.attacks import guards
from sanrobust.attacks.apgd import Walk
from sanrobust.attacks.budget import LEVELS, Budget
from sanrobust.attacks.fab import Fab, ranks, runner_up
from sanrobust.attacks.losses import cross_entropy, dlr_or_margin, margin
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.problem import Outcome, Problem, forward, prepared
from sanrobust.attacks.result import BudgetResult, distance
from sanrobust.attacks.square import Square
from sanrobust.attacks.versions import Version, version_of

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


Stage = Callable[[Problem], Outcome]
Stages = Callable[[int, Strength], Iterator[Stage]]
"""(K classes, strength) -> what an attack does to the images that are left, one after the other."""


def _apgd_ce(num_classes: int, strength: Strength) -> Iterator[Stage]:
    del num_classes
    return _walks("apgd-ce", cross_entropy, strength)


def _apgd_dlr(num_classes: int, strength: Strength) -> Iterator[Stage]:
    return _walks("apgd-dlr", dlr_or_margin(num_classes, targeted=False), strength)


def _walks(name: str, loss: Loss, strength: Strength) -> Iterator[Stage]:
    for restart in range(strength.restarts):
        yield Walk(loss, strength.iters, name, restart, looks=strength.looks)


def _apgd_t(num_classes: int, strength: Strength) -> Iterator[Stage]:
    loss = dlr_or_margin(num_classes, targeted=True)

    def stage(problem: Problem, rank: int, restart: int) -> Outcome:
        return Walk(loss, strength.iters, f"apgd-t:{rank}", restart, _aims(problem, rank),
                    strength.looks)(problem)

    return _each_target(stage, num_classes, strength)


def _fab(num_classes: int, strength: Strength) -> Iterator[Stage]:
    del num_classes
    for restart in range(strength.restarts):
        yield Fab(strength.iters, "fab", restart)


def _fab_t(num_classes: int, strength: Strength) -> Iterator[Stage]:
    def stage(problem: Problem, rank: int, restart: int) -> Outcome:
        return Fab(strength.iters, f"fab-t:{rank}", restart, _aims(problem, rank))(problem)

    return _each_target(stage, num_classes, strength)


def _each_target(stage: Callable[..., Outcome], num_classes: int,
                 strength: Strength) -> Iterator[Stage]:
    for rank in ranks(num_classes, TARGETS):
        for restart in range(strength.restarts):
            yield partial(stage, rank=rank, restart=restart)


def _aims(problem: Problem, rank: int) -> Tensor:
    return runner_up(problem.clean_logits, problem.labels, rank)


def _square(num_classes: int, strength: Strength) -> Iterator[Stage]:
    del num_classes
    for restart in range(strength.restarts):
        yield Square(strength.queries, strength.rescaled, "square", restart)


MEMBERS: dict[str, Stages] = {
    "apgd-ce": _apgd_ce,
    "apgd-dlr": _apgd_dlr,
    "apgd-t": _apgd_t,
    "fab": _fab,
    "fab-t": _fab_t,
    "square": _square,
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
    whole = Outcome.of(problem)
    whole.step[whole.broken] = 0
    lowest = margin(whole.logits, None, problem.labels)
    by: list[str | None] = [CLEAN if broken else None for broken in whole.broken.tolist()]
    paths: list[Sequence[float]] = [()] * len(by)
    for name in version.members:
        strength = replace(strength, restarts=version.restarts.get(name, 1))
        for stage in MEMBERS[name](problem.num_classes, strength):
            left = (~whole.broken).nonzero().squeeze(1)
            if not len(left):
                break
            made = stage(problem.part(left))
            value = margin(made.logits, None, problem.labels[left])
            better = (made.broken | (value < lowest[left])).nonzero().squeeze(1)
            told = made.paths()
            for place, at, broken in zip(better.tolist(), left[better].tolist(),
                                         made.broken[better].tolist()):
                paths[at] = told[place]
                by[at] = name if broken else None
            _enter(whole, made, left, better)
            lowest[left[better]] = value[better]
    zero = torch.where(whole.zero > 1, float("nan"), whole.zero)
    return Found(whole.pixels, whole.logits, by, whole.step, zero, paths)


def _enter(whole: Outcome, made: Outcome, left: Tensor, better: Tensor) -> None:
    whole.zero[left] = torch.minimum(whole.zero[left], made.zero)
    index = left[better]
    for name in ("pixels", "logits", "broken", "step"):
        getattr(whole, name)[index] = getattr(made, name)[better]


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
    with prepared(model, images, labels, ids) as (images, labels):
        clean = forward(model, images, with_graph=False).logits
        guards.check_finite(clean)
        guards.check_labels(labels, clean.shape[1])
        results = []
        for budget in settings.strengths:
            radius = budget.eps / (LEVELS if norm.levels else 1)
            problem = Problem(model, images, labels, ids, clean, norm, radius, settings.seed)
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
