"""``sanrobust pgd``: the attack of the paper's Table 10, and those of torchattacks."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from sanrobust.attacks.budget import FIELDS, Budget, parse_level
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.settings import ADAPTED, OWN, AttackSettings
from sanrobust.attacks.targets import rule_forms
from sanrobust.cli.group import Command
from sanrobust.cli.numbers import Whole
from sanrobust.cli.options import (data_options, model_options, parse_pairs, run_options,
                                   take_data, take_how, take_models)
from sanrobust.errors import UsageError


@click.command(cls=Command)
@click.option("--eps", metavar="LEVELS", help="Radius of the L-inf ball in 1/255: 8 or 8/255.")
@click.option("--step", metavar="LEVELS", help="Step length in 1/255: 2 or 2/255.")
@click.option("--iters", type=Whole(0, example=4), metavar="N", help="Number of steps.")
@click.option("--targets", default="random", show_default=True, metavar="|".join(rule_forms()),
              help="Target class of each image: drawn from the wrong ones, the wrong one with the "
                   "lowest or highest clean logit, class C for all, or the column target of a CSV "
                   "with image,target.")
@click.option("--loss", default="ce", show_default=True, metavar="|".join(LOSSES.names()),
              help="What our PGD descends: cross entropy toward the target, the highest other "
                   "logit minus the target's, or the difference-of-logits ratio.")
@click.option("--random-start/--no-random-start", default=False,
              help="Start our PGD uniformly in the ball instead of at the image.")
@click.option("--restarts", type=Whole(1), default=1, show_default=True, metavar="N",
              help="Random starts, of which the best for the attacker counts.")
@click.option("--seed", type=Whole(0, 2**63 - 1), default=0, show_default=True,
              help="Seed of targets and starts; each draw belongs to (seed, image).")
@click.option("--attack", default=OWN[0], show_default=True,
              metavar="|".join((*OWN, f"{ADAPTED}NAME")),
              help="Our PGD, or an attack of torchattacks, which is an extra: "
                   "pip install 'sanrobust[torchattacks]'.")
@click.option("-A", "--attack-option", "options", multiple=True, metavar="KEY=VALUE",
              help="Option of an attack of torchattacks, in its own units, such as eps=8/255; "
                   "repeatable.")
@model_options
@data_options
@run_options
def pgd(**values: Any) -> None:
    """White-box targeted PGD in the L-inf ball (the paper's Table 10), or another attack.

    Without --eps, --step and --iters both budgets of Table 10 run in one pass. An attack of
    torchattacks takes its strength from -A. Writes OUT/pgd.csv, .tex and .md.
    """
    models, data, how = take_models(values), take_data(values), take_how(values)
    settings = _settings(values)
    from sanrobust.cli.report import show
    from sanrobust.run import run_pgd
    show(partial(run_pgd, settings=settings), models, data, how)


def _settings(values: dict[str, Any]) -> AttackSettings:
    return AttackSettings(
        attack=values["attack"], budgets=_budgets(values), targets=values["targets"],
        loss=values["loss"], random_start=values["random_start"], restarts=values["restarts"],
        seed=values["seed"],
        options=tuple(sorted(parse_pairs(values["options"], "--attack-option").items())))


def _budgets(values: dict[str, Any]) -> tuple[Budget, ...]:
    """Return the one budget that was typed, or none, which leaves the choice to the settings."""
    missing = [f"--{name}" for name in FIELDS if values[name] is None]
    if len(missing) == len(FIELDS):
        return ()
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError("--eps, --step and --iters must come together",
                         seen=f"{' and '.join(missing)} {verb} missing",
                         hint="type for example --eps 8 --step 2 --iters 4")
    return (Budget(eps=parse_level(values["eps"], "--eps"),
                   step=parse_level(values["step"], "--step"), iters=values["iters"]),)
