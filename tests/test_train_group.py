"""Processes that torchrun starts share every batch: same weights as one process, to rounding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sanrobust.errors import UsageError
from sanrobust.training.feed import Share
from sanrobust.training.group import Group, require_equal_shares

# A tiny network on few images; the process of rank 1 kills itself after so many steps.
DRIVER = """
import os, signal, sys
from sanrobust.cli import main
from sanrobust.data.datasets import open_dataset
from sanrobust.training import job
from sanrobust.training.loop import Sets, Training
from sanrobust.zoo.build import build
from sanrobust.zoo.families.resnet import ResNetConfig

tiny = ResNetConfig(layers=(1, 1, 1, 1), width=4, stem="small", num_classes=10)
sets = Sets(open_dataset("digits", root=None, split="train", num_samples=96),
            open_dataset("digits", root=None, num_samples=21))
job.build = lambda _: build(tiny)
job.open_sets = lambda _: (sets, 10)
left = int(sys.argv.pop(1))
average = job.Group.average_gradients

def fatal(self, model):
    global left
    left -= 1
    if left == 0 and self.share.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    average(self, model)

job.Group.average_gradients = fatal
main()
"""
OPTIONS = ("train", "-m", "resnet26", "--img-size", "16", "--epochs", "3", "-b", "32", "--flip",
           "--lr", "0.01", "--device", "cpu", "--save-every", "0")


def _train(tmp_path: Path, out: str, processes: int, *, dies_at: int = 0
           ) -> subprocess.CompletedProcess[str]:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    launcher = ([sys.executable] if processes == 1 else
                [sys.executable, "-m", "torch.distributed.run", "--standalone",
                 "--nproc-per-node", str(processes)])
    return subprocess.run([*launcher, str(driver), str(dies_at), *OPTIONS, "--out",
                           str(tmp_path / out)], capture_output=True, text=True, timeout=240)


def _weights(tmp_path: Path, out: str) -> dict[str, Tensor]:
    return load_file(tmp_path / out / "resnet26.digits.safetensors")


def test_two_processes_make_the_weights_of_one(tmp_path: Path) -> None:
    for out, processes in (("one", 1), ("two", 2)):
        done = _train(tmp_path, out, processes)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("held-out top-1") == 1  # one of them speaks
    two = _weights(tmp_path, "two")
    for name, value in _weights(tmp_path, "one").items():
        scale = float(value.abs().max().clamp_min(1e-2)) if value.is_floating_point() else 1
        assert float((two[name] - value).abs().max()) <= 1e-4 * scale, name


@pytest.mark.slow
def test_after_one_of_them_is_killed_processes_go_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path, "whole", 2)
    assert whole.returncode == 0, whole.stderr
    killed = _train(tmp_path, "killed", 2, dies_at=5)
    assert killed.returncode != 0
    assert "type the same command again" in " ".join(killed.stderr.split()), killed.stderr
    resumed = _train(tmp_path, "killed", 2)
    assert resumed.returncode == 0 and "going on after epoch" in resumed.stderr, resumed.stderr
    ours = _weights(tmp_path, "killed")
    for name, value in _weights(tmp_path, "whole").items():
        assert torch.equal(ours[name], value)


def test_a_batch_that_processes_cannot_share_alike_is_refused() -> None:
    require_equal_shares(64, Share(0, 2), "--batch-size")
    with pytest.raises(UsageError, match="multiple of the 3 processes.*--batch-size 66"):
        require_equal_shares(64, Share(0, 3), "--batch-size")


def test_processes_share_whole_pairs_of_images_that_are_mixed() -> None:
    require_equal_shares(64, Share(0, 2), "--batch-size", pairs=True)
    require_equal_shares(63, Share(0, 1), "--batch-size", pairs=True)
    with pytest.raises(UsageError, match="multiple of twice the 2 processes.*--batch-size 68"):
        require_equal_shares(66, Share(0, 2), "--batch-size", pairs=True)


def test_alone_a_process_changes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    values = torch.rand(3)
    assert Group().joined(network) is network and Group().summed(values) is values
    assert type(network[1]) is nn.BatchNorm2d
