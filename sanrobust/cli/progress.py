"""Progress of long runs: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import (BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task,
                           TextColumn, TimeElapsedColumn, TimeRemainingColumn)
from rich.text import Text

LINE_SECONDS = 10.0


class _Rate(ProgressColumn):
    """Images per second since the run was started or resumed."""

    def render(self, task: Task) -> Text:
        """Return the rate, or a dash before the first image."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "-", style="dim")


class Bar:
    """A progress bar with images/s and time left."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def begin(self, title: str, *, total: int, done: int) -> None:
        """Show a new bar, already filled up to ``done``."""
        self._bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                             _Rate(), TimeElapsedColumn(), TimeRemainingColumn(),
                             console=Console(stderr=True))
        self._bar.start()
        self._bar.add_task(title, total=total, completed=done)

    def advance(self, images: int) -> None:
        """Count ``images`` more."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], images)

    def beat(self) -> None:
        """Do nothing: the bar's clock runs by itself."""

    def end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()


class Lines:
    """One plain line at most every ten seconds and one at the end, for logs."""

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
        if now - self._last >= LINE_SECONDS:
            self._last = now
            rate = self._new / (now - self._start)
            left = (self._total - self._done) / rate
            self._say(f"{self._title}: {self._done}/{self._total} images, "
                      f"{rate:.1f} images/s, {left:.0f} s left")

    def beat(self) -> None:
        """Count a pass of the model and, when a batch takes long, say that it is alive."""
        self._passes += 1
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self._say(f"{self._title}: {self._done}/{self._total} images, then a batch at work for "
                      f"{now - self._batch:.0f} s, {self._passes} passes of the model so far")

    def end(self) -> None:
        """Say how the run ended."""
        seconds = time.monotonic() - self._start
        self._say(f"{self._title}: {self._done}/{self._total} images, {seconds:.1f} s")

    @staticmethod
    def _say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def progress() -> Bar | Lines:
    """Return the progress that suits standard error."""
    return Bar() if sys.stderr.isatty() else Lines()
