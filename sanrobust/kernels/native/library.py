"""The compiled CPU kernels: which library this processor runs, and how a kernel is called."""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import c_double, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from sanrobust.errors import BackendError
from sanrobust.kernels.native import build
from sanrobust.kernels.native.arguments import Arguments, PackArgs, require_struct

LEVELS = (build.GENERIC, *build.X86_LEVELS)
REBUILD = "python -m sanrobust.kernels.native.build"

_OK, _UNSUPPORTED, _OUT_OF_MEMORY = 0, 1, 2


class Library:
    """One compiled library.

    Args:
        path: the shared library's file.
        name: its level of instructions, one of ``LEVELS``.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._handle = ctypes.CDLL(str(path))
        self.name = name
        self.lanes: int = self._handle.sanrobust_lanes()

    def call(self, function: str, args: Arguments) -> int:
        """Run the kernel ``function`` of ``api.h``; other Python threads go on meanwhile.

        Raises BackendError when the kernel does not take these arguments, UsageError when they
        are those of another one and MemoryError when there is no memory for its scratch.
        """
        status = self.query(function, args)
        if status == _UNSUPPORTED:
            raise BackendError(f"{function} must be given arguments that the native kernels take",
                               seen=f"they are {_spelled(args)}", hint="use backend='reference'")
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"{function} needs more memory than there is: use smaller batches")
        return status

    def query(self, function: str, args: Arguments | None = None) -> int:
        """Return what ``function`` of ``api.h`` answers; ``args`` None: it takes none.

        Raises UsageError for the arguments of another function.
        """
        require_struct(function, args)
        entry = getattr(self._handle, function)
        answer: int = entry() if args is None else entry(ctypes.byref(args))
        return answer

    def probe(self, threads: int, seconds: float) -> float:
        """Return how fast ``threads`` threads multiply and add in registers now, in GFLOP/s."""
        entry = self._handle.sanrobust_probe
        entry.restype = c_double
        rate: float = entry(c_int32(threads), c_double(seconds))
        return rate

    def packed_size(self, inner: int, columns: int) -> int:
        """Return how many floats ``sanrobust_pack`` writes; raises UsageError for no size."""
        PackArgs(inner=inner, columns=columns)
        entry = self._handle.sanrobust_packed_size
        entry.restype = c_int64
        size: int = entry(c_int32(inner), c_int32(columns))
        return size


def load() -> Library | None:
    """Return the best library that this processor runs; None when ``refusal`` says why not."""
    return _loaded(build.LIBRARIES)[0]


def refusal() -> str | None:
    """Return why there are no kernels, as a clause; None when there are."""
    return _loaded(build.LIBRARIES)[1]


def require() -> Library:
    """Return what `load` does; raises BackendError where there are no kernels."""
    found = load()
    if found is None:
        raise BackendError("the native kernels must have been built",
                           seen=refusal() or "they are missing", hint="use backend='reference'")
    return found


def levels() -> tuple[str, ...]:
    """Return the levels that were built and that this processor runs, slowest first."""
    return tuple(_levels(build.LIBRARIES)) if refusal() is None else ()


def load_level(name: str) -> Library:
    """Return the library of one level whether or not it is the best; for comparing them.

    Raises BackendError when it was not built or this processor lacks its instructions.
    """
    able = levels()
    if name not in able:
        raise BackendError(f"the kernels of level {name} must run on this processor",
                           seen=f"it runs {', '.join(able) or 'none'}", hint=f"try {REBUILD}")
    return _levels(build.LIBRARIES)[name]


@cache
def _loaded(folder: Path) -> tuple[Library | None, str | None]:
    reason = _unbuilt(folder)
    if reason is not None:
        return None, reason
    try:
        return list(_levels(folder).values())[-1], None
    except (OSError, AttributeError, LookupError) as error:
        return None, f"its library does not load ({error}): run {REBUILD}"


@cache
def _levels(folder: Path) -> dict[str, Library]:
    """The libraries that were built and whose instructions this processor has, slowest first."""
    built = _record(folder)["libraries"]
    generic = Library(folder / built[build.GENERIC], build.GENERIC)
    able = LEVELS[1:1 + generic.query("sanrobust_level")]
    return {build.GENERIC: generic,
            **{name: Library(folder / built[name], name) for name in able if name in built}}


def _unbuilt(folder: Path) -> str | None:
    if sys.byteorder != "little":
        return "this processor is big-endian"
    record = _record(folder)
    if not record:
        return f"it was not built: run {REBUILD}"
    if record.get("reason"):
        return f"it was not built: {record['reason']}"
    if record.get("interface") != build.interface():
        return f"it was built for another version of its interface: run {REBUILD}"
    return None


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / build.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _spelled(args: Arguments) -> str:
    """The plain numbers among the arguments."""
    return ", ".join(f"{name}={getattr(args, name)}" for name, kind, *_ in args._fields_
                     if kind is not c_void_p)
