"""Signals that stop a command, and processes that work for it: none outlives the one it works for.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType

# Ctrl-C, a polite kill, and the end of the terminal, which Windows does not tell.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
              if hasattr(signal, name))
# Within this time of a first signal another one is taken for impatience, not for a new wish.
PATIENCE_S = 5.0

_PR_SET_PDEATHSIG = 1  # of prctl(2), from linux/prctl.h


class Stop:
    """The handler of the signals that stop a command.

    Attributes:
        heard: name of the first of them that came; None before.
    """

    def __init__(self) -> None:
        self.heard: str | None = None
        self._deaf_until = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, but not again while the block saves what it has."""
        if time.monotonic() >= self._deaf_until:
            self._deaf_until = time.monotonic() + PATIENCE_S
            self.heard = self.heard or signal.Signals(number).name
            raise KeyboardInterrupt


@contextmanager
def stoppable(*, ends_the_process: bool = False) -> Iterator[Stop]:
    """Let each of `STOPS` end the block by KeyboardInterrupt.

    A signal that was ignored before (under nohup, in the background of a script) stays so. Does
    nothing within another such block, nor outside the main thread, which alone may choose.

    Args:
        ends_the_process: nothing but the process's end follows the block, so that further signals
            may go unheard once one was.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPS}
    outer = next((each for each in before.values() if isinstance(each, Stop)), None)
    if outer is not None:
        yield outer
        return
    chosen = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    try:
        for number in chosen:
            signal.signal(number, stop)
        yield stop
    finally:
        for number in chosen:
            is_over = ends_the_process and stop.heard
            # A handler that was not set from Python is not told by it, and cannot be put back.
            signal.signal(number, signal.SIG_IGN if is_over else before[number] or signal.SIG_DFL)


def end_if_stopped() -> None:
    """Raise KeyboardInterrupt once more after a signal whose own one went unheard.

    What is raised while an object is deleted, or within a callback of a library, is dropped there.
    """
    handlers = map(signal.getsignal, STOPS)
    if any(isinstance(handler, Stop) and handler.heard for handler in handlers):
        raise KeyboardInterrupt


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal that stops the command wait until the block has ended by itself.

    Blocking it in this thread would not do: the system would give it to another thread of the
    process, and Python would still break into this one. Outside the main thread, into which Python
    never breaks, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: handler for number in STOPS if callable(handler := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, remember)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


@contextmanager
def stops_held() -> Iterator[None]:
    """Hold `STOPS` back until the block ends; processes started in it hold them back as well."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def become_worker() -> None:
    """Make this process, started within `stops_held`, a worker of the one that started it.

    It ends when that one does, whatever ended it. Ctrl-C and the end of the terminal reach every
    process at once; the one that the worker works for decides what they mean.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    sys.excepthook = _unless_parent_left
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if not _killed_with_parent():
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    elif os.getppid() != parent.pid:  # it ended before the system knew what is wanted
        os._exit(1)


def _unless_parent_left(kind: type[BaseException], error: BaseException,
                        trace: TracebackType | None) -> None:
    """Print a traceback, but not that of a thread whose talk with the parent broke off."""
    if not isinstance(error, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def _killed_with_parent() -> bool:
    """Have the system kill this process with its parent; False where it cannot be asked to."""
    if sys.platform != "linux":
        return False
    kill: int = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return kill == 0


def _follow(parent: BaseProcess) -> None:
    # The sentinel is a pipe whose other end the system closes with the parent. What waits for it
    # here may be late: it needs Python's lock, which the loading of a large library holds.
    connection.wait([parent.sentinel])
    os._exit(1)


@contextmanager
def workers_ended_on_error() -> Iterator[None]:
    """Where the block fails, end the processes that it has started through multiprocessing."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        left = set(multiprocessing.active_children()) - before
        for worker in left:
            worker.kill()
        for worker in left:
            worker.join()
        raise
