"""The recipe trains, sees upright training images only, and writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from conftest import Command
from sanrobust.data.datasets import open_dataset
from sanrobust.errors import DataError, UsageError
from sanrobust.files import sha256_file
from sanrobust.train import (Recipe, _check_recipe, _torch_smoothing, random_shift,
                             train_network)
from sanrobust.zoo.catalog import SMALL_PREPROCESSING, find
from sanrobust.zoo.families.resnet import ResNetConfig

TINY = ResNetConfig(layers=(1, 1, 1, 1), width=4, stem="small", num_classes=10)
CPU = torch.device("cpu")


def test_a_short_training_lowers_the_loss_and_beats_chance() -> None:
    train = open_dataset("digits", root=None, split="train")
    test = open_dataset("digits", root=None, num_samples=100)
    told: list[str] = []
    trained = train_network(TINY, train, test, recipe=Recipe(epochs=3, batch_size=32, shift=1),
                            preprocessing=SMALL_PREPROCESSING, device=CPU, say=told.append)
    losses = [float(line.rsplit(" ", 1)[1]) for line in told]
    assert losses[-1] < losses[0] - 0.3
    assert trained.top1 > 30 and trained.images == 100
    assert not trained.network.training


def test_training_twice_gives_the_same_weights() -> None:
    train = open_dataset("digits", root=None, split="train", num_samples=64)
    test = open_dataset("digits", root=None, num_samples=20)
    first, second = (train_network(TINY, train, test, recipe=Recipe(epochs=1, batch_size=32),
                                   preprocessing=SMALL_PREPROCESSING, device=CPU,
                                   say=lambda _: None).network.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_held_out_images_must_not_be_the_training_images() -> None:
    images = open_dataset("digits", root=None)
    with pytest.raises(DataError, match="must differ"):
        train_network(TINY, images, images, recipe=Recipe(), preprocessing=SMALL_PREPROCESSING,
                      device=CPU, say=print)


def test_a_batch_larger_than_the_training_split_is_refused() -> None:
    train = open_dataset("digits", root=None, split="train", num_samples=8)
    with pytest.raises(DataError, match="lower --batch-size"):
        train_network(TINY, train, open_dataset("digits", root=None), recipe=Recipe(),
                      preprocessing=SMALL_PREPROCESSING, device=CPU, say=print)


def test_a_shift_moves_an_image_and_never_turns_it() -> None:
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    shifted = random_shift(image, limit=2, generator=torch.Generator().manual_seed(1))
    for old, new in zip(image, shifted, strict=True):
        moves = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
                 if torch.equal(new[:, 2:6, 2:6], old[:, 2 + dy:6 + dy, 2 + dx:6 + dx])]
        assert len(moves) == 1


def test_smoothing_takes_the_papers_mass_from_the_true_class() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    target = torch.tensor([[0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]])
    expected = -(target * logits.log_softmax(1)).sum()
    found = F.cross_entropy(logits, torch.tensor([0]), label_smoothing=_torch_smoothing(0.1, 4))
    assert found == pytest.approx(expected.item(), abs=1e-6)


def test_the_command_writes_weights_that_the_zoo_takes(command: Command, tmp_path: Path) -> None:
    done = command("train", "-m", "resnet26", "--epochs", 1, "-b", 256, "--tag", "try",
                   "--out", tmp_path)
    assert done.exit_code == 0, done.output
    path = tmp_path / "resnet26.try.safetensors"
    listed = json.loads((tmp_path / "try.json").read_text())["resnet26"]
    assert listed["sha256"] == sha256_file(path) and listed["n"] == 451
    assert listed["command"] == ("sanrobust train --model resnet26 --data digits --tag try "
                                 "--epochs 1 --batch-size 256")
    assert command("zoo", "add", "resnet26.try", path).exit_code == 0
    assert find("resnet26.try").architecture == find("resnet26.untrained-small").architecture
    measured = command("rotate", "-m", "resnet26.try", "--out", tmp_path)
    assert measured.exit_code == 0 and "check preprocessing" not in measured.output


def test_a_folder_needs_a_held_out_one(command: Command, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        from PIL import Image
        Image.new("RGB", (32, 32)).save(tmp_path / name / "x.png")
    result = command("train", "--data", tmp_path)
    assert result.exit_code == 2 and "--held-out FOLDER" in result.output


@pytest.mark.parametrize(("recipe", "option"), [
    (Recipe(lr=0), "--lr"), (Recipe(lr=float("nan")), "--lr"), (Recipe(shift=32), "--shift"),
    (Recipe(seed=2**63), "--seed")])
def test_a_recipe_that_cannot_be_followed_is_refused_by_its_option(recipe: Recipe,
                                                                   option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} must be"):
        _check_recipe(recipe, 32)


def test_no_shift_moves_nothing() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    assert random_shift(pixels, limit=0, generator=torch.Generator()) is pixels
