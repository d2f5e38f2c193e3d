"""The allocator keeps large temporaries where it may, and says why where it may not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sanrobust import allocator

GLIBC = "glibc 2.36"
needs_glibc = pytest.mark.skipif(allocator.c_library() is None, reason="this is not glibc")

# Fills and frees 64 MB ten times and prints the page faults that this took.
CHURN = """
import ctypes, resource
from sanrobust import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)

def faults(rounds, size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        memory = libc.malloc(size)
        ctypes.memset(memory, 1, size)
        libc.free(memory)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults(10)
tuning = allocator.tune()
faults(1)
print(len(tuning.done), default, faults(10))
"""


def _run(script: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    return subprocess.run([sys.executable, "-c", script], env={**kept, **variables}, check=True,
                          capture_output=True, text=True).stdout


@needs_glibc
def test_memory_of_a_tuned_process_is_not_mapped_anew() -> None:
    settings, default, tuned = map(int, _run(CHURN).split())
    assert settings == 2
    # 64 MB are 16384 small pages, or 32 huge ones where the kernel uses those.
    assert default > 10 * 32
    assert tuned < default / 20


@needs_glibc
@pytest.mark.parametrize(("name", "value"), [
    ("MALLOC_TRIM_THRESHOLD_", "131072"), ("MALLOC_MMAP_MAX_", "65536"),
    ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")])
def test_a_users_own_settings_are_kept(name: str, value: str) -> None:
    script = "from sanrobust import allocator; print(allocator.tune())"
    said = _run(script, **{name: value})
    assert "done=()" in said and name in said


@pytest.mark.parametrize(("environment", "library", "words"), [
    ({}, None, "is not glibc"),
    ({"MALLOC_MMAP_THRESHOLD_": "1", "MALLOC_TOP_PAD_": "2"}, GLIBC,
     "MALLOC_MMAP_THRESHOLD_ and MALLOC_TOP_PAD_"),
    ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=1"}, GLIBC, "GLIBC_TUNABLES"),
    ({"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}, GLIBC, "libjemalloc"),
])
def test_a_refusal_says_why(environment: dict[str, str], library: str | None,
                            words: str) -> None:
    reason = allocator.refusal(environment, library)
    assert reason is not None and words in reason


@pytest.mark.parametrize("environment", [
    {}, {"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2"},
    {"LD_PRELOAD": "/usr/lib/libgomp.so.1"}])
def test_settings_of_other_things_are_no_reason_to_refuse(environment: dict[str, str]) -> None:
    assert allocator.refusal(environment, GLIBC) is None


def test_another_c_library_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "c_library", lambda: None)
    tuning = allocator.tune()
    assert tuning.done == () and tuning.refusal is not None
