"""The compiled CPU kernels in Python: the structs of ``src/api.h`` and who calls them.

The structs mirror the header field by field; what each field means is said there.
"""

from __future__ import annotations

import ctypes
import json
import sys
from ctypes import Structure, c_double, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from sanrobust.errors import BackendError
from sanrobust.kernels.native import build

REFLECT, ZEROS = 0, 1
FLOAT, DOUBLE = 0, 1
LEVELS = (build.GENERIC, *build.X86_LEVELS)
REBUILD = "python -m sanrobust.kernels.native.build"

_OK, _UNSUPPORTED, _OUT_OF_MEMORY = 0, 1, 2


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


_SHAPE = [*_fields(c_int64, "images height width"),
          *_fields(c_int32, "relation hidden groups channels footprint padding element threads")]


class PairwiseArgs(Structure):
    """Arguments of the pairwise operator."""

    _fields_ = [*_SHAPE, *_fields(c_int32, "table_per_pixel unused"),
                *_fields(c_void_p, "qkv w1 w1t w2 w2t table scale shift y out alpha signs grad "
                                   "grad_qkv")]


class PatchwiseArgs(Structure):
    """Arguments of the patchwise operator."""

    _fields_ = [*_SHAPE,
                *_fields(c_void_p, "qkv key_scale key_shift w1 w1t b1 w2 w2t b2 scale shift y out "
                                   "h grad grad_qkv")]


class ElementaryArgs(Structure):
    """Arguments of aggregation and subtraction."""

    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "channels groups footprint stride dilation padding element "
                                  "threads"),
                *_fields(c_void_p, "first second grad out grad_first grad_second")]


class GemmArgs(Structure):
    """Arguments of the matrix product with its prologue and epilogue."""

    _fields_ = [*_fields(c_int64, "rows"), *_fields(c_int32, "inner columns threads accumulate"),
                *_fields(c_void_p, "a packed bias out in_scale in_shift in_signs"),
                *_fields(c_int64, "pool_height pool_width"),
                *_fields(c_void_p, "pool_codes out_scale out_signs")]


class PackArgs(Structure):
    """Arguments of the packing of a product's right side."""

    _fields_ = [*_fields(c_int32, "inner columns"), ("b", c_void_p),
                *_fields(c_int64, "row_stride column_stride"), ("packed", c_void_p)]


class StemArgs(Structure):
    """Arguments of the first layer."""

    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "channels pooled threads unused"),
                *_fields(c_void_p, "pixels weight bias out codes grad grad_pixels")]


class UnpoolArgs(Structure):
    """Arguments of the undoing of a maximum over 2x2 pixels."""

    _fields_ = [*_fields(c_int64, "images height width"), *_fields(c_int32, "channels threads"),
                *_fields(c_void_p, "grad codes scale out")]


class HeadArgs(Structure):
    """Arguments of the mean over a map's pixels."""

    _fields_ = [*_fields(c_int64, "images pixels"), *_fields(c_int32, "channels threads"),
                *_fields(c_void_p, "x scale shift pooled signs grad grad_x")]


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

    def call(self, function: str, args: Structure) -> int:
        """Run the kernel ``function`` of ``api.h``; other Python threads go on meanwhile.

        Raises BackendError when the kernel does not take these arguments and MemoryError when
        there is no memory for its scratch.
        """
        status = self.query(function, args)
        if status == _UNSUPPORTED:
            raise BackendError(f"{function} must be given arguments that the native kernels take",
                               seen=f"they are {_spelled(args)}", hint="use backend='reference'")
        if status == _OUT_OF_MEMORY:
            raise MemoryError(f"{function} needs more memory than there is: use smaller batches")
        return status

    def query(self, function: str, args: Structure | None = None) -> int:
        """Return what ``function`` of ``api.h`` answers; ``args`` None: it takes none."""
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
        """Return how many floats ``sanrobust_pack`` writes."""
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


def address(tensor: Tensor | None) -> int | None:
    """Return where a dense tensor's elements begin; None for None."""
    return None if tensor is None else tensor.data_ptr()


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


def _spelled(args: Structure) -> str:
    """The plain numbers among the arguments."""
    return ", ".join(f"{name}={getattr(args, name)}" for name, kind, *_ in args._fields_
                     if kind is not c_void_p)
