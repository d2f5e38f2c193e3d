"""A training that is stopped and taken up again ends with the weights of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_sets import few

from sanrobust.errors import CheckpointError
from sanrobust.progress import Reporter
from sanrobust.training import job as module
from sanrobust.training.job import TrainingJob, is_trained, train_models
from sanrobust.training.loop import Training
from sanrobust.training.recipes import Recipe
from sanrobust.training.state import write_state
from sanrobust.zoo.build import build
from sanrobust.zoo.families.resnet import ResNetConfig

TINY = ResNetConfig(layers=(1, 1, 1, 1), width=4, stem="small", num_classes=10)
IMAGES = 160
SMALL = Recipe(img_size=16, epochs=3, batch_size=32)
RECIPES = {
    "per epoch": SMALL,
    "per step, warm, in parts": replace(SMALL, micro_batch=16, decay="step", warmup=1, flip=True,
                                        optimizer="adamw", lr=1e-3),
    "attacked": replace(SMALL, epochs=2, batch_size=80, eps=8, attack_iters=2),
    "mixed and averaged": replace(SMALL, mixup=0.4, ema=0.9)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a network that takes no time on a few images."""
    monkeypatch.setattr(module, "build", lambda architecture: build(TINY))
    monkeypatch.setattr(module, "open_sets", lambda source: (few(IMAGES), 10))


def _job(out: Path, recipe: Recipe) -> TrainingJob:
    return TrainingJob(models=("resnet26",), out=out, recipe=recipe, device="cpu", save_every=0)


class _Stop(Exception):
    pass


def _stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Stop training when so many of its states were written; 0: never."""
    write, left = module.write_state, iter(range(after - 1, -2, -1))

    def stopping(*given: object) -> None:
        write(*given)  # type: ignore[arg-type]
        if next(left) == 0:
            raise _Stop
    monkeypatch.setattr(module, "write_state", stopping if after else write)


def _stops(recipe: Recipe) -> Iterator[int]:
    steps = recipe.epochs * (IMAGES // recipe.batch_size)
    return iter((1, 1, max(1, steps - 4)))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_stopped_three_times_a_training_ends_as_if_it_had_not_been(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    whole, = train_models(_job(tmp_path / "whole", recipe))
    stopped = _job(tmp_path / "stopped", recipe)
    told: list[str] = []
    for after in _stops(recipe):
        with monkeypatch.context() as patched:
            _stopping(patched, after)
            with pytest.raises(_Stop):
                train_models(stopped, Reporter(say=told.append))
        assert not is_trained(stopped)
    path, = train_models(stopped, Reporter(say=told.append))
    assert sum("going on after epoch" in line for line in told) == 3
    assert path.read_bytes() == whole.read_bytes()
    rows = [(folder / "resnet26.digits" / "history.csv").read_text().splitlines()
            for folder in (whole.parent, path.parent)]
    cut = [[line.rsplit(",", 1)[0] for line in each] for each in rows]  # but for the speed
    assert cut[0] == cut[1] and len(cut[0]) == recipe.epochs + 1
    assert not (path.parent / "resnet26.digits" / "state.pt").exists()


def test_a_state_of_another_recipe_is_kept_and_not_taken_up(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["per epoch"]
    _stopping(monkeypatch, 2)
    with pytest.raises(_Stop):
        train_models(_job(tmp_path, recipe))
    monkeypatch.setattr(module, "write_state", write_state)
    told: list[str] = []
    train_models(_job(tmp_path, replace(recipe, epochs=1)), Reporter(say=told.append))
    assert any("is of another training and is kept as" in line for line in told)
    assert (tmp_path / "resnet26.digits" / "state.pt.previous").exists()


def test_a_damaged_state_is_one_sentence_and_fresh_begins_anew(tmp_path: Path) -> None:
    job = _job(tmp_path, replace(SMALL, epochs=1))
    state = tmp_path / "resnet26.digits" / "state.pt"
    state.parent.mkdir()
    state.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CheckpointError, match="state of a training must be whole.*--fresh"):
        train_models(job)
    path, = train_models(replace(job, fresh=True))
    assert path.exists()


def test_the_best_epoch_is_kept_beside_the_last(tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    marks = iter((10.0, 90.0, 40.0))
    finish = Training._finish

    def marked(self: Training, *given: object) -> None:
        finish(self, *given)  # type: ignore[arg-type]
        self.state.history[-1] = replace(self.state.history[-1], top1=next(marks))
        with torch.no_grad():
            first = next(self.network.parameters())
            first.fill_(self.state.epoch)
    monkeypatch.setattr(Training, "_finish", marked)
    path, = train_models(_job(tmp_path, RECIPES["per epoch"]))
    name = next(build(TINY).named_parameters())[0]
    best = load_file(path.parent / "resnet26.digits" / "best.safetensors")
    assert bool((best[name] == 2).all()) and bool((load_file(path)[name] == 3).all())


def test_killed_and_typed_again_the_command_goes_on(tmp_path: Path) -> None:
    """A process that gets SIGKILL leaves a state that the same command takes up."""
    typed = [sys.executable, "-m", "sanrobust", "train", "-m", "resnet26", "--epochs", "1",
             "-b", "256", "--img-size", "16", "--device", "cpu", "--save-every", "0", "--out",
             str(tmp_path)]
    state = tmp_path / "resnet26.digits" / "state.pt"
    with subprocess.Popen(typed, stderr=subprocess.DEVNULL) as process:
        limit = time.monotonic() + 120
        while not state.exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert state.exists()
    again = subprocess.run(typed, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "going on after epoch 0, step" in again.stderr
    assert (tmp_path / "resnet26.digits.safetensors").exists()
