"""``sanrobust bench``: speed and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sanrobust.bench.settings import (ATTACKED, COMPILED, CONTENDERS, DTYPES, LOOPED, LOOPS,
                                      MEMORY, MODELS, OURS, OWN, PARTS, RESNET_OURS, SANS,
                                      USUAL_PARTS, VARIANTS, Loop, Settings, Shape, Threat)
from sanrobust.cli.group import Command
from sanrobust.options import Number, Whole
from sanrobust.cli.options import PATH
from sanrobust.errors import UsageError, shown_value
from sanrobust.preprocessing import LARGEST_SIDE
from sanrobust.zoo.names import canonical

_DEFAULT = Settings()


@click.command(cls=Command)
@click.argument("parts", nargs=-1, type=click.Choice((*PARTS, VARIANTS)),
                metavar="[operators] [models] [memory] [training] [attacks] [loop] [variants]")
@click.option("-m", "--model", "models", multiple=True, metavar="NAME",
              help="As in the other commands; an architecture alone has untrained weights; "
                   "repeatable. [default: the six SANs, and for attacks "
                   + ", ".join(ATTACKED) + ", for loop " + ", ".join(LOOPED) + "]")
@click.option("-c", "--contender", "contenders", multiple=True,
              type=click.Choice(tuple(CONTENDERS)), metavar="|".join(CONTENDERS),
              help="Who takes part; repeatable. [default: all but compiled]")
@click.option("--compile", "compiled", is_flag=True, help="Add torch.compile of the reference.")
@click.option("--formulation", "own", multiple=True, metavar="MODULE:FUNCTION",
              help="Add your own: a function of an attention layer and its features (B, C, H, W) "
                   "that returns what the layer does; in the working folder or on PYTHONPATH; "
                   "repeatable.")
@click.option("-b", "--batch-size", type=Whole(1), default=_DEFAULT.shape.batch_size,
              show_default=True, metavar="N", help="Images per batch.")
@click.option("--img-size", type=Whole(8, LARGEST_SIDE),
              default=_DEFAULT.shape.img_size, show_default=True, metavar="PIXELS")
@click.option("--attack", "attacks", multiple=True, type=click.Choice(_DEFAULT.threat.attacks),
              metavar="|".join(_DEFAULT.threat.attacks),
              help="Which attacks, of those that torchattacks has too; repeatable. [default: all]")
@click.option("--experiment", "experiments", multiple=True, type=click.Choice(LOOPS),
              metavar="|".join(LOOPS),
              help="Which command loop times; repeatable. [default: both]")
@click.option("--data", metavar="NAME|FOLDER",
              help="Images of loop, as in the other commands. [default: random photographs]")
@click.option("--images", type=Whole(1), metavar="N",
              help="Held-out digits that are attacked together, or images of loop. [default: "
                   f"{_DEFAULT.threat.images}, of loop {_DEFAULT.loop.images}]")
@click.option("--eps", type=Number(0, 255, "8"), default=_DEFAULT.threat.eps, show_default=True,
              metavar="LEVELS", help="L-inf radius of the attacks in 1/255.")
@click.option("--iters", type=Whole(1), default=_DEFAULT.threat.iters, show_default=True,
              metavar="N", help="Steps of the attacks with gradients; AutoAttack as published "
                                "has 100, that of torchattacks 10.")
@click.option("--queries", type=Whole(1), default=_DEFAULT.threat.queries, show_default=True,
              metavar="N", help="Queries of Square; AutoAttack has 5000.")
@click.option("--repeats", type=Whole(1), default=_DEFAULT.repeats,
              show_default=True, metavar="N", help="Healthy samples wanted of each contender.")
@click.option("--threads", type=Whole(1), metavar="N",
              help="Threads of the CPU. [default: torch's choice]")
@click.option("--peak", type=Number(0, 1e9, "100"), metavar="GFLOPS",
              help="Rate that the probe reaches here when nothing disturbs it. "
                   "[default: the best seen]")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]")
@click.option("--dtype", type=click.Choice(DTYPES), default=_DEFAULT.shape.dtype,
              show_default=True, help="Of weights and pixels; a CPU computes float32.")
@click.option("--out", type=PATH, default=Path("results/bench"), show_default=True,
              metavar="FOLDER", help="Folder of the files.")
def bench(**values: Any) -> None:
    """Time operators, models and attacks, and measure memory.

    Contenders: ours, as the evaluation computes; plain, the reference in plain torch; unfold, the
    layers as released with unfold for their compiled operators; ResNet50, also channels last.
    They take turns; a sample counts only if a compute probe ran at full speed before and after
    it. Writes OUT/bench.csv, samples.csv, bench.json and bench.png.

    Loop is a whole command against its bare model: decoding, transfer, records and table show as
    the part of the wall time that is not spent in the model.

    Variants are models and memory of every network in the paper's Tables 4 to 8 and of SASA, each
    against ResNet50 as the evaluation computes it.

    Training is a step with the gradients of all weights, and its memory, also with blocks computed
    again for them, of the reference and of ResNet26.

    Without an argument operators, models and memory are measured. Attacks are ours against those
    of torchattacks, on the same network and images; one run of each is counted: passes, CPU time,
    accuracy left, time in the network.
    """
    settings = _settings(values)
    from sanrobust.bench import plot
    from sanrobust.bench.run import run_bench
    from sanrobust.bench.screen import tables
    from sanrobust.cli.report import say
    results = run_bench(settings, say=say)
    click.echo(f"\n{tables(results)}\n")
    files = results.write()
    picture = plot.draw(results)
    say("wrote " + ", ".join(str(path) for path in (*files, picture) if path is not None))


def _own(name: str) -> str:
    if OWN not in name:
        raise UsageError("--formulation must be written module:function",
                         seen=f"it is {shown_value(name)}",
                         hint="write it like mykernels:attention")
    return name


def _canonical(name: str) -> str:
    from sanrobust.zoo.external import is_external
    return name if is_external(name) else canonical(name)


def _variants() -> tuple[str, ...]:
    """Return the networks of Tables 4 to 8 and of SASA, each once."""
    from sanrobust import paper
    table = paper.complexity()
    return tuple(dict.fromkeys(table[table["table"] != "3"]["model"]))


def _settings(values: dict[str, Any]) -> Settings:
    models = tuple(map(_canonical, values["models"]))
    usual, parts = _DEFAULT.contenders, values["parts"] or USUAL_PARTS
    if VARIANTS in parts:
        usual, models = (OURS, RESNET_OURS), models or _variants()
        others = [part for part in parts if part != VARIANTS]
        parts = tuple(dict.fromkeys((*others, MODELS, MEMORY)))
    contenders = (*(values["contenders"] or usual), *map(_own, values["own"]))
    if values["compiled"] and COMPILED not in contenders:
        contenders = (*contenders, COMPILED)
    return Settings(
        parts=parts, models=models or SANS, contenders=contenders,
        threat=Threat(models=models or ATTACKED,
                      attacks=values["attacks"] or _DEFAULT.threat.attacks,
                      images=values["images"] or _DEFAULT.threat.images,
                      **{name: values[name] for name in ("eps", "iters", "queries")}),
        loop=Loop(models=models or LOOPED, experiments=values["experiments"] or LOOPS,
                  images=values["images"] or _DEFAULT.loop.images, data=values["data"]),
        shape=Shape(batch_size=values["batch_size"], img_size=values["img_size"],
                    device=values["device"], dtype=values["dtype"]),
        repeats=values["repeats"], threads=values["threads"],
        peak=values["peak"], out=values["out"])
