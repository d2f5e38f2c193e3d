"""Our own attacks by name, and those that installed packages add; loads no torch.

A package adds one by an entry point of the group ``sanrobust.attacks`` that names an `Attack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sanrobust.attacks.attack import Attack, Strengths
from sanrobust.attacks.words import pgd_words, suite_words
from sanrobust.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from sanrobust.attacks.guards import Classifier
    from sanrobust.attacks.result import BudgetResult
    from sanrobust.attacks.settings import AttackSettings
    from sanrobust.attacks.targets import TargetRule

PGD = "pgd"
ADAPTED = "torchattacks:"
"""How the name of an attack of torchattacks begins."""


def _pgd(model: Classifier, images: Tensor, labels: Tensor, ids: Sequence[str],
         settings: AttackSettings, targets: TargetRule) -> list[BudgetResult]:
    from sanrobust.attacks.pgd import pgd
    return pgd(model, images, labels, ids, budgets=settings.strengths, targets=targets,
               loss=settings.loss, norm=settings.norm, momentum=settings.momentum or 0.0,
               seed=settings.seed, random_start=settings.random_start, restarts=settings.restarts)


def _suite(model: Classifier, images: Tensor, labels: Tensor, ids: Sequence[str],
           settings: AttackSettings, targets: TargetRule) -> list[BudgetResult]:
    from sanrobust.attacks.suite import suite
    del targets
    return suite(model, images, labels, ids, settings)


_WALK = Strengths(takes=("eps", "iters"), iters=100)
_STARTED = ("restarts",)

ENTRIES: tuple[Attack, ...] = (
    Attack(PGD, _pgd, pgd_words, "PGD"),
    Attack("fgsm", _pgd, pgd_words, "FGSM", targets="none",
           strengths=Strengths(takes=("eps",), step=1.0, iters=1)),
    Attack("bim", _pgd, pgd_words, "BIM", targets="none",
           strengths=Strengths(takes=("eps", "step", "iters"), step=1 / 8, iters=10)),
    Attack("mifgsm", _pgd, pgd_words, "MI-FGSM", targets="none", momentum=1.0,
           strengths=Strengths(takes=("eps", "step", "iters"), step=1 / 10, iters=10)),
    Attack("apgd-ce", _suite, suite_words, "APGD-CE", _STARTED, _WALK, "none"),
    Attack("apgd-dlr", _suite, suite_words, "APGD-DLR", _STARTED, _WALK, "none"),
    Attack("apgd-t", _suite, suite_words, "APGD-T", _STARTED, _WALK, "none"),
    Attack("fab", _suite, suite_words, "FAB", _STARTED, _WALK, "none"),
    Attack("fab-t", _suite, suite_words, "FAB-T", _STARTED, _WALK, "none"),
    Attack("square", _suite, suite_words, "Square", ("restarts", "queries"),
           Strengths(takes=("eps",)), "none"),
    Attack("autoattack", _suite, suite_words, "AutoAttack", ("version", "queries"), _WALK, "none"),
)

ATTACKS: Registry[Attack] = Registry("attack", listing="sanrobust pgd --help",
                                     group="sanrobust.attacks", of=Attack)
for _entry in ENTRIES:
    ATTACKS.add(_entry.name, _entry)
