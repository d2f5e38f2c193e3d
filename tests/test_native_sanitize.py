"""The C++ of the CPU kernels under sanitizers, and its structs beside those of Python."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sanrobust.kernels.native import arguments, build

STRUCTS = ("PairwiseArgs", "PatchwiseArgs", "LocalArgs", "DotsArgs", "ElementaryArgs", "GemmArgs",
           "PackArgs", "StemArgs", "UnpoolArgs", "HeadArgs", "RepeatArgs", "NormArgs",
           "LearnedStemArgs")
# Leaks are Python's, and races what OpenMP and torch do among themselves.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0",
           "TSAN_OPTIONS": "ignore_noninstrumented_modules=1 halt_on_error=1"}


def _compiler() -> tuple[str, ...]:
    try:
        return build.find_compiler().command
    except build.BuildError as error:
        pytest.skip(str(error))


def test_structs_lie_in_memory_as_the_compiler_lays_them(tmp_path: Path) -> None:
    numbers = []
    for name in STRUCTS:
        fields = [field for field, *_ in getattr(arguments, name)._fields_]
        numbers += [f"sizeof({name})", *(f"offsetof({name}, {field})" for field in fields)]
    source, library = tmp_path / "sizes.cpp", tmp_path / "sizes.so"
    source.write_text(f'#include <cstddef>\n#include "{build.SOURCES / "api.h"}"\n'
                      f'extern "C" unsigned long sizes[] = {{{", ".join(numbers)}}};\n')
    subprocess.run([*_compiler(), "-std=c++17", "-shared", "-fPIC", "-o", library, source],
                   check=True)
    found = (ctypes.c_ulong * len(numbers)).in_dll(ctypes.CDLL(str(library)), "sizes")
    expected = []
    for name in STRUCTS:
        struct = getattr(arguments, name)
        expected += [ctypes.sizeof(struct),
                     *(getattr(struct, field).offset for field, *_ in struct._fields_)]
    assert dict(zip(numbers, found, strict=True)) == dict(zip(numbers, expected, strict=True))


def test_no_struct_is_left_out() -> None:
    text = (build.SOURCES / "api.h").read_text()
    assert {line.split()[1] for line in text.splitlines()
            if line.startswith("struct ")} == set(STRUCTS)


@pytest.mark.parametrize("kind, runtime", [
    ("address,undefined -fno-sanitize-recover=all", "libasan.so"), ("thread", "libtsan.so")])
def test_sanitizers_find_nothing(tmp_path: Path, kind: str, runtime: str) -> None:
    compiler = _compiler()[0]
    libraries = [subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True,
                                text=True).stdout.strip() for name in (runtime, "libstdc++.so")]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip(f"{compiler} comes without {runtime}")
    settings = {"CXX": f"{compiler} -fsanitize={kind}", "LD_PRELOAD": " ".join(libraries),
                "PYTHONPATH": os.pathsep.join(sys.path), **OPTIONS}
    script = Path(__file__).with_name("native_sanitize.py")
    # The thread sanitizer wants its places in memory free: no address may be random.
    fixed = ("setarch", "-R") if kind == "thread" and shutil.which("setarch") else ()
    run = subprocess.run([*fixed, sys.executable, str(script), str(tmp_path)],
                         env=os.environ | settings, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.endswith("clean\n")
