"""Images that are in no number: that one of them cannot be read counts against nobody."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import sanrobust
from conftest import Command
from grey_models import CLASSES, folders
from sanrobust.errors import DataError, UsageError
from sanrobust.experiments.accuracy.scoring import read_label_sets
from sanrobust.runs import find_runs

RIGHT = "grey_models:right"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """One image of each class, of which that of class 1 is damaged."""
    root = folders(tmp_path / "val", list(range(CLASSES)))
    (root / "c1" / "1.png").write_bytes(b"no image")
    return root


def row(path: Path) -> pd.Series:
    (found,) = (each for _, each in pd.read_csv(path).iterrows())
    return found


@pytest.mark.parametrize(("words", "file", "excluded"), [
    (("pgd", "--targets", "fixed:1"), "pgd.csv", 1),
    (("accuracy", "--classes", "0,2,3"), "accuracy.csv", 3),
])
def test_an_image_that_is_left_out_does_not_fail(command: Command, images: Path, tmp_path: Path,
                                                 words: tuple[str, ...], file: str,
                                                 excluded: int) -> None:
    one = () if words[0] == "accuracy" else ("--eps", "8", "--step", "4", "--iters", "2")
    done = command(*words, *one, "-m", RIGHT, "--data", images, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    found = row(tmp_path / "o" / file)
    assert (found["failed"], found["excluded"], found["n"]) == (0, excluded, CLASSES - excluded)


def test_an_image_that_is_not_left_out_does(command: Command, images: Path, tmp_path: Path) -> None:
    done = command("accuracy", "--classes", "0,1,2", "-m", RIGHT, "--data", images,
                   "--out", tmp_path / "o")
    assert done.exit_code == 9
    found = row(tmp_path / "o" / "accuracy.csv")
    assert (found["failed"], found["excluded"], found["n"]) == (1, 3, 2)


def test_a_damaged_run_is_named_where_a_model_was_asked_for(command: Command, images: Path,
                                                            tmp_path: Path) -> None:
    out = tmp_path / "o"
    command("rotate", "-m", RIGHT, "--data", images, "--out", out, "--max-failed", "1")
    (run,) = find_runs(out, "rotate").runs
    (run.folder / "run.json").write_text("{")
    for words in (("rotate",), ()):
        done = command("table", *words, "--model", RIGHT, "--out", out)
        assert done.exit_code == 6 and "run.json" in done.output, done.output


def test_attacks_of_one_model_on_two_datasets_are_told_with_their_data(
        command: Command, images: Path, tmp_path: Path) -> None:
    other = folders(tmp_path / "two", list(range(CLASSES)))
    budget = ("--eps", "8", "--step", "4", "--iters", "2", "--max-failed", "1")
    for data, targets in ((images, "fixed:1"), (other, "random")):
        command("pgd", "-m", RIGHT, "--data", data, "--targets", targets, *budget, "--out",
                tmp_path / "o")
    told = " ".join(command("table", "pgd", "--out", tmp_path / "o").stdout.split())
    assert f"({RIGHT}, PGD on val): White-box" in told and "PGD on two): White-box" in told


def test_labels_whose_names_fit_no_image_say_both_names(command: Command, images: Path,
                                                        tmp_path: Path) -> None:
    labels = tmp_path / "real.json"
    labels.write_text('{"0_0.png": [0], "c2_2.png": [2]}')
    done = command("accuracy", "-m", RIGHT, "--data", images, "--real-labels", labels,
                   "--out", tmp_path / "o")
    assert done.exit_code == 3 and "'0_0.png'" in done.output and "'c0/0.png'" in done.output
    labels.write_text('{"c0/0.png": [0], "c0/0.png": [1]}')
    with pytest.raises(DataError, match="stands twice"):
        read_label_sets(labels)


@pytest.mark.parametrize(("name", "keywords", "words"), [
    ("spatial", {"worst_of": 10**7}, "at most 100000"),
    ("accuracy", {"real_labels": 5}, "real_labels must be a file"),
    ("corrupt", {"corrupted": ""}, "corrupted must be a folder"),
    ("rotate", {"seeds": 3}, "there is no keyword named 'seeds'"),
])
def test_keywords_that_cannot_be_meant_are_refused(name: str, keywords: dict[str, object],
                                                   words: str) -> None:
    with pytest.raises(UsageError, match=words):
        getattr(sanrobust, name)("resnet26", **keywords)
