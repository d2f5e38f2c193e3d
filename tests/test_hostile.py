"""Hostile inputs: a short part of `make fuzz`, and that its driver notices a wrong answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hostile import driver
from hostile.case import MOST_BYTES, Answer, Case, fault

GOOD = Answer(code=2, out="", err="sanrobust: a must be b, but c: d\n", seconds=1.0, peak=1,
              written=())


def test_a_short_part_of_the_hostile_inputs_is_answered_well(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "hostile", "--seed", "7", "--count", "16"],
                          cwd=Path(__file__).parent, capture_output=True, text=True,
                          env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert " hostile inputs, 0 answered wrongly" in done.stdout


@pytest.mark.parametrize(("answer", "told"), [
    (GOOD, None),
    (replace(GOOD, code=None), "hung"), (replace(GOOD, code=0), "the exit code is 0"),
    (replace(GOOD, code=1), "the exit code is 1"), (replace(GOOD, code=-11), "is -11"),
    (replace(GOOD, err="Traceback (most recent call last):\n" + GOOD.err), "traceback"),
    (replace(GOOD, err=""), "0 sentences"), (replace(GOOD, err=GOOD.err * 2), "2 sentences"),
    (replace(GOOD, err=GOOD.err + "\x1b[2J"), "printed"),
    (replace(GOOD, err=f"sanrobust: {'n' * 5000}"), "characters"),
    (replace(GOOD, peak=MOST_BYTES + 1), "1.5 GB"),
    (replace(GOOD, written=("o/x",)), "left 'o/x'"),
])
def test_every_wrong_answer_is_told(answer: Answer, told: str | None) -> None:
    found = fault(Case("c", ("rotate",), Path(".")), answer)
    assert found is None if told is None else found is not None and told in found


def test_a_table_must_be_the_same_or_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1\n")
    case = Case("c", ("table",), tmp_path, expected=("t.csv", b"1\n"))
    assert fault(case, replace(GOOD, code=0, err="")) is None
    assert fault(case, GOOD) is None
    (tmp_path / "t.csv").write_text("2\n")
    assert fault(case, replace(GOOD, code=0, err="")) == "t.csv is another and nothing was said"


def _raise(case: Case) -> None:
    raise ValueError(case.name)


def _crash(case: Case) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(case: Case) -> None:
    time.sleep(60)


def _write(case: Case) -> None:
    (case.folder / "left").touch()
    raise SystemExit(2)


@pytest.mark.parametrize(("begin", "told"), [
    (_raise, "traceback"), (_crash, "exit code is -11"), (_hang, "hung"), (_write, "0 sentences"),
    (lambda case: None, "exit code is 0")])
def test_a_process_that_ends_badly_is_seen(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Callable[[Case], None],
        told: str) -> None:
    monkeypatch.setattr(driver, "_call", begin)
    monkeypatch.setattr(driver, "MOST_SECONDS", 1.0)
    case = Case("c", (), tmp_path)
    answer = driver.run(case)
    found = fault(case, replace(answer, peak=1))  # forked, it has the memory of this process
    assert found is not None and told in found
    assert answer.written == (("left",) if begin is _write else ())
