"""``sanrobust train``: networks of the zoo, by a recipe of the literature or one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sanrobust.choices import MOST_PROCESSES
from sanrobust.cli.group import Command
from sanrobust.cli.options import PATH
from sanrobust.options import Number, Whole, settings_options, take_settings
from sanrobust.training.recipes import RECIPES, Recipe


def _recipe_options(command: click.Command) -> click.Command:
    """Add an option for every field of a recipe."""
    command.params += settings_options(Recipe)
    return command


@_recipe_options
@click.command(cls=Command)
@click.option("-m", "--model", "models", multiple=True, metavar="ARCH",
              help="Architecture such as 'san10-pair(relation=hadamard)'; repeatable. "
                   "[default: the paper's nine]")
@click.option("--data", default="digits", show_default=True, metavar="NAME|FOLDER",
              help="Registered name with a training split, or an ImageFolder.")
@click.option("--held-out", type=PATH, metavar="FOLDER",
              help="ImageFolder of unseen images when --data is a folder; its classes are those "
                   "of the same name.")
@click.option("--val-fraction", type=Number(0, 1, "0.1", min_open=True), metavar="PART",
              help="Hold out this part of the training images of each class instead.")
@click.option("--val-per-class", type=Whole(1, example=50), metavar="N",
              help="Or so many of each class, as the paper did for its Tables 4 to 8 (50).")
@click.option("--data-root", type=PATH, envvar="SANROBUST_DATA_ROOT", metavar="FOLDER",
              help="Where registered datasets lie. [env: SANROBUST_DATA_ROOT]")
@click.option("--out", type=PATH, default=Path("weights"), show_default=True, metavar="FOLDER",
              help="Folder of the safetensors files, of their list, and of a folder for each with "
                   "its history.")
@click.option("--tag", metavar="TAG", help="Tag of the weights. [default: the data's name]")
@click.option("--finetune", type=PATH, metavar="FILE",
              help="Begin with the weights in FILE; a head for other classes is left out.")
@click.option("-j", "--workers", type=Whole(0, MOST_PROCESSES), default=0, show_default=True,
              help="Processes that decode images.")
@click.option("--grad-checkpointing", is_flag=True,
              help="Keep of each block its input alone and compute the block again for its "
                   "gradients: less memory, more time, the same weights.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]")
@click.option("--fresh/--resume", default=False,
              help="Train anew, or go on with what was stopped. [default: resume]")
@click.option("--save-every", type=Number(0, 1e6, "60"), default=60.0, show_default=True,
              metavar="SECONDS", help="How often the state of a training is written.")
@click.option("--recipe", "named", default="small", show_default=True,
              metavar="|".join(RECIPES.names()),
              help="Whose choices hold where no option below makes another.")
def train(**values: Any) -> None:
    """Train networks and write their weights, histories and accuracies.

    Recipes: small, upright images of 32 pixels without flips or rotations, so that both stay
    unseen; paper, that of Zhao, Jia and Koltun 2020 for ImageNet; scenes, a reproduction of it on
    six classes; sasa, for networks of Ramachandran et al. 2019; adversarial, Madry et al. 2018.
    All take SGD with momentum 0.9 (scenes AdamW, as SGD hardly moves at its rate), a cosine, weight
    decay 1e-4 and label smoothing 0.1 (adversarial none) but where options say otherwise. A stopped
    training goes on where it was, with the same weights as if it had not been stopped; under
    torchrun, processes share every batch. Other weights of the same name are kept beside the new
    ones as FILE.previous.
    """
    from sanrobust import allocator
    from sanrobust.cli.progress import progress
    from sanrobust.cli.report import say
    from sanrobust.progress import Reporter
    from sanrobust.training.job import TrainingJob, train_models
    chosen = {name: value for name, value in take_settings(Recipe, values).items()
              if value is not None}
    recipe = replace(RECIPES.get(values["named"]), **chosen)
    allocator.tune()
    train_models(TrainingJob(recipe=recipe, **values), Reporter(say=say, progress=progress()))
