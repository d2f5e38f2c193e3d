"""Compiles and launches the CUDA kernels through CuPy, each when it is first needed.

CuPy keeps what it compiled in its cache on disk (CUPY_CACHE_DIR), by device architecture.
Nothing is imported from CuPy before a kernel or the reason against it is asked for.
"""

from __future__ import annotations

import re
from ctypes import Structure, sizeof
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

SOURCES = Path(__file__).with_name("src")
OPTIONS = ("-std=c++17",)
# More dynamic shared memory than this, in bytes, must be asked for kernel by kernel.
FREE_SHARED = 48 << 10
_INCLUDE = re.compile(r'#include "([\w.]+)"')


@dataclass(frozen=True)
class Kernel:
    """One instantiation of a kernel template.

    Attributes:
        file: the source under ``src``.
        expression: its name in C++, with template arguments.
    """

    file: str
    expression: str


class Device(Protocol):
    """What runs kernels on the tensors of one device."""

    def shared_limit(self) -> int:
        """Return the most bytes of shared memory that one block may have."""
        ...

    def launch(self, kernel: Kernel, blocks: int, threads: int, args: Structure,
               shared: int = 0) -> None:
        """Queue a kernel on the current stream, with ``shared`` bytes of dynamic memory."""
        ...


def source(file: str) -> str:
    """Return a source file with its own includes put in, as CuPy's cache sees one text only."""
    return _joined(file, set())


def _joined(file: str, seen: set[str]) -> str:
    seen.add(file)
    lines = []
    for line in (SOURCES / file).read_text("utf-8").splitlines():
        found = _INCLUDE.match(line)
        if found is None:
            lines.append("" if line == "#pragma once" else line)
        elif found[1] not in seen:
            lines.append(_joined(found[1], seen))
    return "\n".join(lines) + "\n"


@cache
def refusal() -> str | None:
    """Return why kernels cannot be compiled and run here, as a clause; None when they can."""
    if torch.version.hip is not None:
        return "this torch is built for AMD devices"
    try:
        import cupy
    except ImportError:
        return ("CuPy is not installed; for CUDA 13: pip install 'sanrobust[cuda13]', "
                "for CUDA 12: pip install 'sanrobust[cuda12]'")
    try:
        if not cupy.cuda.is_available() or not torch.cuda.is_available():
            return "there is no CUDA device or driver"
        cupy.cuda.nvrtc.getVersion()
    except Exception as reason:  # a broken installation fails in its own ways
        return f"CuPy does not work here ({type(reason).__name__}: {reason})"
    return None


class CupyDevice:
    """A CUDA device of torch, run by CuPy.

    Args:
        index: torch's number of the device.
    """

    def __init__(self, index: int) -> None:
        import cupy
        self._index = index
        self._device = cupy.cuda.Device(index)
        self._shared_limit = int(self._device.attributes["MaxSharedMemoryPerBlockOptin"])
        self._found: dict[Kernel, Any] = {}

    def shared_limit(self) -> int:
        """Return the most bytes of shared memory that one block may have."""
        return self._shared_limit

    def launch(self, kernel: Kernel, blocks: int, threads: int, args: Structure,
               shared: int = 0) -> None:
        """Queue a kernel on torch's current stream of this device."""
        # A numpy array of one element is how CuPy passes a struct by value.
        value = np.frombuffer(memoryview(args).cast("B"), dtype=np.dtype((np.void, sizeof(args))))
        stream = _Stream(torch.cuda.current_stream(self._index).cuda_stream)
        with torch.cuda.device(self._index), self._device:
            self._function(kernel)((blocks,), (threads,), (value,), shared_mem=shared,
                                   stream=stream)

    def _function(self, kernel: Kernel) -> Any:
        function = self._found.get(kernel)
        if function is None:
            module = _module(kernel)
            function = module.get_function(kernel.expression)
            if self._shared_limit > FREE_SHARED:
                static = function.shared_size_bytes
                function.max_dynamic_shared_size_bytes = self._shared_limit - static
            self._found[kernel] = function
        return function


@dataclass(frozen=True)
class _Stream:
    """What a launch needs to know of a stream that is not CuPy's own."""

    ptr: int


@cache
def _module(kernel: Kernel) -> Any:
    import cupy
    return cupy.RawModule(code=source(kernel.file), options=OPTIONS,
                          name_expressions=(kernel.expression,))


@cache
def device(index: int) -> Device:
    """Return what runs kernels on torch's CUDA device ``index``."""
    return CupyDevice(index)
