"""What other people's code can change for the whole process, and how it is put back.

What nobody can put back is the code itself: a function of torch that was replaced stays replaced.
"""

from __future__ import annotations

import gc
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from sanrobust.device import exact

_DEVICES = ("cpu", "cuda")
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")
                 if hasattr(signal, name))
_DENORMAL = 1e-40  # it is 0 where the processor rounds the smallest numbers away

# How to read a setting, and how to write it.
_Setting = tuple[Callable[[], Any], Callable[[Any], Any]]


@contextmanager
def kept() -> Iterator[None]:
    """Leave the settings of torch, numpy and the process after the block as they were before it.

    What other people's code leaves switched on would be in the numbers of the next model.
    """
    before = [(setting, setting[0]()) for setting in _settings()]
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        # `exact` puts back by which precision matrices are multiplied, and the threads.
        with exact(), warnings.catch_warnings():
            yield
    finally:
        for (read, write), value in before:
            with suppress(OSError, ValueError, RuntimeError, locale.Error):
                if read() != value:
                    write(value)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])


def _settings() -> list[_Setting]:
    return [*_of_torch(), *_of_process()]


def _of_torch() -> Iterator[_Setting]:
    yield _device, _set_device
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.is_grad_enabled, torch.set_grad_enabled
    yield torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly
    yield torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    yield (lambda: (torch.are_deterministic_algorithms_enabled(),
                    torch.is_deterministic_algorithms_warn_only_enabled()),
           lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]))
    yield _flushes, torch.set_flush_denormal
    for device in _DEVICES:
        yield (partial(torch.is_autocast_enabled, device),
               partial(torch.set_autocast_enabled, device))
        yield partial(torch.get_autocast_dtype, device), partial(torch.set_autocast_dtype, device)
    yield _attribute(torch.backends.cudnn, "enabled")
    yield _attribute(torch.backends.mkldnn, "enabled")
    for kind in _ATTENTION:
        read = getattr(torch.backends.cuda, f"{kind}_sdp_enabled", None)
        if read is not None:
            yield read, getattr(torch.backends.cuda, f"enable_{kind}_sdp")


def _of_process() -> Iterator[_Setting]:
    yield os.getcwd, os.chdir
    yield lambda: dict(os.environ), _set_environment
    yield lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)
    yield partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)
    yield np.geterr, lambda value: np.seterr(**value)
    yield gc.isenabled, lambda value: gc.enable() if value else gc.disable()
    yield sys.getrecursionlimit, sys.setrecursionlimit
    yield _attribute(sys, "stdout")
    yield _attribute(sys, "stderr")
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            yield partial(signal.getsignal, number), partial(signal.signal, number)


def _attribute(place: object, name: str) -> _Setting:
    return partial(getattr, place, name), partial(setattr, place, name)


def _device() -> torch.device:
    try:
        return torch.get_default_device()
    except AttributeError:  # torch 2.6 does not know it any more when it was put back
        return torch.device("cpu")


def _set_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _set_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


def _flushes() -> bool:
    return not bool(torch.tensor(_DENORMAL, dtype=torch.float32, device="cpu") * 1)
