"""The parts of training: attacks in the loop, parts of a batch, precision, splits, beginnings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import Command
from train_sets import few
from sanrobust.attacks.budget import Budget
from sanrobust.attacks.pgd import pgd
from sanrobust.data.datasets import open_dataset
from sanrobust.errors import CheckpointError, DataError, UsageError
from sanrobust.training.adversarial import attacked, draw_noise
from sanrobust.training.feed import Feed, Share
from sanrobust.training.loop import Training
from sanrobust.training.recipes import RECIPES, Recipe
from sanrobust.training.scoring import HeldOut
from sanrobust.training.splits import Source, open_sets
from sanrobust.zoo.build import build
from sanrobust.zoo.checkpoint import read_facts
from sanrobust.zoo.families.resnet import ResNetConfig

TINY = ResNetConfig(layers=(1, 1, 1, 1), width=4, stem="small", num_classes=10)
CPU = torch.device("cpu")
SMALL = Recipe(img_size=16, epochs=1, batch_size=32)


class _Plain(nn.Module):
    """A network without batch statistics, whose gradients add up exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.mean((2, 3)))
        return logits


def test_the_attack_in_the_loop_is_pgd_from_the_same_start() -> None:
    torch.manual_seed(0)
    model, pixels = build(TINY), torch.rand(6, 3, 16, 16)
    labels = torch.arange(6)
    recipe = Recipe(eps=8, attack_step=2, attack_iters=3)
    found = attacked(model, pixels, labels, torch.zeros_like(pixels), recipe)
    assert model.training and all(weight.requires_grad for weight in model.parameters())
    model.eval().requires_grad_(False)
    expected, = pgd(model, pixels, labels, [str(each) for each in range(6)], targets=None,
                    budgets=[Budget(eps=8, step=2, iters=3)])
    assert torch.equal(found, expected.adversarial)


def test_a_start_belongs_to_seed_epoch_and_step() -> None:
    draws = [draw_noise((2, 3), Recipe(seed=seed), epoch, step)
             for seed, epoch, step in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0))]
    assert torch.equal(draws[0], draws[4])
    assert not any(torch.equal(draws[0], other) for other in draws[1:4])
    assert all(bool((draw.abs() <= 1).all()) for draw in draws)


def test_a_batch_in_parts_moves_the_weights_as_a_whole_one() -> None:
    weights = []
    for micro in (None, 8):
        torch.manual_seed(0)
        network = _Plain()
        Training(network, few(64), replace(SMALL, micro_batch=micro), device=CPU,
                 classes=10).run(lambda _: None)
        weights.append(network.head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)


def test_processes_share_every_part_of_a_batch() -> None:
    recipe = replace(SMALL, micro_batch=16, flip=True, eps=4)
    images = few(64).train
    whole = list(Feed(images, recipe, CPU).epoch(3))
    shares = [list(Feed(images, recipe, CPU, share=Share(rank, 4)).epoch(3)) for rank in range(4)]
    assert len(whole) == 4 and [each.ends_step for each in whole] == [False, True, False, True]
    for place, each in enumerate(whole):
        parts = [share[place] for share in shares]
        assert torch.equal(torch.cat([part.pixels for part in parts]), each.pixels)
        assert torch.equal(torch.cat([part.labels for part in parts]), each.labels)
        assert all(part.noise is not None for part in parts)
        assert torch.equal(torch.cat([part.noise for part in parts if part.noise is not None]),
                           each.noise)  # type: ignore[arg-type]


