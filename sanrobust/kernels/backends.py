"""Who computes the operators: an ordered list of backends, each able to say why it cannot.

The first backend of ``BACKENDS`` without a refusal computes a call. A caller can insist on one,
in this order of precedence: the ``backend`` argument, ``use_backend``, the environment variable
SANROBUST_BACKEND. A backend insisted on that refuses is an error, never a silent substitution.
Importing looks for no device and loads no library: a backend does so when it is first asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from sanrobust.errors import BackendError
from sanrobust.kernels import reference
from sanrobust.kernels.calls import Backend as Backend
from sanrobust.kernels.calls import Call as Call
from sanrobust.kernels.cuda.backend import CupyBackend
from sanrobust.kernels.native.backend import NativeBackend
from sanrobust.kernels.plain import Window
from sanrobust.registry import Registry

AUTO = "auto"
ENVIRONMENT_VARIABLE = "SANROBUST_BACKEND"


class ReferenceBackend:
    """The plain torch formulation, which computes everything."""

    name = reference.NAME
    aggregation = staticmethod(reference.aggregation)
    subtraction = staticmethod(reference.subtraction)
    dot_product = staticmethod(reference.dot_product)
    neighbours = staticmethod(reference.neighbours)
    pair_products = staticmethod(reference.pair_products)
    pairwise_attention = staticmethod(reference.pairwise_attention)
    patchwise_attention = staticmethod(reference.patchwise_attention)
    patchwise_sum = staticmethod(reference.patchwise_sum)
    local_attention = staticmethod(reference.local_attention)

    def refusal(self, call: Call) -> str | None:
        """Return None: the reference computes every legal call."""
        return None


BACKENDS: Registry[Backend] = Registry("kernel backend", listing="sanrobust info")
BACKENDS.add(CupyBackend.name, CupyBackend())
BACKENDS.add(NativeBackend.name, NativeBackend())
BACKENDS.add(ReferenceBackend.name, ReferenceBackend())

_override: ContextVar[str | None] = ContextVar("sanrobust_backend", default=None)


def names() -> tuple[str, ...]:
    """Return what may be asked for: ``auto`` and every backend, fastest first."""
    return (AUTO, *BACKENDS.names())


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute every call inside the ``with`` block on backend ``name`` (``auto``: free choice).

    Raises UnknownNameError when no backend has the name.
    """
    token = _override.set(_known(name))
    try:
        yield
    finally:
        _override.reset(token)


def requested(backend: str | None = None) -> str:
    """Return the backend insisted on, or ``auto``; ``backend`` is the caller's own argument.

    Raises UnknownNameError when the name, from wherever it came, is not a backend's.
    """
    for name in (backend, _override.get(), _environment()):
        if name is not None:
            return _known(name)
    return AUTO


def choose(call: Call, *, backend: str | None = None) -> Backend:
    """Return the backend that computes ``call``.

    Raises UnknownNameError for an unknown name and BackendError, with the reason, when the
    backend insisted on refuses.
    """
    name = requested(backend)
    if name == AUTO:
        return next(each for each in BACKENDS if each.refusal(call) is None)
    chosen = BACKENDS.get(name)
    reason = chosen.refusal(call)
    if reason is not None:
        able = [each.name for each in BACKENDS if each.refusal(call) is None]
        raise BackendError(f"backend {name} must be able to compute {call.operation}",
                           seen=reason, hint=f"use {' or '.join([AUTO, *able])}")
    return chosen


def refusals(call: Call) -> dict[str, str | None]:
    """Return every backend's answer to ``call`` in the order of choice; None means it can."""
    return {each.name: each.refusal(call) for each in BACKENDS}


def _known(name: str) -> str:
    return name if name == AUTO else BACKENDS.get(name).name


def _environment() -> str | None:
    """Return the backend named in the environment; the only place that reads it."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or None


def explain() -> dict[str, str | None]:
    """Return, for every backend, why it cannot compute plain float32 calls here; None: it can.

    Each is asked for maps on a CPU and, where there is one, on a CUDA device: one will do.
    """
    places = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    answers = [refusals(_plain_call(torch.device(place))) for place in places]
    return {name: None if any(answer[name] is None for answer in answers) else answers[-1][name]
            for name in answers[0]}


def _plain_call(device: torch.device) -> Call:
    value, weight = torch.zeros(1, 1, 3, 3, device=device), torch.zeros(1, 1, 9, 9, device=device)
    return Call("aggregation", (value, weight), Window(3))
