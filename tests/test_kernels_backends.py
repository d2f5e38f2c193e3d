"""The choice of a backend: order, reasons, and the three ways to insist on one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from sanrobust.errors import BackendError, UnknownNameError
from sanrobust.kernels import backends, functional
from sanrobust.kernels.backends import Call, ReferenceBackend
from sanrobust.kernels.kernelset import KERNELS
from sanrobust.kernels.reference import Window
from sanrobust.registry import Registry

REASON = "it only computes maps of 8 pixels"


class PickyBackend(ReferenceBackend):
    """Answers with a constant where it can, and only for maps of width 8."""

    name = "picky"

    def refusal(self, call: Call) -> str | None:
        return None if call.tensors[0].shape[-1] == 8 else REASON

    def neighbours(self, maps: Tensor, window: Window) -> Tensor:  # type: ignore[override]
        return maps.new_full((1,), 7.0)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a backend with limits before the reference."""
    registry: Registry[backends.Backend] = Registry("kernel backend", listing="here")
    registry.add("picky", PickyBackend())
    registry.add("reference", ReferenceBackend())
    monkeypatch.setattr(backends, "BACKENDS", registry)


def answered_by_picky(width: int, backend: str | None = None) -> bool:
    maps = torch.ones(1, 1, 8, width)
    return functional.neighbours(maps, footprint=3, backend=backend).numel() == 1


def a_call(width: int) -> Call:
    return Call("neighbours", (torch.ones(1, 1, 8, width),), Window(3))


def test_backends_are_tried_fastest_first_and_the_reference_refuses_nothing() -> None:
    auto, *tried = backends.names()
    assert (auto, tried[-1]) == ("auto", "reference")
    assert [name for name in tried if name in ("cupy", "native")] == ["cupy", "native"]
    assert list(backends.refusals(a_call(5))) == tried
    assert backends.refusals(a_call(5))["reference"] is None


def test_every_backend_has_a_kernel_set_and_every_kernel_set_a_backend() -> None:
    assert set(KERNELS.names()) == set(backends.BACKENDS.names())


def test_cupy_refuses_maps_on_a_cpu() -> None:
    # Missing CuPy or a missing device is the reason where one is missing, else the map's place.
    assert backends.BACKENDS.get("cupy").refusal(a_call(5)) is not None


@pytest.mark.usefixtures("picky")
def test_what_a_backend_can_do_here_is_explained() -> None:
    assert backends.explain() == {"picky": REASON, "reference": None}


def test_importing_loads_neither_a_library_nor_cupy() -> None:
    code = ("import ctypes, sys, torch\n"
            "ctypes.CDLL = None\n"
            "import sanrobust.kernels.functional\n"
            "assert 'cupy' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("picky")
def test_the_first_backend_without_a_refusal_computes() -> None:
    assert answered_by_picky(8)
    assert not answered_by_picky(5)


@pytest.mark.usefixtures("picky")
def test_every_refusal_states_its_reason() -> None:
    assert backends.refusals(a_call(5)) == {"picky": REASON, "reference": None}


@pytest.mark.usefixtures("picky")
def test_the_argument_overrides_the_choice() -> None:
    assert not answered_by_picky(8, backend="reference")


@pytest.mark.usefixtures("picky")
def test_the_block_overrides_the_choice_and_ends() -> None:
    with backends.use_backend("reference"):
        assert not answered_by_picky(8)
    assert answered_by_picky(8)


@pytest.mark.usefixtures("picky")
def test_the_block_ends_after_an_exception() -> None:
    with pytest.raises(RuntimeError), backends.use_backend("reference"):
        raise RuntimeError
    assert answered_by_picky(8)


@pytest.mark.usefixtures("picky")
def test_the_environment_overrides_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "reference")
    assert not answered_by_picky(8)


@pytest.mark.usefixtures("picky")
def test_argument_wins_over_block_and_block_over_environment(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "reference")
    with backends.use_backend("picky"):
        assert answered_by_picky(8)
        assert not answered_by_picky(8, backend="reference")
    with backends.use_backend("auto"):
        assert answered_by_picky(8)


@pytest.mark.usefixtures("picky")
def test_a_backend_insisted_on_that_refuses_is_an_error_with_its_reason() -> None:
    with pytest.raises(BackendError) as caught:
        answered_by_picky(5, backend="picky")
    assert str(caught.value) == ("backend picky must be able to compute neighbours, "
                                 f"but {REASON}: use auto or reference")


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean reference"):
        answered_by_picky(8, backend="referense")
    with pytest.raises(UnknownNameError, match="no kernel backend named 'cuda'"):
        with backends.use_backend("cuda"):
            pass


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "fast")
    with pytest.raises(UnknownNameError, match="'fast'"):
        answered_by_picky(8)


def test_an_empty_environment_variable_means_a_free_choice(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "")
    assert backends.requested() == "auto"