def test_large_held_out_images_are_measured_a_few_at_a_time() -> None:
    seen: list[int] = []

    def model(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return torch.zeros(len(pixels), 10)
    network = nn.Identity()
    network.forward = model  # type: ignore[method-assign]
    images = open_dataset("digits", root=None, num_samples=100)
    for side, sizes in ((64, [100]), (128, [64, 36])):
        seen.clear()
        score = HeldOut(images, replace(SMALL, img_size=side), CPU).score(network)
        assert (seen, score.images) == (sizes, 100)


@pytest.mark.parametrize("crop", ["whole", "random"])
def test_an_epoch_taken_up_later_gives_the_rest_of_the_same_images(crop: str) -> None:
    recipe = replace(SMALL, crop=crop, flip=True, batch_size=16)
    feed = Feed(few(64).train, recipe, CPU)
    whole = list(feed.epoch(1))
    for each, other in zip(whole[3:], feed.epoch(1, start=3), strict=True):
        assert torch.equal(each.pixels, other.pixels) and torch.equal(each.labels, other.labels)
    assert not torch.equal(whole[0].pixels, next(iter(feed.epoch(2))).pixels)


def test_images_that_are_not_held_are_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    images = few(64).train
    held = list(Feed(images, SMALL, CPU).epoch(0))
    monkeypatch.setattr("sanrobust.training.feed.HELD_BYTES", 0)
    for each, other in zip(held, Feed(images, SMALL, CPU, workers=2).epoch(0), strict=True):
        assert torch.equal(each.pixels, other.pixels) and torch.equal(each.labels, other.labels)


def test_bfloat16_trains_float32_weights() -> None:
    torch.manual_seed(0)
    training = Training(build(TINY), few(64), replace(SMALL, precision="bfloat16"), device=CPU,
                        classes=10)
    kinds = set()
    training.network.fc.register_forward_hook(  # type: ignore[operator, union-attr]
        lambda *given: kinds.add(given[-1].dtype))
    training.run(lambda _: None)
    assert torch.bfloat16 in kinds
    assert {value.dtype for value in training.network.parameters()} == {torch.float32}


def test_an_optimizer_that_timm_has_not_is_refused_with_the_closest() -> None:
    with pytest.raises(UsageError, match="no 'momentun'.*did you mean momentum"):
        Training(build(TINY), few(64), replace(SMALL, optimizer="momentun"), device=CPU, classes=10)


def test_recipes_of_the_literature_hold_what_it_says() -> None:
    paper, scenes, madry = (RECIPES.get(name) for name in ("paper", "scenes", "adversarial"))
    assert (paper.epochs, paper.batch_size, paper.lr, paper.momentum, paper.weight_decay,
            paper.label_smoothing, paper.decay) == (100, 256, 0.1, 0.9, 1e-4, 0.1, "step")
    assert (scenes.epochs, scenes.batch_size, scenes.lr) == (45, 64, 1e-4)
    assert (madry.eps, madry.attack_step, madry.attack_iters) == (8, 2, 7)
    assert replace(madry, lr=0.2, flip=False).options("adversarial") == [
        "--lr", "0.2", "--no-flip"]


def _folder(where: Path, classes: str, images: int) -> Path:
    for place, name in enumerate(classes):
        (where / name).mkdir(parents=True)
        for number in range(images):
            image = Image.new("RGB", (16, 16), (40 * place, 255 - 40 * place, 90))
            image.putpixel((number % 16, number // 16), (0, 0, 0))
            image.save(where / name / f"{number}.png")
    return where


def test_a_folder_is_split_by_class_and_seed(tmp_path: Path) -> None:
    folder = str(_folder(tmp_path / "f", "abc", 10))
    sets, classes = open_sets(Source(folder, val_fraction=0.3))
    again, _ = open_sets(Source(folder, val_fraction=0.3, seed=1))
    ids = [{ref.id for ref in images.refs} for images in (sets.train, sets.test)]
    assert classes == 3 and len(ids[0] | ids[1]) == 30 and not ids[0] & ids[1]
    assert [sum(ref.label == label for ref in sets.test.refs) for label in range(3)] == [3, 3, 3]
    assert {ref.id for ref in again.test.refs} != ids[1]
    assert len(open_sets(Source(folder, val_per_class=2))[0].test.refs) == 6


@pytest.mark.parametrize(("source", "error", "told"), [
    ({}, UsageError, "neither --held-out nor --val-fraction"),
    ({"val_fraction": 0.1, "val_per_class": 2}, UsageError, "two are given"),
    ({"val_per_class": 10}, DataError, "class 0 has 10 images, of which 10 would be"),
    ({"val_fraction": 0.01}, DataError, "of which 0 would be")])
def test_a_split_that_cannot_be_made_is_refused(
        tmp_path: Path, source: dict[str, float], error: type[Exception], told: str) -> None:
    folder = str(_folder(tmp_path / "f", "ab", 10))
    with pytest.raises(error, match=told):
        open_sets(Source(folder, **source))  # type: ignore[arg-type]


def test_finetuning_begins_with_all_but_another_head(command: Command, tmp_path: Path) -> None:
    data = _folder(tmp_path / "data", "abc", 8)
    whole = ("train", "-m", "resnet26", "--data", data, "--val-fraction", 0.25, "--epochs", 1,
             "-b", 6, "--img-size", 16, "--out", tmp_path / "w", "--device", "cpu")
    first = command(*whole, "--tag", "three")
    assert first.exit_code == 0, first.output
    digits = ("train", "-m", "resnet26", "--epochs", 1, "-b", 448, "--img-size", 16, "--lr",
              "1e-30", "--out", tmp_path / "w", "--tag", "ten", "--device", "cpu", "--finetune",
              tmp_path / "w" / "resnet26.three.safetensors")
    done = command(*digits)
    assert done.exit_code == 0, done.output
    assert "has 3 classes: its head is left out" in done.output
    from safetensors.torch import load_file
    begun, made = (load_file(tmp_path / "w" / f"resnet26.{tag}.safetensors")
                   for tag in ("three", "ten"))
    assert torch.equal(begun["conv1.weight"], made["conv1.weight"])
    assert made["fc.weight"].shape[0] == 10 and begun["fc.weight"].shape[0] == 3
    facts = read_facts(tmp_path / "w" / "resnet26.ten.safetensors") or {}
    assert "--finetune" in str(facts["reference"])
    missing = command(*digits[:-1], tmp_path / "missing.pt")
    assert missing.exit_code == CheckpointError.exit_code, missing.output
    wrong = command(*digits[:2], "san10-pair", *digits[3:])
    assert wrong.exit_code != 0 and "it fits resnet26" in " ".join(wrong.output.split())
