"""Peak memory of a contender, measured in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sanrobust.bench import peak
from sanrobust.bench.settings import ATTACK, FORWARD, OURS, Settings, Shape
from sanrobust.device import exact

MODEL = "san10-pair.untrained-small"
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(),
                                reason="there is no /proc here")


def job(step: str, batch_size: int) -> dict[str, Any]:
    return {"model": MODEL, "step": step, "contender": OURS, "threads": 1,
            "shape": {"batch_size": batch_size, "img_size": 32}}


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
    settings = Settings(models=(MODEL,), contenders=(OURS,), shape=Shape(2, 32))
    found = list(peak.measure_peaks(settings, MODEL))
    assert len(found) == 2 and all(each.failure == f"this system has no {tmp_path / 'absent'}"
                                   for each in found)
