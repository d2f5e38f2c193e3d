"""What the machine can do at best: pure arithmetic, copying, matrix products; and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sanrobust.bench.samples import LEAST_PART
from sanrobust.kernels.native import library

PROBE_SECONDS = 0.02
LIMIT_SECONDS = 0.3
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
_SIDES = {"cpu": 2048, "cuda": 8192}
_PROBE_SIDES = {"cpu": 1024, "cuda": 4096}

Call = Callable[[], object]
Probe = Callable[[], float]


@dataclass(frozen=True)
class Limits:
    """Rates that no model can pass on this machine.

    Attributes:
        probe: which probe judges the samples.
        arithmetic: its best rate at the start, in GFLOP/s.
        one_thread: the same with one thread; None where the probe has no threads.
        matmul: of a large square matrix product, in GFLOP/s.
        convolution: of a 1x1 convolution of 512 channels, channels last, in GFLOP/s.
        copy: bytes read and written, in GB/s.
    """

    probe: str
    arithmetic: float
    one_thread: float | None
    matmul: float
    convolution: float
    copy: float


def seconds_of(call: Call, device: torch.device, times: int = 1) -> float:
    """Return the seconds of one ``call``, averaged over ``times`` of them in a row."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return _device_seconds(call, times)
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def _device_seconds(call: Call, times: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                  for _ in range(2))
    begin.record()
    for _ in range(times):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / times


def make_probe(device: torch.device, dtype: torch.dtype) -> tuple[str, Probe]:
    """Return the name of the compute probe for ``device`` and the probe: GFLOP/s now.

    On a CPU it is the native kernels' loop of multiply-adds in registers where they were built.
    Elsewhere it is a small matrix product.
    """
    kernels = library.load() if device.type == "cpu" else None
    if kernels is not None:
        threads = torch.get_num_threads()
        return "multiply-adds in registers", lambda: kernels.probe(threads, PROBE_SECONDS)
    side = _PROBE_SIDES[device.type]
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    target = torch.empty_like(left)

    def product() -> Tensor:
        return torch.mm(left, right, out=target)

    product()
    times = max(1, int(PROBE_SECONDS / seconds_of(product, device)))
    return (f"matrix product of side {side}",
            lambda: 2e-9 * side ** 3 / seconds_of(product, device, times))


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure every limit anew; takes about two seconds on a CPU."""
    name, probe = make_probe(device, dtype)
    return Limits(probe=name, arithmetic=max(probe() for _ in range(5)),
                  one_thread=_one_thread(device), matmul=_matmul_rate(device, dtype),
                  convolution=_convolution_rate(device, dtype), copy=_copy_rate(device))


def shortfall(limits: Limits) -> str | None:
    """Return that the threads do not add up, as a sentence; None when they do.

    Other work on the same cores slows contenders that share out their work in advance more than
    those that do not, and no probe shows it while it lasts.
    """
    threads = torch.get_num_threads()
    alone = limits.one_thread
    if alone is None or limits.arithmetic >= LEAST_PART * threads * alone:
        return None
    return (f"{threads} threads reach {limits.arithmetic:.0f} GFLOP/s and one alone {alone:.0f}: "
            "other work may be taking cores, so compare these figures with care")


def _one_thread(device: torch.device) -> float | None:
    kernels = library.load() if device.type == "cpu" else None
    return None if kernels is None else max(kernels.probe(1, PROBE_SECONDS) for _ in range(5))


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    side = _SIDES[device.type]
    left, right = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    return _gflops(2 * side ** 3, lambda: torch.mm(left, right), device, LIMIT_SECONDS)


def _convolution_rate(device: torch.device, dtype: torch.dtype) -> float:
    images, channels, side = (8 if device.type == "cpu" else 128), 512, 28
    maps = torch.rand(images, channels, side, side, device=device, dtype=dtype)
    maps = maps.to(memory_format=torch.channels_last)
    weight = torch.rand(channels, channels, 1, 1, device=device, dtype=dtype)
    weight = weight.to(memory_format=torch.channels_last)
    return _gflops(2 * images * side ** 2 * channels ** 2, lambda: F.conv2d(maps, weight), device,
                   LIMIT_SECONDS)


def _copy_rate(device: torch.device) -> float:
    source = torch.rand(_COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return _gflops(2 * source.nbytes, lambda: target.copy_(source), device, LIMIT_SECONDS)


def _gflops(operations: int, call: Callable[[], Tensor], device: torch.device,
            seconds: float) -> float:
    """Return the best rate of ``call`` in 1e9 operations per second, trying for ``seconds``.

    A first call is not counted: libraries choose an algorithm in it, which may take longer.
    """
    call()
    fastest, until = float("inf"), time.perf_counter() + seconds
    while True:
        fastest = min(fastest, seconds_of(call, device))
        if time.perf_counter() >= until:
            return operations / fastest / 1e9
