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
from sanrobust.training.feed import Moves, draw_moves
from sanrobust.training.loop import Sets, Training, torch_smoothing
from sanrobust.training.recipes import Recipe
from sanrobust.training.splits import check_sets
from sanrobust.zoo.build import build
from sanrobust.zoo.catalog import find
from sanrobust.zoo.families.resnet import ResNetConfig

TINY = ResNetConfig(layers=(1, 1, 1, 1), width=4, stem="small", num_classes=10)
CPU = torch.device("cpu")


def _trained(sets: Sets, recipe: Recipe) -> tuple[Training, list[str]]:
    told: list[str] = []
    torch.manual_seed(recipe.seed)
    training = Training(build(TINY), sets, recipe, device=CPU, classes=10)
    training.run(told.append)
    return training, told


def test_a_short_training_lowers_the_loss_and_beats_chance() -> None:
    sets = Sets(open_dataset("digits", root=None, split="train"),
                open_dataset("digits", root=None, num_samples=100))
    training, told = _trained(sets, Recipe(img_size=16, epochs=3, batch_size=32, shift=1))
    losses = [each.loss for each in training.state.history]
    assert losses[-1] < losses[0] - 0.3
    assert training.state.history[-1].top1 > 30 and not training.network.training
    assert [line.split(",")[0] for line in told] == [
        f"epoch {number}/3: loss {loss:.4f}" for number, loss in enumerate(losses, 1)]


def test_training_twice_gives_the_same_weights() -> None:
    sets = Sets(open_dataset("digits", root=None, split="train", num_samples=64),
                open_dataset("digits", root=None, num_samples=20))
    first, second = (_trained(sets, Recipe(epochs=1, batch_size=32))[0].network.state_dict()
                     for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_held_out_images_must_not_be_the_training_images() -> None:
    images = open_dataset("digits", root=None)
    with pytest.raises(DataError, match="must differ"):
        check_sets(Sets(images, images), 2)


def test_a_batch_larger_than_the_training_split_is_refused() -> None:
    train = open_dataset("digits", root=None, split="train", num_samples=8)
    with pytest.raises(DataError, match="lower --batch-size"):
        check_sets(Sets(train, open_dataset("digits", root=None)), 64)


def test_a_shift_moves_an_image_and_never_turns_it() -> None:
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    moves = draw_moves(2, Recipe(shift=2), torch.Generator().manual_seed(1))
    for old, new in zip(image, moves.applied(image), strict=True):
        found = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)
                 if torch.equal(new[:, 2:6, 2:6], old[:, 2 + dy:6 + dy, 2 + dx:6 + dx])]
        assert len(found) == 1


def test_a_flip_mirrors_the_images_that_are_drawn() -> None:
    images = torch.rand(4, 3, 8, 8)
    moved = Moves(flips=torch.tensor([True, False, False, True])).applied(images)
    assert torch.equal(moved[[0, 3]], images[[0, 3]].flip(3))
    assert torch.equal(moved[[1, 2]], images[[1, 2]])


def test_smoothing_takes_the_papers_mass_from_the_true_class() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    target = torch.tensor([[0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]])
    expected = -(target * logits.log_softmax(1)).sum()
    found = F.cross_entropy(logits, torch.tensor([0]), label_smoothing=torch_smoothing(0.1, 4))
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


@pytest.mark.parametrize(("field", "value"), [
    ("lr", 0), ("lr", float("nan")), ("shift", 32), ("seed", 2**63), ("form", "large"),
    ("crop", "none"), ("decay", "never"), ("precision", "float8"), ("warmup", 30),
    ("micro_batch", 48), ("eps", 0.03), ("attack_step", "x")])
def test_a_recipe_that_cannot_be_followed_is_refused_by_its_option(field: str,
                                                                   value: object) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} must be"):
        Recipe(**{field: value})  # type: ignore[arg-type]


def test_no_shift_moves_nothing() -> None:
    pixels = torch.rand(2, 3, 8, 8)
    assert draw_moves(2, Recipe(shift=0), torch.Generator()).applied(pixels) is pixels
