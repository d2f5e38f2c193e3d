"""The three standard streams, which may be closed, full or of another encoding."""

from __future__ import annotations

import io
import os
import sys

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
