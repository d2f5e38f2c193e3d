"""Which device computes, in what environment, and how memory bounds the batch."""

from __future__ import annotations

import platform
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from sanrobust.errors import BackendError, UsageError

LIBRARIES = ("torch", "torchvision", "timm", "torchattacks", "numpy", "pandas", "pyarrow",
             "cupy-cuda12x", "cupy-cuda13x")


def cuda_refusal() -> str | None:
    """Return why CUDA cannot be used here, or None when it can."""
    if torch.version.cuda is None:
        return "this build of torch has no CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device or driver"
    return None


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:i`` into a device that is present.

    Raises UsageError for another name and BackendError for a device that is not there.
    """
    refusal = cuda_refusal()
    if name == "auto":
        return torch.device("cpu" if refusal else "cuda")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or name == "cpu:":
        raise UsageError("--device must be auto, cpu, cuda or cuda:i", seen=f"it is {name!r}",
                         hint="type for example --device cpu")
    if kind == "cuda":
        count = 0 if refusal else torch.cuda.device_count()
        if int(index or 0) >= count:
            seen = refusal or f"there are {count} CUDA devices"
            raise BackendError(f"{name} must be present", seen=seen, hint="type --device cpu")
    return torch.device(name)


def make_exact() -> None:
    """Set torch so that the device and repetition do not change numbers beyond rounding."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


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
        "tf32": bool(torch.backends.cudnn.allow_tf32),
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


def out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is an allocation that torch could not make."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
