"""Runs the CUDA kernels' own sources on the CPU: compiled by g++ with ``cuda_shim.h``."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import Structure
from pathlib import Path

from torch import Tensor

from sanrobust.kernels.cuda import compiler
from sanrobust.kernels.cuda.compiler import Kernel

SHIM = Path(__file__).with_name("cuda_shim.h")
COMPILER = shutil.which("g++")
# The struct that the kernels of a source take, told by their names.
STRUCTS = {"pairwise": "PairwiseArgs", "patchwise": "PatchwiseArgs"}
WITHOUT_BARRIERS = ("elementary.cu", "general.cu")
# An H100's limit for one block.
SHARED_LIMIT = 227 << 10


def struct_of(kernel: Kernel) -> str:
    """The C++ name of the struct that a kernel takes."""
    name = kernel.expression.removeprefix("san::").removeprefix("narrow_").partition("<")[0]
    return STRUCTS.get(name.partition("_")[0], "ElementaryArgs")


def driver(file: str, kernels: list[Kernel]) -> str:
    """C++ that offers every instantiation as a function ``kernel_<number>``."""
    lines = [f'#include "{SHIM}"', compiler.source(file)]
    for number, kernel in enumerate(kernels):
        lines.append(
            f'extern "C" void kernel_{number}(const san::{struct_of(kernel)} *args, '
            "unsigned blocks, unsigned threads, size_t shared, unsigned seed) {\n"
            f"  shim::launch(blocks, threads, shared, {int(file not in WITHOUT_BARRIERS)}, seed,"
            f" [args] {{ {kernel.expression}(*args); }});\n}}")
    return "\n".join(lines) + "\n"


def build(folder: Path, file: str, kernels: list[Kernel], *flags: str) -> ctypes.CDLL:
    """Compile the instantiations of one source into a library."""
    text, library = folder / f"{file}.cpp", folder / f"{file}.so"
    text.write_text(driver(file, kernels), "utf-8")
    command = [str(COMPILER), "-std=c++17", "-O1", "-fno-strict-aliasing", "-Wall", "-Wextra",
               "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-parameter",
               "-shared", "-fPIC", *flags, "-o", str(library), str(text)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-4000:]
    return ctypes.CDLL(str(library))


class ShimDevice:
    """Runs kernels that were compiled before on CPU tensors.

    Args:
        folder: where libraries are put.
        kernels: all instantiations that may be launched.
        flags: more options for the compiler.
    """

    def __init__(self, folder: Path, kernels: list[Kernel], *flags: str) -> None:
        self.limit = SHARED_LIMIT
        self.launched: set[Kernel] = set()
        self._launches = 0
        self._functions: dict[Kernel, ctypes._NamedFuncPointer] = {}
        for file in {kernel.file for kernel in kernels}:
            mine = [kernel for kernel in kernels if kernel.file == file]
            library = build(folder, file, mine, *flags)
            for number, kernel in enumerate(mine):
                self._functions[kernel] = getattr(library, f"kernel_{number}")

    def __call__(self, maps: Tensor) -> ShimDevice:
        return self

    def shared_limit(self) -> int:
        return self.limit

    def launch(self, kernel: Kernel, blocks: int, threads: int, args: Structure,
               shared: int = 0) -> None:
        self.launched.add(kernel)
        self._launches += 1
        assert shared <= self.limit
        self._functions[kernel](ctypes.byref(args), ctypes.c_uint(blocks), ctypes.c_uint(threads),
                                ctypes.c_size_t(shared), ctypes.c_uint(self._launches))
