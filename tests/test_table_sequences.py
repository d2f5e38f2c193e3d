"""A command prints the same rows whatever was done in its folder before: random sequences of
commands in one folder, each held against the same command alone in an empty one."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import Command
from grey_models import CLASSES, Grey, folders
from sanrobust.errors import Interrupted
from sanrobust.records.headers import sealed_text
from sanrobust.runs import find_runs

LABELS = list(range(CLASSES))
Words = tuple[str, ...]

MODELS: tuple[Words, ...] = (
    ("-m", "grey_models:right"), ("-m", "grey_models:wrong"), ("-m", "grey_models:blind"),
    ("-m", "grey_models:right", "-m", "grey_models:wrong"),
    ("-m", "grey_models:wrong", "-m", "grey_models:right", "-m", "grey_models:one_fails"),
    ("-m", "grey_models:right", "--checkpoint", "r1/model_best.pth"),
    ("-m", "grey_models:right", "--checkpoint", "r2/model_best.pth"),
)
IMAGES: tuple[Words, ...] = (
    ("--data", "a/test"), ("--data", "b/test"), ("--data", "a/test", "--num-samples", "2"),
    ("--data", "b/test", "--num-samples", "4"), ("--data", "a/test", "--data-name", "other"),
)
SIZES: tuple[Words, ...] = ((), (), ("--img-size", "16"), ("--no-normalize",))
ATTACKS: tuple[Words, ...] = (
    (), ("--eps", "8", "--step", "2", "--iters", "4"),
    ("--eps", "2", "--step", "1", "--iters", "2"), ("--seed", "1"), ("--targets", "second"),
    ("--targets", "fixed:2"), ("--random-start", "--restarts", "2"), ("--loss", "margin"),
)
HOW: tuple[Words, ...] = ((), ("-b", "1"), ("-b", "4"), ("--fresh",), ("--threads", "1"))


def draw(chance: random.Random) -> tuple[Words, Words]:
    """Return what a command asks for, and how it is to be computed."""
    experiment = chance.choice(("rotate", "pgd"))
    attack = chance.choice(ATTACKS) if experiment == "pgd" else ()
    asked = (experiment, *chance.choice(MODELS), *chance.choice(IMAGES), *chance.choice(SIZES),
             *attack, "--max-failed", "1")
    return asked, chance.choice(HOW)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two data folders of one name and two checkpoints of one name."""
    folders(tmp_path / "a" / "test", LABELS)
    folders(tmp_path / "b" / "test", LABELS, shown=LABELS[1:] + LABELS[:1])
    for name, shift in (("r1", 0), ("r2", 2)):
        (tmp_path / name).mkdir()
        torch.save(Grey(shift=shift).state_dict(), tmp_path / name / "model_best.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stop_after(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Make the next run stop, as by Ctrl-C, once it has counted so many images."""
    from sanrobust.cli.progress import Lines
    seen = 0
    advance = Lines.advance

    def stopping(self: Lines, count: int) -> None:
        nonlocal seen
        advance(self, count)
        seen += count
        if seen >= images:
            raise KeyboardInterrupt

    monkeypatch.setattr(Lines, "advance", stopping)


def pretend_it_was_killed(out: Path, experiment: str) -> None:
    """Leave the unfinished runs as a kill leaves them: said to be running, the last rows lost."""
    for run in find_runs(out, experiment).runs:
        if run.complete:
            continue
        for path in (run.folder / "starts").iterdir():
            facts = json.loads(path.read_text())
            facts.pop("sha256")
            path.write_bytes(sealed_text({**facts, "status": "running"}))
        for path in sorted((run.folder / "records").iterdir())[-1:]:
            path.unlink()


def check_sequence(seed: int, length: int, command: Command, place: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)

    @cache
    def alone(asked: Words) -> tuple[str, str]:
        out = place / "alone" / str(len(list(place.glob("alone/*"))))
        result = command(*asked, "--out", out)
        assert result.exit_code == 0, result.output
        return result.stdout, rows_of(out, asked[0])

    asked_before: list[Words] = []
    for _ in range(length):
        asked, how = draw(chance)
        if asked_before and chance.random() < 0.4:
            asked = chance.choice(asked_before)
        asked_before.append(asked)
        if chance.random() < 0.3:
            with monkeypatch.context() as patch:
                stop_after(patch, chance.randint(1, 4))
                stopped = command(*asked, "-b", "1", "--out", place / "one")
            assert stopped.exit_code in (0, Interrupted.exit_code), stopped.output
            if chance.random() < 0.5:
                pretend_it_was_killed(place / "one", asked[0])
        result = command(*asked, *how, "--out", place / "one")
        assert result.exit_code == 0, result.output
        printed, rows = alone(asked)
        assert result.stdout == printed, (asked, how)
        assert rows_of(place / "one", asked[0]) == rows, (asked, how)
    check_everything(command, place / "one", set(asked_before))


def rows_of(out: Path, experiment: str) -> str:
    """Return the rows of the table that was written, but for the names of the runs."""
    rows = pd.read_csv(out / ("rotation.csv" if experiment == "rotate" else "pgd.csv"))
    return str(rows.drop(columns=["run_id"]).to_json(orient="records"))


def check_everything(command: Command, out: Path, asked: set[Words]) -> None:
    """The table of all runs has every row that any command printed, each once."""
    for experiment, name in (("rotate", "rotation.csv"), ("pgd", "pgd.csv")):
        mine = [words for words in asked if words[0] == experiment]
        if not mine:
            continue
        told = command("table", experiment, "--out", out)
        assert told.exit_code == 0, told.output
        whole = pd.read_csv(out / name)
        keys = ["run_id"] if experiment == "rotate" else ["run_id", "eps", "step", "iters"]
        assert not whole.duplicated(keys).any()
        for words in mine:
            assert command(*words, "--out", out).exit_code == 0
            own = pd.read_csv(out / name)
            facts = [column for column in own if column in whole and column != "run_id"]
            both = own[facts].merge(whole[facts].drop_duplicates(), how="left", indicator=True)
            assert (both["_merge"] == "both").all(), words


@pytest.mark.parametrize("seed", range(2))
def test_a_command_prints_what_it_prints_in_an_empty_folder(
        command: Command, place: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    check_sequence(seed, 10, command, place, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_command_prints_what_it_prints_in_an_empty_folder_many_times(
        command: Command, place: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    check_sequence(seed, 25, command, place, monkeypatch)
