"""Peak memory of a contender: what it takes beyond its model, and what would never fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sanrobust.bench import peak
from sanrobust.bench.contender import Contender
from sanrobust.bench.settings import ATTACK, FORWARD, OURS, Settings, Shape
from sanrobust.device import exact

MODEL = "san10-pair.untrained-small"
TINY = Shape(batch_size=2, img_size=32)
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(),
                                reason="there is no /proc here")


def job(step: str, batch_size: int) -> dict[str, Any]:
    return {"model": MODEL, "step": step, "contender": OURS, "threads": 1,
            "shape": {"batch_size": batch_size, "img_size": 32}}


@needs_proc
def test_memory_grows_with_the_batch_and_the_gradient() -> None:
    with exact():
        small, large, forward = (peak.measure(each) for each in (
            job(ATTACK, 1), job(ATTACK, 256), job(FORWARD, 256)))
    assert large["net"] > 8 * max(small["net"], 1 << 20)
    assert large["net"] > 1.5 * forward["net"]
    assert small["base"] > 100 << 20 and large["base"] >= large["model"]


def test_a_system_that_tells_no_sizes_is_named(monkeypatch: pytest.MonkeyPatch,
                                               tmp_path: Path) -> None:
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "absent")
    settings = Settings(models=(MODEL,), contenders=(OURS,), shape=TINY)
    found = list(peak.measure_peaks(settings, MODEL))
    assert len(found) == 2 and all(each.failure == f"this system has no {tmp_path / 'absent'}"
                                   for each in found)


class Hungry(nn.Module):
    """Keeps one tensor of the input's size for the gradient."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * pixels


def test_a_batch_that_cannot_fit_is_refused_before_it_ends_the_process(
        monkeypatch: pytest.MonkeyPatch) -> None:
    hungry = Contender("unfold", {}, "", Hungry())
    assert peak.too_large(hungry, "attack", TINY) is None
    monkeypatch.setattr(peak, "free_memory", lambda _: 3 * 32 * 32 * 4)
    reason = peak.too_large(hungry, "attack", TINY)
    assert reason is not None and "are free" in reason


# One tensor of 200 MB at a time, in place of a model's calls.
PEAK = """
import torch
from sanrobust.bench import models, peak
from sanrobust.bench.contender import Contender

call = lambda: torch.ones(200 << 18).sum()
models.contender = lambda *_: Contender("ours", {"forward": call}, "")
print(peak.measure({"model": "%s", "step": "forward", "contender": "ours", "threads": 1,
                    "shape": {"batch_size": 2, "img_size": 32}})["net"])
"""


@needs_proc
def test_peak_memory_is_that_of_the_calls() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK % MODEL], check=True, capture_output=True,
                          text=True)
    # The process may load a library or two during its first call.
    assert 200 << 20 <= int(done.stdout) < 230 << 20
