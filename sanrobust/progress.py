"""Who is told what a run does and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

LINE_SECONDS = 10.0
CELL_SECONDS = 0.5


class Progress(Protocol):
    """Who is told how far a run is."""

    def begin(self, title: str, *, total: int, done: int) -> None:
        """Start showing a run of ``total`` images of which ``done`` have their records."""
        ...

    def advance(self, images: int) -> None:
        """Count ``images`` more."""
        ...

    def beat(self) -> None:
        """Hear that the model has run once more, as a sign of life within a long batch."""
        ...

    def end(self) -> None:
        """Stop showing the run, finished or not."""
        ...


class Silent:
    """A progress that shows nothing."""

    def begin(self, title: str, *, total: int, done: int) -> None:
        """Show nothing."""

    def advance(self, images: int) -> None:
        """Show nothing."""

    def beat(self) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class Lines:
    """One plain line at most every ten seconds and one at the end, for logs."""

    def __init__(self) -> None:
        self._every = LINE_SECONDS

    def begin(self, title: str, *, total: int, done: int) -> None:
        """Say what starts and how much of it is there already."""
        self._title, self._total, self._done, self._new = title, total, done, 0
        self._start = self._last = self._batch = time.monotonic()
        self._passes = 0
        if done:
            self._say(f"{title}: going on after {done} of {total} images")

    def advance(self, images: int) -> None:
        """Count ``images`` more and say so when the last line is old."""
        self._done += images
        self._new += images
        now = time.monotonic()
        self._passes, self._batch = 0, now
        if now - self._last >= self._every:
            self._last = now
            rate = self._new / (now - self._start)
            left = (self._total - self._done) / rate
            self._say(f"{self._title}: {self._done}/{self._total} images, "
                      f"{rate:.1f} images/s, {left:.0f} s left")

    def beat(self) -> None:
        """Count a pass of the model and, when a batch takes long, say that it is alive."""
        self._passes += 1
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._say(f"{self._title}: {self._done}/{self._total} images, then a batch at work for "
                      f"{now - self._batch:.0f} s, {self._passes} passes of the model so far")

    def end(self) -> None:
        """Say how the run ended."""
        seconds = time.monotonic() - self._start
        self._say(f"{self._title}: {self._done}/{self._total} images, {seconds:.1f} s")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Cell(Lines):
    """One line for each run below a notebook's cell, which changes in its place."""

    def __init__(self) -> None:
        super().__init__()
        self._every = CELL_SECONDS
        self._shown: Any = None

    def begin(self, title: str, *, total: int, done: int) -> None:
        """Show a new line."""
        self._shown = None
        super().begin(title, total=total, done=done)

    def _say(self, text: str) -> None:
        from IPython.display import display
        line = {"text/plain": text}
        if self._shown is None:
            self._shown = display(line, raw=True, display_id=True)
        else:
            self._shown.update(line, raw=True)


def in_notebook() -> bool:
    """Say whether a notebook's kernel runs this, loading nothing."""
    shell = sys.modules.get("IPython")
    current = shell.get_ipython() if shell is not None else None
    return getattr(current, "kernel", None) is not None


def reporter(shown: bool | None) -> Reporter:
    """Return who is told of a run by a function of ours.

    Args:
        shown: whether anything is; None: in a notebook.
    """
    if in_notebook() and shown is not False:
        return Reporter(print, Cell())
    return Reporter(lambda text: print(text, file=sys.stderr), Lines()) if shown else Reporter()


def download_lines(name: str, say: Callable[[str], None]) -> Callable[[int, int | None], None]:
    """Return a follower of a download in bytes that says a line every tenth of the way."""
    tenths_said = 0

    def follow(done: int, total: int | None) -> None:
        nonlocal tenths_said
        tenths = done * 10 // total if total else 0
        if total and tenths > tenths_said:
            tenths_said = tenths
            say(f"{name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
    return follow


@dataclass(frozen=True)
class Reporter:
    """What a run tells the outside.

    Attributes:
        say: takes one line of text.
        progress: follows the images.
    """

    say: Callable[[str], None] = field(default=lambda _: None)
    progress: Progress = field(default_factory=Silent)
