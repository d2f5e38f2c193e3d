"""Every hostile checkpoint is refused in one sentence, and nothing that it wants is done."""

from __future__ import annotations

import resource
import time
from collections import Counter
from pathlib import Path

import pytest

from hostile.checkpoints import checkpoints
from sanrobust.errors import ModelError
from sanrobust.zoo.resolve import create_model

SLOWEST = 15.0  # seconds of one processor
LONGEST = 1000  # characters


def _refusal(path: Path) -> str:
    """Return what is wrong with how a checkpoint is refused; empty where nothing is."""
    begun = time.process_time()
    try:
        create_model("san10-pair", tag="digits", checkpoint=path)
        return "it was loaded"
    except ModelError as error:
        said = str(error)
    except Exception as error:
        return f"it ended in {type(error).__name__}: {error}"
    taken = time.process_time() - begun
    if len(said) > LONGEST:
        return f"{len(said)} characters are no sentence"
    return "" if taken < SLOWEST else f"it took {taken:.0f} s"


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_every_hostile_checkpoint_is_refused_and_does_nothing(tmp_path: Path, step: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong, families = {}, Counter[str]()
    for place, (name, path) in enumerate(checkpoints(tmp_path, seed=0)):
        if place % step:
            path.unlink()
            continue
        families[name.partition(":")[0]] += 1
        refusal = _refusal(path)
        path.unlink()
        if refusal or any(tmp_path.iterdir()):
            wrong[name] = refusal or "it made a file"
    assert wrong == {}
    assert sum(families.values()) > 250 / step and min(families.values()) >= 10 // step
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 600_000  # KB; one of them asks for 100 GB
    assert not Path("/tmp/climbed").exists()
