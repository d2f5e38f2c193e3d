"""Peak memory of one contender, measured in a process of its own.

On a CPU it is the growth of the resident set above what the process held with its libraries
loaded and its model built. On a GPU it is what torch allocated above the model.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sanrobust import allocator
from sanrobust.bench import models
from sanrobust.bench.contender import Contender
from sanrobust.bench.samples import Case
from sanrobust.bench.settings import ATTACK, TRAINING, Settings, Shape
from sanrobust.device import free_memory, make_exact
from sanrobust.kernels.native import library
from sanrobust.memory import image_bytes

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Makes the kernel forget the peak so far (proc(5), clear_refs).
_FORGET_PEAK = "5"
_USABLE_PART = 0.8
# Imports what this process does, and not a package that happens to lie in the working folder.
_CHILD = """
import json, sys
job = json.loads(sys.argv[1])
sys.path[:] = job["path"]
from sanrobust.bench import peak
print(json.dumps(peak.measure(job)))
"""


@dataclass(frozen=True)
class Peak:
    """Memory of one contender in one case.

    Attributes:
        case, contender: what was run.
        computed_by: what computed it, in words.
        base: bytes held before the first call: libraries, model and pixels.
        model: how many of them model and pixels took.
        net: most bytes held above that during two calls; None when it could not be measured.
        failure: why not, as a clause.
    """

    case: Case
    contender: str
    computed_by: str
    base: int | None = None
    model: int | None = None
    net: int | None = None
    failure: str | None = None


def measure_peaks(settings: Settings, model: str, *, training: bool = False) -> Iterator[Peak]:
    """Yield the peak of every contender and step of a model, each from a process of its own."""
    shape = settings.shape
    classifier = models.load(model, shape)
    for each in models.contenders(settings.contenders, classifier, shape, training=training):
        for step in each.calls:
            case = Case("model", model, step, shape.batch_size)
            reason = _unreadable(shape) or too_large(each, step, shape)
            yield Peak(case, each.name, each.computed_by,
                       **({"failure": reason} if reason else _elsewhere(case, each.name,
                                                                        settings)))


def too_large(contender: Contender, step: str, shape: Shape) -> str | None:
    """Return why a batch would not fit into the memory that is free now; None when it may.

    A GPU says so itself when it is asked for too much; a CPU would end the process.
    """
    device = torch.device(shape.device)
    if device.type != "cpu" or contender.model is None:
        return None
    needed = shape.batch_size * image_bytes(contender.model, shape.img_size, device,
                                            gradient=step == ATTACK)
    free = free_memory(device)
    if needed <= _USABLE_PART * free:
        return None
    return f"it needs about {needed / 1e9:.0f} GB, and {free / 1e9:.0f} are free"


def _elsewhere(case: Case, contender: str, settings: Settings) -> dict[str, Any]:
    """Return what a process of its own found: ``base``, ``model``, ``net``; or a ``failure``."""
    job = {"model": case.name, "step": case.step, "contender": contender,
           "threads": settings.threads, "shape": asdict(settings.shape), "path": sys.path}
    done = subprocess.run([sys.executable, "-c", _CHILD, json.dumps(job)],
                          capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return {"failure": f"signal {-done.returncode} ended its process"}
    if done.returncode:
        return {"failure": (done.stderr.strip().splitlines() or ["its process failed"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(job: Mapping[str, Any]) -> dict[str, int]:
    """Run one contender in this process and return ``base``, ``model`` and ``net`` of `Peak`."""
    if job["threads"] is not None:
        torch.set_num_threads(job["threads"])
    make_exact()
    shape = Shape(**job["shape"])
    library.load()
    libraries = _start(shape)
    call = _call(job, shape)
    # Memory that building the model freed must not serve the calls unseen. For the same reason
    # the allocator is not tuned here: it would keep more than the calls need.
    gc.collect()
    allocator.release()
    base = _start(shape)
    for _ in range(2):
        call()
    return {"base": base, "model": base - libraries, "net": _peak(shape) - base}


def _call(job: Mapping[str, Any], shape: Shape) -> Callable[[], object]:
    """Return one step of the contender; what it was made from is not kept."""
    classifier = models.load(job["model"], shape)
    (made,) = models.contenders([job["contender"]], classifier, shape,
                                training=job["step"] == TRAINING)
    return made.calls[job["step"]]


def _start(shape: Shape) -> int:
    """Return the bytes held now, and begin to watch for the peak."""
    if shape.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(shape.device)
        return torch.cuda.memory_allocated(shape.device)
    # The peak of getrusage(2) would not do: it begins with the parent's.
    with suppress(OSError):
        _CLEAR.write_text(_FORGET_PEAK, encoding="ascii")
    return _held("VmRSS")


def _peak(shape: Shape) -> int:
    if shape.device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(shape.device)
    return _held("VmHWM")


def _unreadable(shape: Shape) -> str | None:
    if shape.device == "cpu" and not _STATUS.exists():
        return f"this system has no {_STATUS}"
    return None


def _held(field: str) -> int:
    """Return a size in bytes from the status of this process."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
