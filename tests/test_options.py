"""What an option cannot mean is refused by its kind, in one short sentence."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from conftest import SCRIPT, Command
from image_files import flat_folder, save_noise, write_lines
from sanrobust.choices import RunConfig
from sanrobust.options import as_number
from sanrobust.errors import DataError, UsageError, readable, shown_value
from sanrobust.data.folders import labelled_folder

SMALL = "resnet26.untrained-small"
HUGE = "9" * 4400


def sentence(command: Command, *words: str) -> str:
    result = command(*words)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("sanrobust: ")]
    assert len(lines) == 1 and len(lines[0]) < 400
    return lines[0]


@pytest.mark.parametrize("text", [HUGE, "1_000", "\u0661\u0662", "0x10", "nan", "-", "1e400"])
@pytest.mark.parametrize("option", ["-b", "--workers", "--num-samples", "--img-size", "--threads",
                                    "--crop-pct", "--max-failed", "--mean"])
def test_a_number_is_written_in_plain_digits(command: Command, option: str, text: str) -> None:
    assert "type for example" in sentence(command, "rotate", f"{option}={text}"
                                          if option != "-b" else f"-b{text}")


@pytest.mark.parametrize("words", [
    ("train", "--lr", "1e39"), ("train", "--epochs", HUGE), ("study", "--seeds", "1.5"),
    ("pgd", "--seed", str(2**63)), ("bench", "--img-size", "9000"), ("bench", "--peak", "nan"),
    ("show", "attention", "--position", f"{HUGE},1"), ("show", "claims", "--seed", "-1"),
    ("complexity", "--img-size", "9" * 300)])
def test_every_command_reads_numbers_alike(command: Command, words: tuple[str, ...]) -> None:
    assert words[-2] in sentence(command, *words)


@pytest.mark.parametrize(("text", "number"), [
    ("0.5", 0.5), ("1e-3", 1e-3), (".5", 0.5), ("5.", 5.0), ("-0", 0.0), ("+2", 2.0), ("", None),
    (".", None), ("1e999", None), ("inf", None), ("1_0", None), (" 1", None)])
def test_a_decimal_number_is_read_as_python_does_or_not_at_all(text: str,
                                                               number: float | None) -> None:
    assert as_number(text) == number


@pytest.mark.parametrize("words", [("rotate", "--data", ""), ("rotate", "--backend", ""),
                                   ("rotate", "-m", ""), ("zoo", "show", ""),
                                   ("table", "--run", ""), ("train", "--tag", "")])
def test_empty_text_is_no_value(command: Command, words: tuple[str, ...]) -> None:
    assert "must have a value" in sentence(command, *words)


@pytest.mark.parametrize(("words", "told"), [
    (("rotate", "--out", "caf\udce9"), "--out must be a path in UTF-8"),
    (("rotate", "--labels=~nosuchuser/x"), "type for example --labels ./~nosuchuser/x"),
    (("train", "--data", "loop", "--held-out", "x"), "must be a known name or an existing"),
    (("rotate", "--data", "n" * 300), "must be a known name or an existing folder"),
    (("rotate", "--data", "d/" * 3000), "must exist"),
    (("study", "--data", "."), "must be a registered dataset"),
    (("bench", "models", "-m", "timm/no_such_model"), "no_such_model"),
    (("pgd", "--eps", "0.5", "--step", "2", "--iters", "1"), "type 0.5/255 (or 128/255"),
    (("rotate", "-m", SMALL, "--crop-pct", "1e-300"), "--crop-pct must be a number that divides")])
def test_what_leads_nowhere_is_refused_before_anything_is_computed(
        command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        words: tuple[str, ...], told: str) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    result = command(*words)
    assert result.exit_code in (2, 3) and told in result.output, result.output
    assert os.listdir() == ["loop"]


def test_a_path_behind_an_equals_sign_may_start_in_the_users_home(
        command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("table", "--paper-only", "--out=~/o").exit_code == 0
    assert (tmp_path / "o" / "paper" / "pgd.csv").exists()


def test_an_unknown_backend_of_the_environment_is_refused_for_every_model(
        command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANROBUST_BACKEND", "nativ")
    assert "nativ" in sentence(command, "rotate", "-m", SMALL, "--num-samples", "1", "--out",
                               str(tmp_path))


def test_targets_of_images_that_are_not_measured_are_told(command: Command,
                                                          tmp_path: Path) -> None:
    folder, labels = flat_folder(tmp_path / "d", {"a.png": 1, "b.png": 2})
    targets = write_lines(tmp_path / "t.csv", ["image,target", "a.png,3", "b.png,4", "c.png,5"])
    result = command("pgd", "-m", SMALL, "--data", folder, "--labels", labels, "--targets",
                     f"file:{targets}", "--out", tmp_path / "o")
    assert result.exit_code == 0
    assert "1 row is (c.png) for no image that is measured" in result.output


def test_of_many_absent_files_not_all_are_looked_for(tmp_path: Path) -> None:
    save_noise(tmp_path / "d" / "a.png")
    rows = [f"no{number}.png,1" for number in range(500)]
    labels = write_lines(tmp_path / "l.csv", ["file,class_index", "a.png,1", *rows])
    with pytest.raises(DataError, match="at least 100 files are .the first is no0.png"):
        labelled_folder(tmp_path / "d", labels)


def test_a_message_is_short_whatever_it_shows() -> None:
    assert len(str(UsageError("a must be " + "b" * 9000, seen="c " * 9000, hint="d"))) < 1300
    assert readable("see " + "/a" * 60) == "see " + "/a" * 60
    assert shown_value("n" * 5000) == repr("n" * 38 + "..." + "n" * 38)
    with pytest.raises(UsageError, match="thousands of digits"):
        RunConfig(workers=-10**5000)


@pytest.mark.parametrize(("closing", "code"), [("2>&-", 0), (">&-", 6), (">/dev/full", 6),
                                               ("<&- >/dev/null 2>&-", 0)])
def test_a_closed_or_full_stream_is_no_traceback(tmp_path: Path, closing: str, code: int) -> None:
    done = subprocess.run(f'"{SCRIPT}" zoo list {closing}', shell=True, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert ("standard output takes nothing" in done.stderr) == (code == 6)
