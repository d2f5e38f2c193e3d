"""``sanrobust train``: small networks on small images, with the paper's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sanrobust.choices import LARGEST_RATE, MOST_PROCESSES
from sanrobust.cli.group import Command
from sanrobust.options import Number, Whole
from sanrobust.cli.options import PATH


@click.command(cls=Command)
@click.option("-m", "--model", "models", multiple=True, metavar="ARCH",
              help="Architecture such as 'san10-pair(relation=hadamard)'; repeatable. "
                   "[default: the paper's nine]")
@click.option("--data", default="digits", show_default=True, metavar="NAME|FOLDER",
              help="Registered name with a training split, or an ImageFolder.")
@click.option("--held-out", type=PATH, metavar="FOLDER",
              help="ImageFolder of unseen images when --data is a folder; its classes are those "
                   "of the same name.")
@click.option("--data-root", type=PATH, envvar="SANROBUST_DATA_ROOT", metavar="FOLDER",
              help="Where registered datasets lie. [env: SANROBUST_DATA_ROOT]")
@click.option("--out", type=PATH, default=Path("weights"), show_default=True, metavar="FOLDER",
              help="Folder of the safetensors files and of their list.")
@click.option("--tag", metavar="TAG", help="Tag of the weights. [default: the data's name]")
@click.option("--epochs", type=Whole(1), default=30, show_default=True)
@click.option("-b", "--batch-size", type=Whole(2), default=64, show_default=True)
@click.option("--lr", type=Number(0, LARGEST_RATE, "0.05", min_open=True), default=0.05,
              show_default=True,
              help="Initial learning rate; falls to zero on a cosine.")
@click.option("--shift", type=Whole(0), default=3, show_default=True,
              metavar="PIXELS", help="Largest random translation.")
@click.option("--seed", type=Whole(0, 2**32 - 1), default=0, show_default=True)
@click.option("-j", "--workers", type=Whole(0, MOST_PROCESSES), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]")
def train(**values: Any) -> None:
    """Train the small-image form of the networks and write their weights.

    SGD, momentum 0.9, weight decay 1e-4, cosine decay, label smoothing 0.1, upright images
    without flips or rotations. `sanrobust train --out sanrobust/zoo/weights`, typed in the
    source tree, makes the embedded weights anew. Other weights of the same name are kept beside
    the new ones as FILE.previous.
    """
    from sanrobust import allocator
    from sanrobust.cli.report import say
    from sanrobust.train import Recipe, TrainingJob, train_models
    recipe = Recipe(**{name: values.pop(name) for name in
                       ("epochs", "batch_size", "lr", "shift", "seed")})
    allocator.tune()
    train_models(TrainingJob(recipe=recipe, **values), say=say)
