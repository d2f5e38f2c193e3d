"""The C library's memory allocator, told to keep large temporaries instead of giving them back.

By default glibc maps every tensor of some megabytes anew and unmaps it when it is freed, so the
kernel clears its pages again and again. Measured on four cores, ResNet50 at batch 32 spends half
its time there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

# Parameters of mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_SETTINGS = ((_M_MMAP_MAX, 0, "M_MMAP_MAX=0"), (_M_TRIM_THRESHOLD, -1, "M_TRIM_THRESHOLD=-1"))

_OWN_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_",
                  "MALLOC_TOP_PAD_")


@dataclass(frozen=True)
class Tuning:
    """What `tune` did.

    Attributes:
        done: the settings of mallopt(3) that hold now; empty when nothing was changed.
        refusal: why nothing was changed, as a clause; None when it was.
    """

    done: tuple[str, ...] = ()
    refusal: str | None = None


def tune() -> Tuning:
    """Keep freed memory in this process, where the allocator is glibc's and the user's to choose.

    The process then holds its peak until it ends. A second call changes nothing more. A user who
    set MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_ or their like keeps that choice.
    """
    reason = refusal(os.environ, c_library())
    if reason is not None:
        return Tuning(refusal=reason)
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    done = tuple(name for parameter, value, name in _SETTINGS if mallopt(parameter, value) == 1)
    return Tuning(done) if done else Tuning(refusal="mallopt refused every setting")


def release() -> None:
    """Give memory that is free now back to the system, where the C library is glibc."""
    if c_library() is not None:
        ctypes.CDLL(None).malloc_trim(0)


def refusal(environment: Mapping[str, str], library: str | None) -> str | None:
    """Return why the allocator is left as it is, as a clause; None when it can be tuned.

    Args:
        environment: the process's variables.
        library: what `c_library` returned.
    """
    if library is None:
        return f"the C library of {sys.platform} is not glibc"
    own = [name for name in _OWN_VARIABLES if name in environment]
    if "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        own.append("GLIBC_TUNABLES")
    if own:
        return f"the environment sets {' and '.join(own)}"
    if "malloc" in environment.get("LD_PRELOAD", ""):
        return f"LD_PRELOAD names another allocator ({environment['LD_PRELOAD']})"
    return None


def c_library() -> str | None:
    """Return the version of glibc, such as ``glibc 2.36``; None for any other C library."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, OSError, ValueError):
        return None
