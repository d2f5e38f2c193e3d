"""Progress of long runs: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task,
                           TextColumn, TimeElapsedColumn, TimeRemainingColumn)
from rich.text import Text

from sanrobust.progress import Lines


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


def progress() -> Bar | Lines:
    """Return the progress that suits standard error."""
    return Bar() if sys.stderr.isatty() else Lines()
