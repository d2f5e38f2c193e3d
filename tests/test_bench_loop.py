"""``sanrobust bench loop``: a whole command against its bare model."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from conftest import Command
from image_files import class_tree
from sanrobust.bench import machine, models
from sanrobust.bench.loop import PHOTOGRAPH, LoopTime, measure_loop, write_photographs
from sanrobust.bench.settings import LOOP, LOOPED, Loop, Settings, Shape
from sanrobust.cli import main

MODEL = "resnet26.untrained-small"
IMAGES = 6


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a short run."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as hurry:
        hurry.setattr(machine, "LIMIT_SECONDS", 0.0)
        result = CliRunner().invoke(main, [
            "bench", LOOP, "-m", MODEL, "--images", str(IMAGES), "--img-size", "32", "-b", "4",
            "--device", "cpu", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    (folder / "screen.txt").write_text(result.output)
    return folder


def test_there_is_a_row_for_each_command(out: Path) -> None:
    with (out / "bench.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["kind"], row["name"], row["step"], row["contender"]) for row in rows] == [
        ("loop", MODEL, experiment, "ours") for experiment in ("rotate", "pgd")]
    for row in rows:
        assert (row["batch_size"], row["img_size"], row["device"]) == ("4", "32", "cpu")
        assert "batch norms folded" in row["computed_by"]
        assert 0 < float(row["model_share"]) < 1
        assert 0 < float(row["setup_s"]) < float(row["counted_s"])
        assert float(row["model_s"]) < float(row["counted_s"]) and float(row["bare_s"]) > 0
        assert float(row["images_per_s"]) == pytest.approx(
            IMAGES / (float(row["counted_s"]) - float(row["setup_s"])))


def test_the_passes_of_the_images_are_counted_and_those_before_are_not(out: Path) -> None:
    with (out / "bench.csv").open(encoding="utf-8", newline="") as stream:
        rotate, pgd = csv.DictReader(stream)
    # Five views; and two budgets of 2 and 4 steps, which share the first.
    assert (rotate["forward_images"], rotate["backward_images"]) == (str(5 * IMAGES), "0")
    assert pgd["backward_images"] == str(5 * IMAGES)
    assert int(pgd["forward_images"]) > int(pgd["backward_images"])


SLOW = """
import time

import torch

CALLS = []


class Slow(torch.nn.Module):
    def forward(self, images):
        CALLS.append(time.sleep(0.02))
        return images.flatten(1)[:, :10]
"""


def test_passes_before_the_first_image_are_spent_in_the_model(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_model.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = measure_loop("slow_model:Slow", "rotate", Settings(
        shape=Shape(4, 32), loop=Loop(("slow_model:Slow",), images=4)))
    # All but those of the bare model, five views, and one before the network is watched.
    calls = len(importlib.import_module("slow_model").CALLS) - 6
    assert calls > 5
    assert 0.02 * calls <= found.model_seconds < found.seconds


def test_the_bare_model_computes_as_the_command_did(monkeypatch: pytest.MonkeyPatch) -> None:
    # The bench lets convolutions search for their algorithm, which an evaluation may not.
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    found = []
    forward = models.forward

    def noted(model: nn.Module, pixels: Tensor) -> Tensor:
        found.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
        return forward(model, pixels)

    monkeypatch.setattr(models, "forward", noted)
    measure_loop(MODEL, "rotate", Settings(shape=Shape(4, 32), loop=Loop((MODEL,), images=4)))
    assert set(found) == {(False, True)}


def test_the_screen_says_what_the_numbers_are(out: Path) -> None:
    text = " ".join((out / "screen.txt").read_text().split())
    for words in (f"Whole commands on {IMAGES} images (batch 4, 32 px, float32, cpu)",
                  "of the bare model in as many passes", "% in model", "set-up s",
                  "of the wall time in the model (29 batch norms folded, channels last)"):
        assert words in text, words


def test_photographs_are_decoded_as_a_folder_of_ones_own_is(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    labels = write_photographs(tmp_path / "own", 3, classes=2)
    assert labels.read_text().split() == ["file,class_index", "000000.jpg,0", "000001.jpg,1",
                                          "000002.jpg,0"]
    with Image.open(tmp_path / "own" / "000001.jpg") as image:
        assert (image.format, image.size) == ("JPEG", PHOTOGRAPH)


def test_a_folder_of_ones_own_is_measured(tmp_path: Path) -> None:
    class_tree(tmp_path / "tree", {str(number): ["a.png"] for number in range(10)})
    loop = Loop((MODEL,), images=4, data=str(tmp_path / "tree"))
    found = measure_loop(MODEL, "rotate", Settings(shape=Shape(2, 32), loop=loop))
    assert (found.images, found.img_size, found.forward, found.backward) == (4, 32, 20, 0)


def test_rates_leave_the_set_up_out_and_the_share_does_not() -> None:
    found = LoopTime(images=3, img_size=32, seconds=4.0, cpu_seconds=1.0, setup_seconds=1.0,
                     model_seconds=2.0, forward=15, backward=0, bare_seconds=1.5,
                     computed_by="words")
    assert (found.model_share, found.images_per_second, found.bare_images_per_second) == (
        0.5, 1.0, 2.0)


def test_the_networks_of_the_issue_are_the_default() -> None:
    assert Settings().loop.models == LOOPED == ("resnet50", "san19-pair")


@pytest.mark.parametrize(("arguments", "words"), [
    (("-m", "resnet26x"), "did you mean resnet26"), (("--img-size", "8"), "at least"),
    (("--data", "nowhere"), "nowhere"), (("--experiment", "spatial"), "spatial"),
    (("--images", "0"), "--images")])
def test_bad_options_are_refused_at_once(command: Command, tmp_path: Path,
                                         arguments: tuple[str, ...], words: str) -> None:
    result = command("bench", LOOP, *arguments, "--out", tmp_path / "out")
    assert result.exit_code in (2, 3) and words in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()
