"""What attack a run makes: one frozen value, checked before torch is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from numbers import Real
from typing import ClassVar

from sanrobust.attacks.attack import Attack
from sanrobust.attacks.budget import Budget, BudgetParts, typed_budgets, whole_number
from sanrobust.attacks.catalog import ADAPTED, ATTACKS, PGD
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.targets import TargetRule, parse_rule, rule_forms
from sanrobust.attacks.versions import STANDARD, VERSIONS, version_of
from sanrobust.errors import UsageError, shown_value
from sanrobust.options import Number, Whole, option, parse_pairs, setting
from sanrobust.registry import unknown_name

_LISTING = "sanrobust pgd --help"


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """An attack and everything that can change its numbers.

    Raises UsageError for a name, number or combination that cannot be meant.
    """

    attack: str = setting(PGD, option(
        "--attack", show_default=True, metavar="|".join((*ATTACKS.own_names(), f"{ADAPTED}NAME")),
        help="An attack of ours, or one of torchattacks, which is an extra: "
             "pip install 'sanrobust[torchattacks]'."))
    norm: str = setting("linf", option(
        "--norm", show_default=True, metavar="|".join(NORMS.names()),
        help="Norm of the ball. Radii and steps are in 1/255 in linf, and in the pixel range "
             "[0, 1] in l2."))
    budgets: tuple[Budget, ...] | None = setting(
        None,
        option("--eps", metavar="RADII", help="Radius of the ball: 8 or 8/255 in linf, 0.5 in l2; "
                                              "several with commas, all measured in one pass."),
        option("--step", metavar="LENGTH", help="Step length in the same unit: 2 or 2/255."),
        option("--iters", type=Whole(0, example=4), metavar="N", help="Number of steps."),
        read=typed_budgets,
        doc="radius, step and number of steps, each a `Budget`, three numbers, or a radius alone "
            "for an attack that knows the rest; all run in one pass. None: the two of Table 10 for "
            "our PGD. An attack of torchattacks takes its strength from ``options``.")
    targets: str | None = setting(None, option(
        "--targets", show_default="random with pgd, none with the others",
        metavar="|".join(rule_forms()),
        help="Target class of each image: drawn from the wrong ones, the wrong one with the "
             "lowest or highest clean logit, class C for all, the column target of a CSV "
             "with image,target, or none: away from the label."))
    loss: str = setting("ce", option(
        "--loss", show_default=True, metavar="|".join(LOSSES.names()),
        help="What PGD descends: cross entropy toward the target, the highest other "
             "logit minus the target's, or the difference-of-logits ratio."))
    momentum: float | None = setting(None, option(
        "--momentum", type=Number(0, 10, "1"), metavar="MU",
        show_default="1 with mifgsm, else 0",
        help="Share of the last direction that a step of PGD keeps."))
    random_start: bool = setting(False, option(
        "--random-start/--no-random-start",
        help="Start PGD uniformly in the ball instead of at the image."))
    restarts: int = setting(1, option(
        "--restarts", type=Whole(1), show_default=True, metavar="N",
        help="Random starts, of which the best for the attacker counts."))
    version: str = setting(STANDARD, option(
        "--version", show_default=True, metavar="|".join((*VERSIONS, "A,B")),
        help="Which attacks autoattack runs, or names of your own choice such as apgd-ce,square."))
    queries: int = setting(5000, option(
        "--queries", type=Whole(0, example=5000), show_default=True, metavar="N",
        help="Queries of square, after the first."))
    seed: int = setting(0, option(
        "--seed", type=Whole(0, 2**63 - 1), show_default=True,
        help="Seed of all that is drawn; each draw belongs to (seed, image)."))
    options: tuple[tuple[str, str], ...] = setting(
        (),
        option("-A", "--attack-option", "options", multiple=True, metavar="KEY=VALUE",
               help="Option of an attack of torchattacks, in its own units, such as eps=8/255; "
                    "repeatable."),
        read=partial(parse_pairs, option="--attack-option"),
        doc="keywords of an attack of torchattacks, in its own units.")

    # Settings that only some attacks read, and the values that mean "not given".
    _UNGIVEN: ClassVar[dict[str, object]] = {
        "norm": "linf", "targets": None, "loss": "ce", "momentum": None, "random_start": False,
        "restarts": 1, "version": STANDARD, "queries": 5000}

    def __post_init__(self) -> None:
        self._check_texts()
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        texts = sorted((str(key), str(value)) for key, value in pairs)
        object.__setattr__(self, "options", tuple(texts))
        self._check_attack()
        self._check_numbers()
        self._check_unread()
        self._complete()
        if self.adapted is None:
            self._check_own()

    def _complete(self) -> None:
        """Put in what was not given."""
        own = self.own
        budgets: tuple[Budget, ...] = ()
        if own is not None and (self.budgets is None or isinstance(self.budgets, BudgetParts)):
            budgets = own.strengths.budgets(self.budgets, norm=self.norm, attack=self.attack)
        elif own is not None and self.budgets is not None:
            budgets = own.strengths.given(self.budgets, norm=self.norm)
        object.__setattr__(self, "budgets", budgets)
        if self.targets is None:
            object.__setattr__(self, "targets", own.targets if own else "random")
        if self.momentum is None:
            object.__setattr__(self, "momentum", own.momentum if own else 0.0)
        self._parsed  # refuses what is no rule

    @property
    def own(self) -> Attack | None:
        """The attack of ours, or of a package that adds one; None for one of torchattacks."""
        return ATTACKS.get(self.attack) if self.adapted is None else None

    @property
    def adapted(self) -> str | None:
        """Name of the torchattacks class, or None for an attack of ours."""
        return self.attack[len(ADAPTED):] if self.attack.startswith(ADAPTED) else None

    @property
    def strengths(self) -> tuple[Budget, ...]:
        """The budgets, none for an attack of torchattacks."""
        return self.budgets or ()

    def shortfalls(self) -> tuple[str, ...]:
        """Say of each budget that cannot reach the surface of its ball why not."""
        if self.random_start:
            return ()
        unit = "/255" if NORMS.get(self.norm).levels else ""
        return tuple(f"note: {why}" for budget in self.strengths
                     if (why := budget.shortfall(unit)))

    def rule(self) -> TargetRule:
        """Return the target rule, its file read; raises DataError when that cannot be done."""
        return self._parsed.loaded()

    @cached_property
    def _parsed(self) -> TargetRule:
        return parse_rule(str(self.targets))

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
        own = ATTACKS.get(self.attack)
        shown["budgets"] = [budget.as_dict() for budget in self.strengths]
        shown.update({name: getattr(self, name) for name in own.reads if name != "targets"})
        if "targets" not in own.reads:
            del shown["targets"]
        # What earlier versions did not know of is left out where it is as it was for them.
        former = {"norm": "linf", "momentum": 0.0}
        shown["norm"] = self.norm
        return {name: value for name, value in shown.items()
                if name not in former or value != former[name]}

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
        for name in ("attack", "norm", "targets", "loss", "version"):
            value = getattr(self, name)
            if not isinstance(value, str) and (name, value) != ("targets", None):
                raise UsageError(f"{name} must be a name", seen=f"it is {shown_value(value)}",
                                 hint=f"see {_LISTING}")
        NORMS.get(self.norm)
        LOSSES.get(self.loss)
        version_of(self.version)

    def _check_numbers(self) -> None:
        for name, least, example in (("seed", 0, "--seed 0"), ("restarts", 1, "--restarts 5"),
                                     ("queries", 0, "--queries 5000")):
            number = whole_number(getattr(self, name), name, least=least, example=example)
            object.__setattr__(self, name, number)
        if not isinstance(self.random_start, bool):
            raise UsageError("random_start must be True or False",
                             seen=f"it is {self.random_start!r}", hint="leave it out for False")
        if self.momentum is not None:
            object.__setattr__(self, "momentum", _momentum(self.momentum))
        keys = [key for key, _ in self.options]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError("an attack option must be given once",
                                 seen=f"{key} was given {keys.count(key)} times",
                                 hint="keep one of them")

    def _check_unread(self) -> None:
        """Refuse what the attack would not read."""
        own = self.own
        reads = ("norm", *own.reads) if own else ("targets",)
        # What `_complete` puts in is as good as not given.
        unset = {**self._UNGIVEN, "targets": own.targets if own else "random",
                 "momentum": own.momentum if own else 0.0}
        given = [name for name, value in unset.items() if name not in reads
                 and getattr(self, name) not in (value, self._UNGIVEN[name])]
        given += ["budgets"] if own is None and self.budgets else []
        if given:
            raise UsageError(
                f"{given[0].replace('_', '-')} must come with an attack that reads it"
                if own else f"{given[0].replace('_', '-')} must come with our own attack, pgd",
                seen=f"the attack is {self.attack}",
                hint=f"leave out {given[0].replace('_', '-')}" if own
                else "give that attack its own options with -A key=value")
        if own and self.options:
            raise UsageError("attack options must belong to an attack of torchattacks",
                             seen=f"the attack is {self.attack} and {self.options[0][0]} was given",
                             hint="use --eps, --step and --iters, or --attack torchattacks:NAME")

    def _check_own(self) -> None:
        if not self.budgets:
            raise UsageError("there must be a budget to attack with",
                             seen="the list of them is empty",
                             hint="leave it out for the two of Table 10")
        if len(set(self.strengths)) < len(self.strengths):
            raise UsageError("the budgets of a run must differ", seen="one of them is given twice",
                             hint="leave the second one out")
        own = ATTACKS.get(self.attack)
        if self.restarts > 1 and "random_start" in own.reads and not self.random_start:
            raise UsageError("several restarts must start at random points",
                             seen=f"restarts is {self.restarts} and every start is the clean image",
                             hint="add --random-start or leave out --restarts")


def _momentum(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 10:
        raise UsageError("momentum must be a number from 0 to 10",
                         seen=f"it is {shown_value(value)}", hint="type for example 1.0")
    return float(value)
