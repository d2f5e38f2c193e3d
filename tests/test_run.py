"""Runs end to end: numbers follow from the specification, and nothing computed is ever lost."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import sanrobust
from sanrobust import steady
from attack_cases import require_torchattacks
from conftest import Command
from sanrobust.errors import Interrupted, ModelError
from sanrobust.kernels.native import library
from sanrobust.preprocessing import Preprocessing
from sanrobust.runs import find_runs
from sanrobust.zoo.accelerate import SWITCHED_OFF

SMALL = "resnet26.untrained-small"
ATTENTION = "san10-pair.untrained-small"
Start = Callable[..., subprocess.Popen[str]]


def records(out: Path, experiment: str) -> pd.DataFrame:
    (run,) = find_runs(out, experiment).runs
    assert run.complete
    return run.records()


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[Path, Path]:
    """A flat folder of ten colour images with labels."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    generator = random.Random(0)
    lines = ["file,class_index"]
    for number in range(10):
        pixels = bytes(generator.randrange(256) for _ in range(40 * 36 * 3))
        Image.frombytes("RGB", (40, 36), pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number}")
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    return folder, labels


@pytest.mark.parametrize("experiment", ["rotate", "pgd"])
def test_numbers_do_not_depend_on_batches_or_workers(
        command: Command, tmp_path: Path, photographs: tuple[Path, Path], experiment: str) -> None:
    folder, labels = photographs
    found = []
    for batch_size, workers in ((1, 0), (3, 2), (10, 0)):
        out = tmp_path / f"{batch_size}-{workers}"
        result = command(experiment, "-m", ATTENTION, "--data", folder, "--labels", labels,
                         "--out", out, "-b", batch_size, "-j", workers)
        assert result.exit_code == 0, result.output
        found.append(records(out, experiment))
    exact = ["image", "label", "error"] + (["view", "pred"] if experiment == "rotate"
                                           else ["target", "clean_pred", "eps", "iters"])
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0][exact], other[exact])
    # Float32 sums in another order move a probability by about 1e-7; a wrong image moves it more.
    if experiment == "rotate":
        assert (found[0]["prob_label"] - found[1]["prob_label"]).abs().max() < 1e-5


