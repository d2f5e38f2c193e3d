"""Runs on folders: a perfect classifier of grey levels is perfect, and only of what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from conftest import Command
from sanrobust.data.public import CIFAR10

MODEL = """
import torch
from torch import nn
class Grey(nn.Module):
    default_cfg = dict(input_size=(3, 32, 32), crop_pct=1.0, mean=(0., 0., 0.), std=(1., 1., 1.))
    def __init__(self):
        super().__init__()
        self.register_buffer("levels", (10 + 15 * torch.arange(12.)) / 255)
    def forward(self, x):
        return -1000 * (x.mean((1, 2, 3)).unsqueeze(1) - self.levels) ** 2
def make():
    return Grey()
"""


@pytest.fixture
def grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "greys.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def _save(path: Path, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), (10 + 15 * index,) * 3).save(path)


def _rotated(command: Command, *options: object) -> tuple[float, str]:
    """Return top-1 of upright images and what was printed."""
    result = command("rotate", "-m", "greys:make", "--data", "val", "--out", "o", *options)
    assert result.exit_code == 0, result.output
    return float(pd.read_csv("o/rotation.csv")["none_top1"].iloc[0]), result.output


def test_folders_named_by_indices_are_measured_as_those_classes(
        command: Command, grey: Path) -> None:
    for index in range(12):
        _save(grey / "val" / str(index) / "0.png", index)
    assert _rotated(command)[0] == 100.0
    for index in (0, 2, 7):
        (grey / "val" / str(index) / "0.png").unlink()
        (grey / "val" / str(index)).rmdir()
    assert _rotated(command)[0] == 100.0


def test_replaced_images_of_the_same_size_are_measured_anew(command: Command, grey: Path) -> None:
    def fill(shift: int) -> None:
        for index in range(12):
            _save(grey / "val" / f"{index:02d}" / "0.ppm", min(11, index + shift))

    fill(0)
    assert _rotated(command)[0] == 100.0
    fill(2)
    value, told = _rotated(command)
    assert value == pytest.approx(100 / 12) and "already complete" not in told


def test_what_a_folder_holds_besides_images_is_on_screen_and_in_the_header(
        command: Command, grey: Path) -> None:
    for index in range(12):
        _save(grey / "val" / str(index) / "0.png", index)
    (grey / "val" / "3" / "notes.txt").touch()
    _, told = _rotated(command)
    sentence = "val: left out 1 file that is not named as an image (3/notes.txt)"
    assert sentence in told
    header, = (json.loads(path.read_text()) for path in grey.glob("o/runs/*/run.json"))
    assert sentence in json.dumps(header)


def test_an_image_with_two_labels_is_refused(command: Command, grey: Path) -> None:
    for index in range(2):
        _save(grey / "val" / f"{index}.png", index)
    (grey / "l.csv").write_text("file,class_index\n0.png,0\n1.png,1\n./0.png,1\n")
    result = command("rotate", "-m", "greys:make", "--data", "val", "--labels", "l.csv")
    assert result.exit_code == 3
    assert "lines 2 and 4 of l.csv both name 0.png" in " ".join(result.output.split())


def test_images_called_a_known_set_are_measured_with_its_networks(
        command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(CIFAR10.class_names or ()):
        _save(tmp_path / "val" / name / "0.png", index)
    asked = ("rotate", "-m", "resnet26", "--data", "val", "--out", "o")
    assert "resnet26.in1k must have its 1000 classes" in command(*asked).output
    assert "did you mean --data-name cifar10?" in command(*asked, "--data-name", "CIFAR").output
    assert "without blanks around it" in command(*asked, "--data-name", "cifar10 ").output
    done = command(*asked, "--data-name", "cifar10")
    assert done.exit_code == 0, done.output
    assert list(pd.read_csv("o/rotation.csv")["model"]) == ["resnet26.cifar10"]
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "Cat")
    refused = command(*asked, "--data-name", "cifar10")
    assert refused.exit_code == 3 and "did you mean cat?" in refused.output, refused.output
