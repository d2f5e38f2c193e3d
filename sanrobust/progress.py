"""Who is told what a run does and how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


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