def test_the_whole_dataset_is_measured_once_per_view(command: Command, tmp_path: Path) -> None:
    result = command("rotate", "-m", SMALL, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    rows = records(tmp_path, "rotate")
    assert len(rows) == 451 * 5 and not rows.duplicated(["image", "view"]).any()
    header = json.loads(next(tmp_path.glob("runs/*/run.json")).read_text())
    assert header["spec"]["images"] == 451 and header["seconds"] > 0
    start = json.loads(next(tmp_path.glob("runs/*/starts/*.json")).read_text())
    assert start["images"] == 451 and start["status"] == "complete"
    for facts in (header, start):
        assert facts["environment"]["versions"]["torch"]
        assert facts["command"] == f"sanrobust rotate -m {SMALL} --out {tmp_path}"
    assert len(header["spec_digest"]) == 64


def test_the_header_says_why_a_network_was_not_folded(command: Command, tmp_path: Path) -> None:
    reasons = []
    for options in ((), ("--no-fold",)):
        out = tmp_path / str(len(reasons))
        command("rotate", "-m", ATTENTION, "--num-samples", 2, "--device", "cpu", "--out", out,
                *options)
        header = json.loads(next(out.glob("runs/*/run.json")).read_text())
        reasons.append(header["not_folded"])
    assert reasons == [library.refusal(), SWITCHED_OFF]


def test_both_budgets_of_table_10_are_the_default(command: Command, tmp_path: Path) -> None:
    assert command("pgd", "-m", SMALL, "--num-samples", 8, "--out", tmp_path).exit_code == 0
    rows = records(tmp_path, "pgd")
    budgets = set(zip(rows["eps"], rows["step"], rows["iters"], strict=True))
    assert budgets == {(8.0, 4.0, 2), (8.0, 2.0, 4)}
    assert (rows["target"] != rows["label"]).all() and rows["linf"].max() <= 8
    assert rows["target_loss"].map(len).eq(rows["iters"] + 1).all()


@pytest.mark.parametrize("options", [
    ("--eps", "8", "--step", "2", "--iters", "4", "--random-start", "--restarts", "2"),
    ("--targets", "least-likely", "--loss", "margin"),
    ("--attack", "torchattacks:FGSM", "-A", "eps=8/255"),
], ids=["restarts", "margin", "torchattacks"])
def test_attack_options_run_through(command: Command, tmp_path: Path,
                                    options: tuple[str, ...]) -> None:
    if "torchattacks:FGSM" in options:
        require_torchattacks()
    result = command("pgd", "-m", SMALL, "--num-samples", 6, "--out", tmp_path, *options)
    assert result.exit_code == 0, result.output
    rows = records(tmp_path, "pgd")
    assert rows["image"].nunique() == 6 and rows["error"].isna().all()


def test_images_of_the_fixed_target_are_excluded_and_counted(command: Command,
                                                             tmp_path: Path) -> None:
    result = command("pgd", "-m", SMALL, "--num-samples", 40, "--targets", "fixed:3", "--out",
                     tmp_path)
    assert result.exit_code == 0, result.output
    rows = records(tmp_path, "pgd")
    excluded = rows[rows["error"].notna()]
    assert rows["image"].nunique() == 40
    assert set(excluded["label"]) == {3} and (rows["label"] == 3).sum() == len(excluded)
    table = pd.read_csv(tmp_path / "pgd.csv")
    assert (table["n"] + table["excluded"]).tolist() == [40, 40]
    assert table["failed"].tolist() == [0, 0] and "success_all" not in table
    assert "label is the class aimed at" in result.output.replace("\n", " ")


def test_a_second_run_computes_nothing_and_fresh_computes_again(command: Command,
                                                                tmp_path: Path) -> None:
    arguments = ("rotate", "-m", SMALL, "--num-samples", 20, "--out", tmp_path)
    command(*arguments)
    assert "already complete" in command(*arguments).output
    assert "already complete" not in command(*arguments, "--fresh").output
    assert len(find_runs(tmp_path, "rotate").runs) == 2
    assert len(pd.read_csv(tmp_path / "rotation.csv")) == 1


def test_changed_preprocessing_never_mixes_into_a_run(command: Command, tmp_path: Path) -> None:
    arguments = ("rotate", "-m", SMALL, "--num-samples", 20, "--out", tmp_path)
    command(*arguments)
    command(*arguments, "--crop-pct", 0.9)
    assert len(find_runs(tmp_path, "rotate").runs) == 2


def test_corrupt_images_are_recorded_as_failed_and_counted(
        command: Command, tmp_path: Path, photographs: tuple[Path, Path]) -> None:
    folder, labels = photographs
    good = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(good[:len(good) // 2])
    (folder / "7.png").write_bytes(b"not an image")
    for experiment, table in (("rotate", "rotation.csv"), ("pgd", "pgd.csv")):
        result = command(experiment, "-m", SMALL, "--data", folder, "--labels", labels, "--out",
                         tmp_path, "-b", 4, "--max-failed", 0.2)
        assert result.exit_code == 0, result.output
        rows = records(tmp_path, experiment)
        assert rows["image"].nunique() == 10
        assert set(rows[rows["error"].notna()]["image"]) == {"4.png", "7.png"}
        summary = pd.read_csv(tmp_path / table)
        assert set(summary["n"]) == {8} and set(summary["failed"]) == {2}


@pytest.mark.parametrize("experiment", ["rotate", "pgd"])
def test_an_image_without_finite_logits_fails_by_itself(
        command: Command, tmp_path: Path, photographs: tuple[Path, Path],
        monkeypatch: pytest.MonkeyPatch, experiment: str) -> None:
    folder, labels = photographs
    Image.new("RGB", (40, 36), (255, 255, 255)).save(folder / "6.png")
    (tmp_path / "divider.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Divider(nn.Module):\n"
        "    def forward(self, x):\n"
        "        means = x.mean((2, 3))\n"
        "        white = (x.amin((1, 2, 3)) > 0.9)[:, None]\n"
        "        return torch.cat([means, means * 2, means * 3, means[:, :1]], 1) / ~white\n"
        "def make():\n"
        "    return Divider()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = command(experiment, "-m", "divider:make", "--data", folder, "--labels", labels,
                     "--out", tmp_path / "out", "-b", 4, "--img-size", 32, "--mean", "0,0,0",
                     "--std", "1,1,1", "--max-failed", 0.1)
    assert result.exit_code == 0, result.output
    rows = records(tmp_path / "out", experiment)
    assert rows["image"].drop_duplicates().tolist() == [f"{number}.png" for number in range(10)]
    failed = rows[rows["error"].notna()]
    assert set(failed["image"]) == {"6.png"} and failed["error"].str.contains("finite").all()


def test_one_missing_model_does_not_cost_the_others(command: Command, tmp_path: Path) -> None:
    result = command("rotate", "-m", "no_such_module:make", "-m", SMALL, "--num-samples", 10,
                     "--out", tmp_path)
    assert result.exit_code == ModelError.exit_code
    assert "no_such_module" in result.output
    assert pd.read_csv(tmp_path / "rotation.csv")["model"].tolist() == [SMALL]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_politely_a_run_saves_says_how_to_go_on_and_exits_130(
        command: Command, process: Start, tmp_path: Path, number: signal.Signals) -> None:
    arguments = ("pgd", "-m", ATTENTION, "--num-samples", "400", "-b", "2", "--out", tmp_path)
    child = process(*arguments)
    while child.poll() is None and not list(tmp_path.glob("runs/*/records/*.parquet")):
        time.sleep(0.01)
    time.sleep(0.5)  # for a batch of whose rows none are saved yet
    child.send_signal(number)
    _, told = child.communicate(timeout=60)
    assert child.returncode == Interrupted.exit_code, told
    assert "type the same command again" in told and "Traceback" not in told
    (run,) = find_runs(tmp_path, "pgd").runs
    assert run.last_start["status"] == "interrupted" and not run.is_being_written()
    assert 0 < run.records()["image"].nunique() < 400


class Crowded(nn.Module):
    """A network that finds no memory for more than two images."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")
        features = F.adaptive_avg_pool2d(images, 2).flatten(1)
        return self.scale * torch.cat((features, -features), 1)[:, :10]


def test_what_does_not_fit_into_memory_is_measured_in_halves_and_exactly(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steady, "MOST_THREADS", 0)  # each pass has the images of its batch
    numbers = []
    for batch_size in (2, 64):
        out = tmp_path / str(batch_size)
        sanrobust.pgd(Crowded(), data="digits", budgets=((8, 2, 2),), batch_size=batch_size,
                      out=out, preprocessing=Preprocessing(img_size=8))
        numbers.append(records(out, "pgd"))
    pd.testing.assert_frame_equal(*numbers)
