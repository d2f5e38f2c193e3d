"""Running cases: each in a process of its own, forked from one that has everything loaded.

A fresh process takes seconds to load torch; a forked one starts at once, runs the same code, and
may still crash, hang or grow without hurting anyone. Every so often a fresh one is started after
all, as a user does.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from hostile.case import MOST_SECONDS, Answer, Case

# More than a case may take, less than would trouble the machine.
_MOST_ADDRESSES = 12 << 30
LOADING = 60.0
"""Seconds in which a fresh process has loaded torch, on a busy machine too."""
State = dict[str, tuple[int, int]]


def run(case: Case, *, fresh: bool = False) -> Answer:
    """Type the command of a case and watch what comes of it.

    Args:
        case: the command and its folder.
        fresh: start python anew instead of forking.
    """
    before = _state(case.folder)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _become(case, out.fileno(), err.fileno(), _execute if fresh else _call)
        status, peak = _wait(child, MOST_SECONDS + (LOADING if fresh else 0))
        seconds = time.monotonic() - begun
        after = _state(case.folder)
        written = tuple(name for name, state in after.items() if before.get(name) != state)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        return Answer(code, _text(out.fileno()), _text(err.fileno()), seconds, peak, written)


def load() -> None:
    """Load what commands load, so that forked processes need not."""
    import sanrobust.cli.report
    import sanrobust.run
    import sanrobust.study
    import sanrobust.summary  # noqa: F401


def _become(case: Case, out: int, err: int, begin: Callable[[Case], None]) -> None:
    """Turn this process, which has just been forked, into the command; never returns."""
    code = 70
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_ADDRESSES, _MOST_ADDRESSES))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (open(each, "w", closefd=False) for each in (1, 2))
        os.chdir(case.folder)
        os.environ.update({"SANROBUST_HOME": "home", "COLUMNS": "100", **case.env})
        begin(case)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call(case: Case) -> None:
    from sanrobust.cli import main
    main(list(case.argv), prog_name="sanrobust")


def _execute(case: Case) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "sanrobust", *case.argv])


def _wait(child: int, seconds: float) -> tuple[int | None, int]:
    """Return the wait status, None where the time was up, and the most memory it held."""
    try:
        with _alarm(seconds):
            _, status, usage = os.wait4(child, 0)
    except TimeoutError:
        os.killpg(child, signal.SIGKILL)
        _, _, usage = os.wait4(child, 0)
        return None, usage.ru_maxrss * 1024
    return status, usage.ru_maxrss * 1024


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _state(folder: Path) -> State:
    """Return size and time of change of every file below a folder."""
    found: State = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            found[os.path.relpath(path, folder)] = status.st_size, status.st_mtime_ns
    return found


def _text(stream: int) -> str:
    size = os.fstat(stream).st_size
    return os.pread(stream, min(size, 1 << 20), 0).decode("utf-8", "backslashreplace")
