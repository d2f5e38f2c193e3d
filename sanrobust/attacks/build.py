"""From settings to a callable attack: the one place that knows every kind of attack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from sanrobust.attacks.catalog import ATTACKS
from sanrobust.attacks.guards import Classifier
from sanrobust.attacks.result import BudgetResult
from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.targets import TargetRule
from sanrobust.attacks.torchattacks_adapter import adapt


class BatchAttack(Protocol):
    """What an evaluation calls for each batch, see `build_attack`."""

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor,
                 ids: Sequence[str]) -> list[BudgetResult]: ...


def build_attack(settings: AttackSettings, rule: TargetRule) -> BatchAttack:
    """Return the attack that ``settings`` describe, ready to be called batch by batch.

    Args:
        settings: what to do.
        rule: ``settings.rule()``, loaded once for the run; images that ``rule.split`` excludes
            must be left out of the batches.

    Returns:
        A callable of (model, images (B, 3, H, W), labels (B,), ids) that returns one result per
        budget, and a single one for an attack of torchattacks.

    Raises UsageError for an attack or option that torchattacks does not have.
    """
    if settings.adapted is not None:
        foreign = adapt(settings.adapted, settings.options)

        def adapted(model: Classifier, images: Tensor, labels: Tensor,
                    ids: Sequence[str]) -> list[BudgetResult]:
            return [foreign(model, images, labels, ids, targets=rule, seed=settings.seed)]

        return adapted

    run = ATTACKS.get(settings.attack).run
    return lambda model, images, labels, ids: run(model, images, labels, ids, settings, rule)
