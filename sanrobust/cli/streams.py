"""Standard error whose reader may go away: a pipe that is closed, a terminal that hangs up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class _Patient:
    """A text stream that drops what the stream behind it no longer takes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def patient_stderr() -> Iterator[None]:
    """Let nobody who stops listening to the progress of a command stop the command."""
    before = sys.stderr
    if before is None or isinstance(before, _Patient):
        yield
        return
    sys.stderr = cast(TextIO, _Patient(before))
    try:
        yield
    finally:
        sys.stderr = before
