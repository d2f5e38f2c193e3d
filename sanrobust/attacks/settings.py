"""What attack a run makes: one frozen value, checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sanrobust.attacks.budget import TABLE10, Budget, as_budgets, whole_number
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.targets import TargetRule, load_rule, parse_rule
from sanrobust.errors import UsageError, shown_value
from sanrobust.registry import unknown_name

PGD = "pgd"
OWN = (PGD,)
"""Names of our own attacks, which take budgets."""
ADAPTED = "torchattacks:"
_LISTING = "sanrobust pgd --help"


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """An attack and everything that can change its numbers.

    Attributes:
        attack: ``pgd`` (ours) or ``torchattacks:NAME``.
        budgets: budgets of ``pgd``, in any form that `as_budgets` takes, Table 10's two when none
            is given; empty for torchattacks, whose attacks take their strength from ``options``.
        targets: rule text, see `sanrobust.attacks.targets`.
        random_start: start from a uniform point of the ball instead of the clean image.
        restarts: number of starts, of which the best one counts; above 1 needs a random start.
        loss: what ``pgd`` descends, a name of `LOSSES`.
        seed: seed of random targets, random starts and torchattacks' own draws.
        options: (key, value) texts for torchattacks, sorted by key.

    Raises UsageError for a name, number or combination that cannot be meant.
    """

    attack: str = PGD
    budgets: tuple[Budget, ...] = ()
    targets: str = "random"
    random_start: bool = False
    restarts: int = 1
    loss: str = "ce"
    seed: int = 0
    options: tuple[tuple[str, str], ...] = ()

    # Settings that only our own loop reads, and the values that mean "not given".
    _PGD_ONLY: ClassVar[dict[str, object]] = {"random_start": False, "restarts": 1, "loss": "ce"}

    def __post_init__(self) -> None:
        self._check_texts()
        object.__setattr__(self, "options", tuple(sorted(self.options)))
        budgets = as_budgets(self.budgets)
        if self.attack in OWN and not budgets:
            budgets = TABLE10
        object.__setattr__(self, "budgets", budgets)
        self._check_attack()
        self._check_numbers()
        parse_rule(self.targets)
        if self.adapted is None:
            self._check_pgd()
        else:
            self._check_adapted()

    @property
    def adapted(self) -> str | None:
        """Name of the torchattacks class, or None for our own PGD."""
        return self.attack[len(ADAPTED):] if self.attack.startswith(ADAPTED) else None

    def rule(self) -> TargetRule:
        """Return the target rule, its file read; raises DataError when that cannot be done."""
        return load_rule(self.targets)

    def as_dict(self, rule: TargetRule | None = None) -> dict[str, object]:
        """Return plain values for a run's specification; a target file enters by its SHA-256.

        An attack of torchattacks adds its norm, its radius in the pixel range, whether it is given
        targets, and the version of torchattacks.

        Args:
            rule: the rule as loaded for the run, so that the hash is that of the table in use;
                None reads the file here.

        Raises UsageError for an attack or option that torchattacks does not have.
        """
        shown: dict[str, object] = {
            "attack": self.attack,
            "targets": (self.rule() if rule is None else rule).identity(),
            "seed": self.seed,
        }
        if self.adapted is not None:
            # The adapter needs torch, which settings do without until a run begins.
            from sanrobust.attacks.torchattacks_adapter import adapt
            facts = adapt(self.adapted, self.options).facts()
            return {**shown, "options": dict(self.options), **facts}
        return {
            **shown,
            "budgets": [budget.as_dict() for budget in self.budgets],
            "random_start": self.random_start,
            "restarts": self.restarts,
            "loss": self.loss,
        }

    def _check_attack(self) -> None:
        if self.attack in OWN or self.adapted:
            return
        if self.adapted == "":
            raise UsageError("an attack of torchattacks must be named",
                             seen=f"{self.attack} was seen",
                             hint="type for example --attack torchattacks:MIFGSM")
        raise unknown_name("attack", self.attack, (*OWN, ADAPTED + "NAME"), listing=_LISTING)

    def _check_texts(self) -> None:
        for name in ("attack", "targets", "loss"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise UsageError(f"{name} must be a name", seen=f"it is {shown_value(value)}",
                                 hint=f"see {_LISTING}")

    def _check_numbers(self) -> None:
        for name, least, example in (("seed", 0, "--seed 0"), ("restarts", 1, "--restarts 5")):
            number = whole_number(getattr(self, name), name, least=least, example=example)
            object.__setattr__(self, name, number)
        if not isinstance(self.random_start, bool):
            raise UsageError("random_start must be True or False",
                             seen=f"it is {self.random_start!r}", hint="leave it out for False")
        keys = [key for key, _ in self.options]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError("an attack option must be given once",
                                 seen=f"{key} was given {keys.count(key)} times",
                                 hint="keep one of them")

    def _check_pgd(self) -> None:
        if len(set(self.budgets)) < len(self.budgets):
            raise UsageError("the budgets of a run must differ", seen="one of them is given twice",
                             hint="leave the second one out")
        LOSSES.get(self.loss)
        if self.restarts > 1 and not self.random_start:
            raise UsageError("several restarts must start at random points",
                             seen=f"restarts is {self.restarts} and every start is the clean image",
                             hint="add --random-start or leave out --restarts")
        if self.options:
            raise UsageError("attack options must belong to an attack of torchattacks",
                             seen=f"the attack is pgd and {self.options[0][0]} was given",
                             hint="use --eps, --step and --iters, or --attack torchattacks:NAME")

    def _check_adapted(self) -> None:
        given = [name for name, unset in self._PGD_ONLY.items() if getattr(self, name) != unset]
        given += ["budgets"] if self.budgets else []
        if given:
            raise UsageError(f"{given[0].replace('_', '-')} must come with our own attack, pgd",
                             seen=f"the attack is {self.attack}",
                             hint="give that attack its own options with -A key=value")
