"""Progress: a bar on a terminal, plain lines elsewhere; both count what was there before."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from sanrobust.cli import progress
from sanrobust.progress import download_lines


class Clock:
    """A clock that the test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_lines_say_rate_and_time_left_at_most_every_ten_seconds(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr("sanrobust.progress.time", clock)
    lines = progress.Lines()
    lines.begin("rotate m", total=100, done=20)
    for seconds in (5, 9, 20, 21):
        clock.now = seconds
        lines.advance(10)
    lines.end()
    assert capsys.readouterr().err.splitlines() == [
        "rotate m: going on after 20 of 100 images",
        "rotate m: 50/100 images, 1.5 images/s, 33 s left",
        "rotate m: 60/100 images, 21.0 s"]


def test_the_bar_shows_counts_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(
        file=screen, force_terminal=True, width=120))
    bar = progress.Bar()
    bar.begin("rotate m", total=8, done=2)
    for _ in range(3):
        time.sleep(0.01)
        bar.advance(2)
    bar.end()
    assert "rotate m" in screen.getvalue() and "8/8" in screen.getvalue()
    assert "images/s" in screen.getvalue()


@pytest.mark.parametrize(("terminal", "kind"), [(True, progress.Bar), (False, progress.Lines)])
def test_a_terminal_gets_the_bar(monkeypatch: pytest.MonkeyPatch, terminal: bool,
                                 kind: type) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    assert isinstance(progress.progress(), kind)


def test_a_download_says_a_line_every_tenth_of_the_way() -> None:
    told: list[str] = []
    follow = download_lines("m", told.append)
    for done in range(0, 1001, 25):
        follow(done * 1_000_000, 1_000_000_000)
    follow(5, None)
    assert told[0] == "m: 100 of 1000 MB" and told[-1] == "m: 1000 of 1000 MB" and len(told) == 10


def test_a_line_tells_that_a_long_batch_is_alive(monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    monkeypatch.setattr("sanrobust.progress.time", clock)
    lines = progress.Lines()
    lines.begin("pgd m", total=10, done=0)
    for lines_beat, clock.now in ((False, 4.0), (True, 9.0), (True, 14.0), (True, 15.0)):
        if lines_beat:
            lines.beat()
        else:
            lines.advance(2)
    assert capsys.readouterr().err.splitlines() == [
        "pgd m: 2/10 images, then a batch at work for 10 s, 2 passes of the model so far"]
