"""``sanrobust check``: what is wrong with a network is said by its own line, and of sound ones none.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sanrobust
from conftest import Command
from sanrobust.errors import DataError, ModelError, UsageError
from sanrobust.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from sanrobust.validity.catalog import LINES
from sanrobust.zoo.catalog import PAPER_ORDER
from small_networks import PLAIN, Small, trained

QUICK = {"iters": 10, "queries": 50}


@cache
def sound() -> nn.Module:
    """A network without a fault."""
    return trained(Small())


class Broken(nn.Module):
    """The sound network, used wrongly."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = trained(Small(), epochs=0)
        self.inner.load_state_dict(sound().state_dict())
        self.use = use
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.use(self.inner, pixels)


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The values of ``hard`` with the gradient of ``soft``."""
    return hard.detach() + soft - soft.detach()


def one_hot(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits)


def batch_norm_in_train_mode() -> nn.Module:
    model = Broken(lambda net, x: net(x))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return model


def without_running_statistics() -> nn.Module:
    model = Broken(lambda net, x: net(x))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def dropout_in_train_mode() -> nn.Module:
    model = Broken(lambda net, x: net(x))
    model.inner.drop.train()
    return model


def dropped(net: nn.Module, pixels: Tensor) -> Tensor:
    return net.fc(F.dropout(net.body(pixels).flatten(1), 0.3))  # type: ignore[operator]


def normalised_twice(mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """A network that normalises by itself, as it was trained, and is given what already is."""
    middle, width = (torch.tensor(each).view(-1, 1, 1) for each in (mean, std))

    def once(pixels: Tensor) -> Tensor:
        return (pixels - middle) / width

    # The sound network was trained on pixels: of normalised ones it is given back the pixels.
    return Broken(lambda net, x: net(once(once(x)) * width + middle))


# What is wrong, and the line that must say so, alone.
BROKEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no gradient reaches the pixels": (
        lambda: Broken(lambda net, x: net(x.detach())), "gradients"),
    "detached, with a dead way": (
        lambda: Broken(lambda net, x: net(x.detach()) + 0 * x.sum((1, 2, 3)).unsqueeze(1)),
        "gradients"),
    "detached, with another way": (
        lambda: Broken(lambda net, x: net(x.detach() + 1e-7 * x)), "gradients"),
    "saturated": (lambda: Broken(lambda net, x: 1000 * net(x)), "saturation"),
    "argmax, straight through": (
        lambda: Broken(lambda net, x: straight(one_hot(net(x)), net(x).softmax(1))), "logits"),
    "argmax of another scale, straight through": (
        lambda: Broken(lambda net, x: straight(10 * one_hot(net(x)), net(x))), "differences"),
    "quantised input": (lambda: Broken(lambda net, x: net((x * 8).round() / 8)), "gradients"),
    "quantised input, straight through": (
        lambda: Broken(lambda net, x: net(straight((x * 8).round() / 8, x))), "differences"),
    "half of the gradient": (
        lambda: Broken(lambda net, x: net(x / 2 + x.detach() / 2)), "differences"),
    "dropout left on": (lambda: Broken(dropped), "repeated pass"),
    "dropout in train mode": (dropout_in_train_mode, "eval mode"),
    "noise layer": (
        lambda: Broken(lambda net, x: net(x + 0.05 * torch.randn_like(x))), "repeated pass"),
    "batch norm in train mode": (batch_norm_in_train_mode, "eval mode"),
    "batch norm without statistics": (without_running_statistics, "batch of one"),
    "probabilities": (lambda: Broken(lambda net, x: net(x).softmax(1)), "logits"),
    "normalised twice by ImageNet's": (
        lambda: normalised_twice(IMAGENET_MEAN, IMAGENET_STD), "normalisation"),
    "normalised twice by a half": (
        lambda: normalised_twice((0.5,) * 3, (0.5,) * 3), "normalisation"),
    "pixels to 255": (lambda: Broken(lambda net, x: net(x / 255)), "normalisation"),
    "labels turned": (lambda: Broken(lambda net, x: net(x).roll(1, 1)), "label order"),
    "labels reversed": (lambda: Broken(lambda net, x: net(x).flip(1)), "label order"),
    "two labels swapped": (
        lambda: Broken(lambda net, x: net(x)[:, [0, 1, 2, 8, 4, 5, 6, 7, 3, 9]]), "label order"),
}


def verdicts(model: nn.Module, out: Path, **settings: object) -> pd.Series[str]:
    """The verdict of each line, by its name."""
    made = sanrobust.check(model, preprocessing=PLAIN, out=out, **{**QUICK, **settings})
    return made.table.set_index("line")["verdict"]


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_told_by_its_own_line_alone(fault: str, tmp_path: Path) -> None:
    build, line = BROKEN[fault]
    found = verdicts(build(), tmp_path)
    assert list(found.index) == list(LINES.names())
    assert found.index[found == "wrong"].tolist() == [line]
    # What is not judged rests on that line, if only through another.
    assert {name for name in found.index if found[name] == "not judged"} == resting_on(line)


def resting_on(line: str) -> set[str]:
    """The lines that rest on one."""
    found = {line}
    for each in LINES:
        if found & {*each.rests_on}:
            found.add(each.name)
    return found - {line}


def test_every_line_rests_on_earlier_ones() -> None:
    names = LINES.names()
    for place, line in enumerate(LINES):
        assert set(line.rests_on) <= set(names[:place]), line.name
