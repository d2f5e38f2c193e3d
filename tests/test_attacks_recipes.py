"""CONTRIBUTING's recipes: a loss and a target rule are one function and one entry each."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from conftest import Command
from torch import Tensor

from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.targets import TARGETS
from sanrobust.runs import find_runs

SMALL = "san10-pair.digits"


def negated_target(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Return the negated logit of the target, (B,)."""
    del labels
    return -logits.gather(1, targets.unsqueeze(1)).squeeze(1)


def next_class(ids: Sequence[str], labels: Tensor, logits: Tensor, seed: int) -> Tensor:
    """Choose the class behind the label."""
    del ids, seed
    return (labels + 1) % logits.shape[1]


def records(out: Path) -> pd.DataFrame:
    return find_runs(out, "pgd").runs[0].records()


@pytest.fixture
def extended(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (LOSSES, TARGETS):
        monkeypatch.setattr(registry, "_values", dict(registry._values))
    LOSSES.add("negated", negated_target)
    TARGETS.add("next", next_class)


@pytest.mark.usefixtures("extended")
def test_a_new_loss_and_a_new_rule_work_from_the_command_line(
        command: Command, tmp_path: Path) -> None:
    for loss in ("negated", "ce"):
        done = command("pgd", "-m", SMALL, "--num-samples", 6, "--loss", loss, "--targets", "next",
                       "--out", tmp_path / loss)
        assert done.exit_code == 0, done.output
    new, old = records(tmp_path / "negated"), records(tmp_path / "ce")
    assert (new["target"] == (new["label"] + 1) % 10).all()
    assert new["target_loss"].tolist()[0][0] == pytest.approx(old["target_loss"].tolist()[0][0])
    assert [list(row) for row in new["target_loss"]] != [list(row) for row in old["target_loss"]]
    with (tmp_path / "negated" / "pgd.csv").open(newline="") as file:
        assert {(row["loss"], row["targets"]) for row in csv.DictReader(file)} == {
            ("negated", "next")}


@pytest.mark.usefixtures("extended")
def test_a_mistyped_name_finds_the_new_entry(command: Command) -> None:
    assert "did you mean negated?" in command("pgd", "--loss", "negatd").output
    assert "did you mean next?" in command("pgd", "--targets", "nxt").output


def test_the_help_lists_every_loss_and_rule(command: Command) -> None:
    words = command("pgd", "--help").output
    assert "|".join(LOSSES.names()) in words and "|".join(TARGETS.names()) in words
