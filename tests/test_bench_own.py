"""The benchmark with formulations of the user's own."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Command
from sanrobust.bench.settings import STEPS

MODEL = "san10-pair.untrained-small"
OWN = """
import torch
from sanrobust.bench.unfold import unfold_attention as attention

def doubled(layer, features):
    return 2 * attention(layer, features)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of formulations in the working folder."""
    (tmp_path / "own_attention.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    sys.modules.pop("own_attention", None)


@pytest.mark.usefixtures("own")
def test_a_formulation_of_ones_own_takes_part(command: Command) -> None:
    name = "own_attention:attention"
    result = command("bench", "models", "memory", "-m", MODEL, "-c", "ours", "--formulation", name,
                     "--img-size", "32", "-b", "2", "--repeats", "1", "--out", "out")
    assert result.exit_code == 0, result.output
    with open("out/bench.csv", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["contender"] == name]
    assert [row["step"] for row in rows] == list(STEPS)
    # A busy machine may have every sample rejected.
    assert all(int(row["samples"]) + int(row["rejected"]) > 0 for row in rows)
    assert all(int(row["net_bytes"]) > 0 and not row["failure"] for row in rows)
    assert name in result.output


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("name", "words"), [
    ("own_attention:doubled", "must compute the attention of san10-pair"),
    ("own_attention:atention", "did you mean attention"),
    ("own_attention:torch", "must be something to call"),
    ("nowhere:attention", "there is no nowhere"),
    ("own_attention", "must be written module:function")])
def test_what_is_no_formulation_is_refused(command: Command, name: str, words: str) -> None:
    result = command("bench", "models", "-m", MODEL, "-c", "ours", "--formulation", name,
                     "--img-size", "32", "-b", "2", "--out", "out")
    assert result.exit_code != 0 and words in " ".join(result.output.split()), result.output


@pytest.mark.usefixtures("own")
def test_a_formulation_that_nothing_would_use_is_refused(command: Command) -> None:
    result = command("bench", "operators", "--formulation", "own_attention:attention",
                     "--out", "out")
    assert result.exit_code == 2 and "add models" in result.output, result.output
    assert not Path("out").exists()
