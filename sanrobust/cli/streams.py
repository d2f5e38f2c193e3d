"""The three standard streams, which may be closed, full or of another encoding."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from sanrobust.errors import OutputError


def open_streams() -> None:
    """Make the standard streams usable.

    A closed one is opened on nothing; otherwise the next file would get its number, and what is
    printed would go into that. Standard error swallows, standard output goes on to refuse. What
    an encoding cannot spell is escaped.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def refused_by_output(error: OSError) -> bool:
    """Say whether an error came from standard output, which then refuses one more line too."""
    if isinstance(error, BrokenPipeError):
        return False
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def nowhere_to_print(error: OSError, *, hint: str) -> OutputError:
    """Return the error of a standard output that takes nothing, and drop what is left in it."""
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return OutputError("what is printed must have somewhere to go",
                       seen=f"standard output takes nothing ({error.strerror or error})",
                       hint=hint)


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
