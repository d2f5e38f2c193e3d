"""What an attack of our own is: one value, readable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sanrobust.attacks.guards import Classifier
    from sanrobust.attacks.result import BudgetResult
    from sanrobust.attacks.settings import AttackSettings
    from sanrobust.attacks.targets import TargetRule

    # (model, images (B, 3, H, W), labels (B,), ids, settings, targets) -> a result per budget.
    Run = Callable[[Classifier, Tensor, Tensor, Sequence[str], AttackSettings, TargetRule],
                   list[BudgetResult]]


@dataclass(frozen=True)
class Attack:
    """An attack of a ball of L-inf budgets.

    Attributes:
        name: what ``--attack`` takes.
        run: makes it on a batch, of which the target rule excludes no image; what it draws belongs
            to (seed, image id), and no number may depend on the other images.
        words: parts of the sentence that says what it does, from the settings in a specification.
    """

    name: str
    run: Run
    words: Callable[[Mapping[str, object]], Sequence[str]]
