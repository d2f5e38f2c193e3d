"""What attack a run makes: one frozen value, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

from sanrobust.attacks.budget import TABLE10, Budget, as_budgets, typed_budgets, whole_number
from sanrobust.attacks.catalog import ADAPTED, ATTACKS, PGD
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.targets import TargetRule, parse_rule, rule_forms
from sanrobust.errors import UsageError, shown_value
from sanrobust.options import Whole, option, parse_pairs, setting
from sanrobust.registry import unknown_name

_LISTING = "sanrobust pgd --help"


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """An attack and everything that can change its numbers.

    Raises UsageError for a name, number or combination that cannot be meant.
    """

    budgets: tuple[Budget, ...] | None = setting(
        None,
        option("--eps", metavar="LEVELS", help="Radius of the L-inf ball in 1/255: 8 or 8/255."),
        option("--step", metavar="LEVELS", help="Step length in 1/255: 2 or 2/255."),
        option("--iters", type=Whole(0, example=4), metavar="N", help="Number of steps."),
        read=typed_budgets,
        doc="radius, step (both in 1/255) and number of steps, each a `Budget` or three numbers; "
            "all run in one pass. None: the two of Table 10 for our PGD. An attack of torchattacks "
            "takes its strength from ``options``.")
    targets: str = setting("random", option(
        "--targets", show_default=True, metavar="|".join(rule_forms()),
        help="Target class of each image: drawn from the wrong ones, the wrong one with the "
             "lowest or highest clean logit, class C for all, or the column target of a CSV "
             "with image,target."))
    loss: str = setting("ce", option(
        "--loss", show_default=True, metavar="|".join(LOSSES.names()),
        help="What our PGD descends: cross entropy toward the target, the highest other "
             "logit minus the target's, or the difference-of-logits ratio."))
    random_start: bool = setting(False, option(
        "--random-start/--no-random-start",
        help="Start our PGD uniformly in the ball instead of at the image."))
    restarts: int = setting(1, option(
        "--restarts", type=Whole(1), show_default=True, metavar="N",
        help="Random starts, of which the best for the attacker counts."))
    seed: int = setting(0, option(
        "--seed", type=Whole(0, 2**63 - 1), show_default=True,
        help="Seed of targets and starts; each draw belongs to (seed, image)."))
    attack: str = setting(PGD, option(
        "--attack", show_default=True, metavar="|".join((*ATTACKS.own_names(), f"{ADAPTED}NAME")),
        help="Our PGD, or an attack of torchattacks, which is an extra: "
             "pip install 'sanrobust[torchattacks]'."))
    options: tuple[tuple[str, str], ...] = setting(
        (),
        option("-A", "--attack-option", "options", multiple=True, metavar="KEY=VALUE",
               help="Option of an attack of torchattacks, in its own units, such as eps=8/255; "
                    "repeatable."),
        read=partial(parse_pairs, option="--attack-option"),
        doc="keywords of an attack of torchattacks, in its own units.")

    # Settings that only our own loop reads, and the values that mean "not given".
    _PGD_ONLY: ClassVar[dict[str, object]] = {"random_start": False, "restarts": 1, "loss": "ce"}

    def __post_init__(self) -> None:
        self._check_texts()
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        texts = sorted((str(key), str(value)) for key, value in pairs)
        object.__setattr__(self, "options", tuple(texts))
        default = TABLE10 if self.adapted is None else ()
        budgets = default if self.budgets is None else as_budgets(self.budgets)
        object.__setattr__(self, "budgets", budgets)
        self._check_attack()
        self._check_numbers()
        self._parsed  # refuses what is no rule
        if self.adapted is None:
            self._check_pgd()
        else:
            self._check_adapted()

    @property
    def adapted(self) -> str | None:
        """Name of the torchattacks class, or None for our own PGD."""
        return self.attack[len(ADAPTED):] if self.attack.startswith(ADAPTED) else None

    @property
    def strengths(self) -> tuple[Budget, ...]:
        """The budgets, none for an attack of torchattacks."""
        return self.budgets or ()

    def shortfalls(self) -> tuple[str, ...]:
        """Say of each budget that cannot reach the surface of its ball why not."""
        if self.random_start:
            return ()
        return tuple(f"note: {why}" for budget in self.strengths if (why := budget.shortfall()))

    def rule(self) -> TargetRule:
        """Return the target rule, its file read; raises DataError when that cannot be done."""
        return self._parsed.loaded()

    @cached_property
    def _parsed(self) -> TargetRule:
        return parse_rule(self.targets)

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
            "budgets": [budget.as_dict() for budget in self.strengths],
            "random_start": self.random_start,
            "restarts": self.restarts,
            "loss": self.loss,
        }

    def _check_attack(self) -> None:
        if self.adapted or self.attack in ATTACKS:
            return
        if self.adapted == "":
            raise UsageError("an attack of torchattacks must be named",
                             seen=f"{self.attack} was seen",
                             hint="type for example --attack torchattacks:MIFGSM")
        names = (*ATTACKS.names(), ADAPTED + "NAME")
        raise unknown_name("attack", self.attack, names, listing=_LISTING)

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
        if not self.budgets:
            raise UsageError("there must be a budget to attack with",
                             seen="the list of them is empty",
                             hint="leave it out for the two of Table 10")
        if len(set(self.strengths)) < len(self.strengths):
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
