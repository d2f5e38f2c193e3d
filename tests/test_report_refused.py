"""What the pages of results refuse, and how they stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sanrobust
from conftest import Command
from made_runs import make_run
from sanrobust.errors import UsageError


@pytest.mark.parametrize("name", ["report", "leaderboard"])
@pytest.mark.parametrize(("words", "code", "told"), [
    (("no/such",), 6, "there is no folder"), ((".",), 6, "holds none"),
    (("n" * 5000,), 6, "folder"), (("made", "--to", "file/x"), 6, "writable"),
])
def test_bad_input_is_one_sentence(command: Command, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch, name: str,
                                   words: tuple[str, ...], code: int, told: str) -> None:
    is_refused(command, tmp_path, monkeypatch, (name, *words), code, told)


@pytest.mark.parametrize(("words", "code", "told"), [
    (("report", "made", "--model", "resnet99"), 2, "there are"),
    (("report", "made", "--data", "x"), 2, "there are d"),
    (("report", "made", "--run", "x"), 2, "there are rotate-"),
    (("report", "made", "--images", "13"), 2, "--images"),
    (("report", "made", "--to", "made/runs/../../file"), 6, "writable"),
    (("report", ""), 2, "empty"),
    (("leaderboard", "made", "no"), 6, "there is no folder"),
    (("leaderboard", "made", "--to", "file"), 6, "writable"),
    (("leaderboard",), 6, "there is no folder results"),
])
def test_what_one_of_the_pages_refuses_is_one_sentence(
        command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...],
        code: int, told: str) -> None:
    is_refused(command, tmp_path, monkeypatch, words, code, told)


def is_refused(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch,
               words: tuple[str, ...], code: int, told: str) -> None:
    monkeypatch.chdir(folder)
    make_run(folder / "made", "abcd")
    (folder / "file").write_text("")
    result = command(*words)
    assert result.exit_code == code and told in result.stderr, result.output
    assert "Traceback" not in result.output and not list(folder.rglob("index.html"))


def test_a_stop_leaves_the_earlier_page(command: Command, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "abcd")
    before = sanrobust.report(tmp_path).page.read_bytes()

    def stopped(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sanrobust.reporting.report.render", stopped)
    result = command("report", tmp_path)
    assert result.exit_code == 130 and "type the same command again" in result.stderr
    assert (tmp_path / "report" / "index.html").read_bytes() == before


@pytest.mark.parametrize(("given", "words"), [
    *(({"images": value}, "from 0 to 12") for value in (-1, 13, "3", 3.5, None)),
    *(({name: [5]}, f"{name} must be names") for name in ("runs", "models", "data")),
    ({"to": 5}, "to must be a path"), ({"out": None}, "out must be a path")])
def test_what_cannot_be_meant_is_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    make_run(tmp_path, "abcd")
    with pytest.raises(UsageError, match=words):
        sanrobust.report(**{"out": tmp_path, **given})


def test_one_name_may_stand_for_a_list_of_one(tmp_path: Path) -> None:
    run = make_run(tmp_path, "abcd")
    assert sanrobust.report(str(tmp_path), models="m", runs=run.name, data="d").problem is None
    assert sanrobust.leaderboard(str(tmp_path), to=str(tmp_path / "to")).problem is None
    with pytest.raises(UsageError, match="folders must be names"):
        sanrobust.leaderboard([5])  # type: ignore[list-item]
