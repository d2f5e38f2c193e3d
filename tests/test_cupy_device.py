"""How kernels are handed to CuPy, with a stand-in for it: nothing here needs a GPU."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, c_int, c_void_p
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sanrobust.kernels.cuda import compiler
from sanrobust.kernels.cuda.compiler import CupyDevice, Kernel

KERNEL = Kernel("pointwise.cuh", "stand_in<float>")


class Args(Structure):
    """Arguments as a kernel gets them."""

    _fields_ = [("count", c_int), ("values", c_void_p)]


class Function:
    """A compiled kernel that notes its launches."""

    shared_size_bytes = 1 << 10

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.launches.append((args, kwargs))


class Cupy(ModuleType):
    """What `CupyDevice` uses of CuPy.

    Attributes:
        function: the only kernel there is.
        modules: arguments of every module that was compiled.
    """

    def __init__(self, shared: int) -> None:
        super().__init__("cupy")
        self.function, self.modules = Function(), []  # type: ignore[var-annotated]
        self.inside: list[int] = []
        device = self._device(shared)
        self.cuda = SimpleNamespace(Device=lambda index: device, is_available=lambda: True,
                                    nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)))

    def _device(self, shared: int) -> Any:
        class Device:
            attributes = {"MaxSharedMemoryPerBlockOptin": shared}

            def __enter__(inner) -> None:  # noqa: N805
                self.inside.append(1)

            def __exit__(inner, *_: object) -> None:  # noqa: N805
                self.inside.append(0)
        return Device()

    def RawModule(self, **kwargs: Any) -> Any:
        """Compile, as CuPy spells it."""
        self.modules.append(kwargs)
        return SimpleNamespace(get_function=lambda name: self.function)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    compiler.refusal.cache_clear()
    compiler._module.cache_clear()
    yield
    compiler.refusal.cache_clear()
    compiler._module.cache_clear()


@contextmanager
def torch_device(index: int) -> Iterator[None]:
    assert index == 3
    yield


@pytest.mark.parametrize(("shared", "dynamic"), [(227 << 10, (227 << 10) - (1 << 10)),
                                                 (compiler.FREE_SHARED, None)])
def test_a_launch_passes_the_struct_by_value_on_torchs_stream(
        monkeypatch: pytest.MonkeyPatch, shared: int, dynamic: int | None) -> None:
    cupy = Cupy(shared)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(
        cuda_stream=70 + index))
    monkeypatch.setattr(torch.cuda, "device", torch_device)
    monkeypatch.setattr(compiler, "source", lambda file: f"// {file}")
    device = CupyDevice(3)
    assert device.shared_limit() == shared
    args = Args(count=5, values=1 << 40)
    for _ in range(2):
        device.launch(KERNEL, 12, 128, args, shared=2048)
    assert cupy.modules == [{"code": "// pointwise.cuh", "options": compiler.OPTIONS,
                             "name_expressions": (KERNEL.expression,)}]
    assert len(cupy.function.launches) == 2 and cupy.inside == [1, 0, 1, 0]
    (blocks, threads, (value,)), options = cupy.function.launches[0]
    assert (blocks, threads, options["shared_mem"]) == ((12,), (128,), 2048)
    assert options["stream"].ptr == 73
    assert isinstance(value, np.ndarray) and value.tobytes() == bytes(args)
    assert getattr(cupy.function, "max_dynamic_shared_size_bytes", None) == dynamic


def broken() -> tuple[int, int]:
    raise OSError("libnvrtc.so is missing")


def absent(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def amd(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")


def deviceless(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def without_compiler(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy.cuda.nvrtc.getVersion = broken


@pytest.mark.parametrize(("spoil", "reason"), [
    (None, None), (absent, r"sanrobust\[cuda13\]"), (amd, "AMD"), (deviceless, "no CUDA device"),
    (without_compiler, r"does not work here \(OSError: libnvrtc.so is missing\)"),
])
def test_why_kernels_cannot_run_here_is_said_in_a_clause(
        monkeypatch: pytest.MonkeyPatch, spoil: Any, reason: str | None) -> None:
    cupy = Cupy(1)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    if spoil is not None:
        spoil(cupy, monkeypatch)
    found = compiler.refusal()
    if reason is None:
        assert found is None
    else:
        assert found is not None and re.search(reason, found)
