"""Trouble of the machine: what it lacked when something failed that is no defect of ours."""

from __future__ import annotations

import errno
import re

from sanrobust.errors import MachineError

MEMORY, FILES, PROCESSES, SHARED = ("memory", "open files", "processes and threads",
                                    "shared memory")

_OF_NUMBER = {errno.ENOMEM: MEMORY, errno.EMFILE: FILES, errno.ENFILE: FILES,
              errno.EAGAIN: PROCESSES}
# Libraries tell the same in a RuntimeError or an ImportError, each in words of its own.
_OF_WORDS = ((re.compile("shared memory|/dev/shm"), SHARED),
             (re.compile("[Tt]oo many open files"), FILES),
             (re.compile("can't start new thread|pthread_create|Thread creation failed"),
              PROCESSES),
             (re.compile("can't allocate memory|cannot allocate memory|out of memory|"
                         "not enough memory|could not create a primitive|failed to map segment|"
                         "bad_alloc",
                         re.IGNORECASE), MEMORY))
_WAYS_OUT = {
    MEMORY: "free some, raise the limit (ulimit -v) or lower the batch size",
    FILES: "raise the limit (ulimit -n) or use fewer processes",
    PROCESSES: "raise the limit (ulimit -u) or use fewer processes",
    SHARED: "enlarge /dev/shm or use fewer processes",
}


def lacking(error: BaseException) -> str | None:
    """Say what the machine lacked when ``error`` was raised; None for an error of another kind."""
    # A device's lack of memory is a type of torch's, which is not loaded for this.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return MEMORY
    if isinstance(error, OSError) and error.errno in _OF_NUMBER:
        return _OF_NUMBER[error.errno]
    if isinstance(error, (RuntimeError, ImportError, OSError)):
        return next((what for words, what in _OF_WORDS if words.search(str(error))), None)
    return None


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is an allocation that could not be made, on whatever device."""
    return lacking(error) == MEMORY


def machine_error(error: BaseException) -> MachineError | None:
    """Turn trouble of the machine into a sentence; None for an error of another kind."""
    what = lacking(error)
    if what is None:
        return None
    lines = str(error).splitlines() or [type(error).__name__]
    return MachineError(f"the machine must have enough {what} for this command",
                        seen=f"it ran out of them ({lines[-1]})"
                        if what in (FILES, PROCESSES) else f"it ran out of it ({lines[-1]})",
                        hint=f"{_WAYS_OUT[what]}, and type the same command again; what was "
                             "measured is kept")
