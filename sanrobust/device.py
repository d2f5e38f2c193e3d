"""Which device computes, in what environment, and how memory bounds the batch."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from operator import attrgetter
from pathlib import Path

import torch

from sanrobust.errors import BackendError, UsageError, shown_value

_MOST_WORKERS = 8
# Compute capability since which CUDA devices have TF32, and where torch switches it.
_TF32_CAPABILITY = (8, 0)
_TF32_PLACES = ("cuda.matmul", "cudnn")
LIBRARIES = ("torch", "torchvision", "timm", "torchattacks", "numpy", "pandas", "pyarrow",
             "cupy-cuda12x", "cupy-cuda13x")
# More threads than this are a slip of the keyboard, unless the machine has more processors.
MOST_THREADS = 64

_NAMES = re.compile("auto|cpu|cuda(:(0|[1-9][0-9]*))?")
# Places under torch.backends and what makes results exact and repeatable there.
_EXACT = (("cuda.matmul", "allow_tf32", False), ("cudnn", "allow_tf32", False),
          ("cudnn", "benchmark", False), ("cudnn", "deterministic", True))
# Places where torch since 2.9 says more finely which products may be less than float32.
_PRECISIONS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv",
               "mkldnn.rnn")
_Switch = tuple[str, str]  # a place ("": torch itself) and the name of the switch


def cuda_refusal() -> str | None:
    """Return why CUDA cannot be used here, or None when it can."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device or driver"
    return None


def choose_device(name: str | torch.device, local: int | None = None) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:i`` into a device that is present.

    Args:
        name: as the user gives it.
        local: which of its machine's processes this is, for ``auto`` to give each its own device;
            None where there are no others.

    Raises UsageError for another name and BackendError for a device that is not there.
    """
    name = str(name)
    if not _NAMES.fullmatch(name):
        raise UsageError("--device must be auto, cpu, cuda or cuda:i",
                         seen=f"it is {shown_value(name)}", hint="type for example --device cpu")
    refusal = cuda_refusal()
    if name == "auto":
        if refusal:
            return torch.device("cpu")
        # A launcher may show each process its own device alone, which is then the first.
        return torch.device("cuda" if local is None
                            else f"cuda:{local % torch.cuda.device_count()}")
    if name != "cpu":
        count = 0 if refusal else torch.cuda.device_count()
        # By name: an index may have more digits than Python turns into a number.
        if name not in (*["cuda"][:count], *(f"cuda:{index}" for index in range(count))):
            seen = refusal or f"there are {count} CUDA devices"
            raise BackendError(f"{shown_value(name)} must be present", seen=seen,
                               hint="type --device cpu")
    return torch.device(name)


def set_threads(count: int) -> None:
    """Compute with ``count`` threads on the CPU, torch and the native kernels alike.

    Raises UsageError for fewer than one and for more than a machine can be meant to have.
    """
    most = max(MOST_THREADS, os.cpu_count() or 1)
    if not 1 <= count <= most:
        raise UsageError(f"--threads must be 1 to {most}", seen=f"it is {count}",
                         hint=f"type --threads {os.cpu_count() or 1}, one for each processor")
    torch.set_num_threads(count)


def require_tf32(device: torch.device) -> None:
    """Raise BackendError for a device that has no TF32: it would compute in float32 unasked."""
    seen = f"the device is {device}, which has none"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _TF32_CAPABILITY:
            return
        seen = f"{device_name(device)} has none (compute capability {capability[0]})"
    raise BackendError("--precision tf32 must go with a CUDA device that has TF32", seen=seen,
                       hint="leave it out, which computes in float32, or add --device cuda where "
                            "there is such a device")


def default_workers(device: torch.device) -> int:
    """Return how many processes decode images when nobody says: this one alone on a CPU.

    A CPU that computes has no time to spare; one that feeds a CUDA device has little else to do.
    """
    return min(_MOST_WORKERS, cores() - 1) if device.type == "cuda" else 0


def cores() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


@contextmanager
def exact(threads: int | None = None, *, tf32: bool = False) -> Iterator[None]:
    """Let neither the device nor repetition change numbers beyond rounding, inside the block.

    The caller's autocast, inference mode and default type do not reach into it. Afterwards torch's
    switches and its number of threads are what they were. Also a decorator.

    Args:
        threads: how many threads compute inside; None: as many as before.
        tf32: let a CUDA device round the factors of products to TF32 all the same.

    Raises UsageError for a number of threads that `set_threads` refuses.
    """
    before = [(switch, _read(switch)) for switch in _switches()]
    count, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        make_exact()
        if tf32:
            for place in _TF32_PLACES:
                _write((place, "allow_tf32"), True)
        if threads is not None:
            set_threads(threads)
        with ExitStack() as plain:
            plain.enter_context(torch.inference_mode(False))
            for kind in ("cpu", "cuda"):
                plain.enter_context(torch.autocast(kind, dtype=torch.bfloat16, enabled=False))
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(count)
        for switch, value in before:
            if value is not None and _read(switch) != value:
                _write(switch, value)


def make_exact() -> None:
    """Set torch as `exact` does, for the rest of the process."""
    torch.set_float32_matmul_precision("highest")
    for place, name, value in _EXACT:
        _write((place, name), value)
    for place in _PRECISIONS:
        # What is not set here follows the switches above, and is set by them again.
        if _read((place, "fp32_precision")) not in (None, "none", "ieee"):
            _write((place, "fp32_precision"), "ieee")


def _switches() -> list[_Switch]:
    return [("", "float32_matmul_precision"), *((place, name) for place, name, _ in _EXACT),
            *((place, "fp32_precision") for place in _PRECISIONS)]


def _read(switch: _Switch) -> bool | str | None:
    """Return a switch's value; None where this torch has none, or says that two contradict."""
    place, name = switch
    try:
        if not place:
            return torch.get_float32_matmul_precision()
        value: bool | str = getattr(attrgetter(place)(torch.backends), name)
        return value
    except (AttributeError, RuntimeError):
        return None


def _write(switch: _Switch, value: bool | str) -> None:
    place, name = switch
    if place:
        setattr(attrgetter(place)(torch.backends), name, value)
    else:
        torch.set_float32_matmul_precision(str(value))


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that numbers may depend on."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found


def environment(device: torch.device) -> dict[str, object]:
    """Return the facts of the machine for a run's header."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "tf32": bool(_read(("cudnn", "allow_tf32"))),
    }


def device_name(device: torch.device) -> str:
    """Return the device with its hardware's name where the driver tells it."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def free_memory(device: torch.device) -> int:
    """Return the bytes that may still be allocated on ``device``."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    return 2 << 30
