"""How a network is trained: one frozen value, and those that the literature gives; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from sanrobust.attacks.budget import LEVELS, parse_level
from sanrobust.choices import LARGEST_RATE
from sanrobust.errors import UsageError, shown_value
from sanrobust.options import Number, Whole, option, setting
from sanrobust.preprocessing import LARGEST_SIDE, Preprocessing
from sanrobust.registry import Registry
from sanrobust.zoo.catalog import SMALL_PREPROCESSING

FORMS, CROPS, STEPPINGS = ("small", "imagenet"), ("whole", "random"), ("epoch", "step")
PRECISIONS = ("float32", "bfloat16")
_MOST_SEEDS = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every choice that decides trained weights, besides the network and the images.

    The defaults are those of `RECIPES`' ``small``. Losses and rates are per step, a step being one
    update of the weights. Raises UsageError for a value that cannot be meant, naming its option.
    """

    form: str = setting("small", option(
        "--form", default=None, metavar="|".join(FORMS),
        help="Which form of the networks: that for small images, or that for ImageNet."))
    img_size: int = setting(32, option(
        "--img-size", default=None, type=Whole(8, LARGEST_SIDE, 224), metavar="S",
        help="Side of the square that networks see, in pixels."))
    epochs: int = setting(30, option(
        "--epochs", default=None, type=Whole(1, example=30), metavar="N",
        help="Passes over the training images."))
    batch_size: int = setting(64, option(
        "-b", "--batch-size", default=None, type=Whole(2, example=64), metavar="B",
        help="Images per step, of all processes together; what an epoch leaves over is left out."))
    micro_batch: int | None = setting(None, option(
        "--micro-batch", default=None, type=Whole(2, example=32), metavar="B",
        help="Images per forward pass; a step adds up the gradients of as many as make a batch. "
             "Batch statistics are those of a pass. [default: the batch]"))
    optimizer: str = setting("momentum", option(
        "--optimizer", default=None, metavar="NAME",
        help="Optimizer by its name in timm: momentum is SGD, sgd Nesterov's, adamw..."))
    lr: float = setting(0.05, option(
        "--lr", default=None, type=Number(0, LARGEST_RATE, "0.05", min_open=True), metavar="RATE",
        help="Initial learning rate; it falls to zero on a cosine."))
    decay: str = setting("epoch", option(
        "--decay", default=None, metavar="|".join(STEPPINGS),
        help="Whether the rate falls after each epoch or after each step."))
    warmup: int = setting(0, option(
        "--warmup", default=None, type=Whole(0, example=5), metavar="N",
        help="Epochs in which the rate rises on a line before it falls."))
    momentum: float = setting(0.9, option(
        "--momentum", default=None, type=Number(0, 1, "0.9"), metavar="PART",
        help="Share of the last direction that a step keeps."))
    weight_decay: float = setting(1e-4, option(
        "--weight-decay", default=None, type=Number(0, 1, "1e-4"), metavar="PART",
        help="Of all parameters."))
    label_smoothing: float = setting(0.1, option(
        "--label-smoothing", default=None, type=Number(0, 0.99, "0.1"), metavar="PART",
        help="Mass taken from the true class and shared by the others."))
    crop: str = setting("whole", option(
        "--crop", default=None, metavar="|".join(CROPS),
        help="Train on images cut as in testing, or on a random part of 8 to 100 % of the area at "
             "a random ratio (Szegedy et al. 2015)."))
    shift: int = setting(3, option(
        "--shift", default=None, type=Whole(0, example=3), metavar="PIXELS",
        help="Largest random translation, the border repeated."))
    flip: bool = setting(False, option(
        "--flip/--no-flip", default=None, help="Mirror every other image, left to right."))
    mixup: float = setting(0.0, option(
        "--mixup", default=None, type=Number(0, 100, "0.2"), metavar="ALPHA",
        help="Train on images mixed in pairs, with shares drawn from Beta(ALPHA, ALPHA) (Zhang et "
             "al. 2018); 0 for none."))
    ema: float = setting(0.0, option(
        "--ema", default=None, type=Number(0, 0.99999, "0.999"), metavar="PART",
        help="Keep a moving average of the weights, with this share of what it was after each "
             "step; it is what is measured and written. 0 for none."))
    eps: float | str = setting(0.0, option(
        "--eps", default=None, metavar="LEVEL",
        help="Train on images attacked within this L-inf radius in 1/255 (Madry et al. 2018); 0 "
             "for none."))
    attack_step: float | str = setting(2.0, option(
        "--attack-step", default=None, metavar="LEVEL", help="Step of that attack, in 1/255."))
    attack_iters: int = setting(7, option(
        "--attack-iters", default=None, type=Whole(1, example=7), metavar="N",
        help="Steps of that attack, from a random start."))
    precision: str = setting("float32", option(
        "--precision", default=None, metavar="|".join(PRECISIONS),
        help="bfloat16 computes most layers in it, with float32 weights."))
    seed: int = setting(0, option(
        "--seed", default=None, type=Whole(0, _MOST_SEEDS - 1),
        help="Of initial weights, order, crops, shifts and flips."))

    def __post_init__(self) -> None:
        for name, legal in (("form", FORMS), ("crop", CROPS), ("decay", STEPPINGS),
                            ("precision", PRECISIONS)):
            if getattr(self, name) not in legal:
                raise _wrong(name, " or ".join(legal), getattr(self, name), legal[0])
        for name in ("eps", "attack_step"):
            given = getattr(self, name)
            text = given if isinstance(given, str) else f"{given:g}"
            object.__setattr__(self, name, parse_level(text, _option(name)))
        if not (math.isfinite(self.lr) and 0 < self.lr <= LARGEST_RATE):
            raise _wrong("lr", f"a number above 0 and at most {LARGEST_RATE:g}", self.lr, 0.05)
        if self.shift >= self.img_size:
            raise _wrong("shift", f"smaller than the {self.img_size} pixels of an image",
                         self.shift, 3)
        if not abs(self.seed) < _MOST_SEEDS:
            raise _wrong("seed", f"smaller than {_MOST_SEEDS}", self.seed, 1)
        if self.warmup >= self.epochs:
            raise _wrong("warmup", f"smaller than the {self.epochs} epochs", self.warmup, 0)
        if self.mixup and self.radius:
            raise UsageError("a recipe must mix images or attack them",
                             seen=f"--mixup is {self.mixup:g} and --eps {float(self.eps):g}",
                             hint="type --mixup 0 or --eps 0")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise _wrong("micro_batch", f"a divisor of the {self.batch_size} images of a batch",
                         self.micro_batch, self.batch_size)

    @property
    def radius(self) -> float:
        """The attack's radius in the pixel range; 0 where there is no attack."""
        return float(self.eps) / LEVELS

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for testing, and where nothing is cut at random for training."""
        if self.form == "small":
            return replace(SMALL_PREPROCESSING, img_size=self.img_size)
        return Preprocessing(img_size=self.img_size)

    def options(self, name: str) -> list[str]:
        """Return the options that make this recipe out of the one called ``name``."""
        base, parts = RECIPES.get(name), []
        for each in fields(self):
            value = getattr(self, each.name)
            if value != getattr(base, each.name):
                flag = _option(each.name)
                parts += ([flag if value else _option(f"no_{each.name}")] if isinstance(value, bool)
                          else [flag, f"{value:g}" if isinstance(value, float) else str(value)])
        return parts


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _wrong(name: str, rule: str, seen: Any, example: Any) -> UsageError:
    return UsageError(f"{_option(name)} must be {rule}", seen=f"it is {shown_value(seen)}",
                      hint=f"type for example {_option(name)} {example}")


_PAPER = Recipe(form="imagenet", img_size=224, epochs=100, batch_size=256, lr=0.1, decay="step",
                crop="random", shift=0, flip=True)

RECIPES: Registry[Recipe] = Registry("recipe", listing="sanrobust train --help")
"""Recipes by name. ``paper``: Zhao, Jia and Koltun 2020, section 5.1. ``scenes``: a reproduction on
six classes of photographs of 150 pixels, whose report gives the batch, rate and epochs alone; at
that rate SGD hardly moves, so the optimizer is AdamW.
``sasa``: the paper's recipe for the networks of Ramachandran et al. 2019, whose own takes another
schedule; ours in everything. ``small``: upright images without flips, so that both stay unseen.
``adversarial``: Madry et al. 2018, with flips."""
RECIPES.add("small", Recipe())
RECIPES.add("paper", _PAPER)
RECIPES.add("scenes", replace(_PAPER, epochs=45, batch_size=64, lr=1e-4, optimizer="adamw"))
RECIPES.add("sasa", replace(_PAPER, epochs=130, warmup=10))
RECIPES.add("adversarial", Recipe(eps=8, flip=True, label_smoothing=0.0))
