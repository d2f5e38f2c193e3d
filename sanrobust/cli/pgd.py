"""``sanrobust pgd``: the paper's Table 10."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from sanrobust.attacks.budget import TABLE10, Budget, parse_level
from sanrobust.attacks.settings import AttackSettings
from sanrobust.cli.group import Command
from sanrobust.cli.options import (data_options, model_options, parse_pairs, run_options,
                                   take_data, take_how, take_models)
from sanrobust.errors import UsageError


@click.command(cls=Command)
@click.option("--eps", metavar="LEVELS", help="Radius of the L-inf ball in 1/255: 8 or 8/255.")
@click.option("--step", metavar="LEVELS", help="Step length in 1/255: 2 or 2/255.")
@click.option("--iters", type=click.IntRange(min=0), metavar="N", help="Steps.")
@click.option("--targets", default="random", show_default=True,
              metavar="random|least-likely|second|fixed:C|file:CSV",
              help="Target class of each image; the CSV has image,target.")
@click.option("--loss", default="ce", show_default=True, metavar="ce|margin|dlr",
              help="Loss toward the target that the attack descends.")
@click.option("--random-start/--no-random-start", default=False,
              help="Start uniformly in the ball instead of at the image.")
@click.option("--restarts", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
              help="Random starts, of which the best for the attacker counts.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="Seed of targets and starts; each draw belongs to (seed, image).")
@click.option("--attack", default="pgd", show_default=True, metavar="pgd|torchattacks:NAME",
              help="Our PGD, or any attack of torchattacks.")
@click.option("-A", "--attack-option", "options", multiple=True, metavar="KEY=VALUE",
              help="Keyword of a torchattacks attack, in its own units; repeatable.")
@model_options
@data_options
@run_options
def pgd(**values: Any) -> None:
    """White-box targeted PGD under an L-inf budget (the paper's Table 10).

    Without --eps, --step and --iters both budgets of Table 10 run in one pass. Writes
    OUT/pgd.csv, .tex and .md.
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
    given = {name: values[name] for name in ("eps", "step", "iters") if values[name] is not None}
    if not given:
        return TABLE10 if values["attack"] == "pgd" else ()
    missing = [f"--{name}" for name in ("eps", "step", "iters") if name not in given]
    if missing:
        raise UsageError("--eps, --step and --iters must come together",
                         seen=f"{' and '.join(missing)} is missing",
                         hint="type for example --eps 8 --step 2 --iters 4")
    return (Budget(eps=parse_level(given["eps"], "--eps"),
                   step=parse_level(given["step"], "--step"), iters=given["iters"]),)
