"""Our own attacks by name, and those that installed packages add; loads no torch.

A package adds one by an entry point of the group ``sanrobust.attacks`` that names an `Attack`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sanrobust.attacks.attack import Attack
from sanrobust.attacks.words import pgd_words
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
    from sanrobust.attacks.pgd import targeted_pgd
    return targeted_pgd(model, images, labels, ids, budgets=settings.strengths, targets=targets,
                        loss=settings.loss, seed=settings.seed,
                        random_start=settings.random_start, restarts=settings.restarts)


ENTRIES: tuple[Attack, ...] = (
    Attack(PGD, _pgd, pgd_words),
)

ATTACKS: Registry[Attack] = Registry("attack", listing="sanrobust pgd --help",
                                     group="sanrobust.attacks", of=Attack)
for _entry in ENTRIES:
    ATTACKS.add(_entry.name, _entry)
