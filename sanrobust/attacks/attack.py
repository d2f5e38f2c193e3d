"""What an attack of our own is: one value, readable without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sanrobust.attacks.budget import TABLE10, Budget, BudgetParts, as_budgets
from sanrobust.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from sanrobust.attacks.guards import Classifier
    from sanrobust.attacks.result import BudgetResult
    from sanrobust.attacks.settings import AttackSettings
    from sanrobust.attacks.targets import TargetRule

    # (model, images (B, 3, H, W), labels (B,), ids, settings, targets) -> a result per budget.
    Run = Callable[[Classifier, Tensor, Tensor, Sequence[str], AttackSettings, TargetRule],
                   list[BudgetResult]]

USUAL = {"linf": 8.0, "l2": 0.5}
"""The radius of each norm where none is given: 8/255, and 0.5 in the pixel range."""


@dataclass(frozen=True, kw_only=True)
class Strengths:
    """Which parts of a budget an attack takes, and what stands for those that are not given.

    Attributes:
        takes: names of the parts that can be given.
        step: the step as a part of the radius; None for an attack that chooses its steps.
        iters: number of steps; None for an attack that takes none.
        table: the budgets where nothing is given in L-inf; empty for the usual radius.
        whole: whether the parts must come together.
    """

    takes: tuple[str, ...]
    step: float | None = None
    iters: int | None = None
    table: tuple[Budget, ...] = ()
    whole: bool = False

    def budgets(self, typed: BudgetParts | None, *, norm: str, attack: str
                ) -> tuple[Budget, ...]:
        """Return the budgets that were meant; raises UsageError for parts that cannot be."""
        if typed is None and self.table and norm == "linf":
            return self.table
        typed = typed or BudgetParts()
        given = [name for name, value in vars(typed).items() if value is not None]
        for name in given:
            if name not in self.takes:
                raise UsageError(f"--{name} must go with an attack that has it",
                                 seen=f"the attack is {attack}", hint=f"leave out --{name}")
        missing = [f"--{name}" for name in self.takes if name not in given]
        if self.whole and missing:
            verb = "is" if len(missing) == 1 else "are"
            raise UsageError("--eps, --step and --iters must come together",
                             seen=f"{' and '.join(missing)} {verb} missing",
                             hint="type for example --eps 8 --step 2 --iters 4")
        radii, step = typed.read(levels=norm == "linf")
        return tuple(self._budget(eps, step, typed.iters) for eps in radii or (USUAL[norm],))

    def given(self, values: object, *, norm: str) -> tuple[Budget, ...]:
        """Return budgets that were given in Python, see `as_budgets`."""
        of_radius = None if self.whole else (lambda eps: self._budget(eps, None, None))
        return as_budgets(values, of_radius, levels=norm == "linf")

    def _budget(self, eps: float, step: float | None, iters: int | None) -> Budget:
        if step is None and self.step is not None:
            step = eps * self.step
        return Budget(eps, step, self.iters if iters is None else iters)


PGD_STRENGTHS = Strengths(takes=("eps", "step", "iters"), table=TABLE10, whole=True)


@dataclass(frozen=True)
class Attack:
    """An attack of a ball.

    Attributes:
        name: what ``--attack`` takes.
        run: makes it on a batch, of which the target rule excludes no image; what it draws belongs
            to (seed, image id), and no number may depend on the other images.
        words: parts of the sentence that says what it does, from the settings in a specification.
        title: what a column calls it.
        reads: settings beside the budgets, the norm and the seed that it reads.
        strengths: parts of a budget.
        targets: the target rule where none is given.
        momentum: the momentum where none is given.
    """

    name: str
    run: Run
    words: Callable[[Mapping[str, object]], Sequence[str]]
    title: str = ""
    reads: tuple[str, ...] = ("targets", "random_start", "restarts", "loss", "momentum")
    strengths: Strengths = PGD_STRENGTHS
    targets: str = "random"
    momentum: float = 0.0
