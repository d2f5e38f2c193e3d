"""Devices: chosen by what is there, refused with what to type."""

from __future__ import annotations

import pytest
import torch

from sanrobust import device
from sanrobust.errors import BackendError, UsageError


@pytest.mark.parametrize("name", ["gpu", "cpu:", "cuda:x", "cuda:-1", "", "mps"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda or cuda:i"):
        device.choose_device(name)


def test_an_absent_card_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="torch finds no CUDA device"):
        device.choose_device("cuda")


def test_a_card_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cuda_refusal", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(BackendError, match="there are 2 CUDA devices"):
        device.choose_device("cuda:2")


@pytest.mark.parametrize(("refusal", "kind"), [("no driver", "cpu"), (None, "cuda")])
def test_auto_takes_the_card_where_there_is_one(monkeypatch: pytest.MonkeyPatch,
                                                refusal: str | None, kind: str) -> None:
    monkeypatch.setattr(device, "cuda_refusal", lambda: refusal)
    assert device.choose_device("auto").type == kind


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device.cuda_refusal() == "this build of torch has no CUDA"


def test_exactness_switches_reduced_precision_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    device.make_exact()
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.deterministic


def test_the_environment_is_plain_facts() -> None:
    facts = device.environment(torch.device("cpu"))
    assert facts["device"] == "cpu" and facts["tf32"] in (True, False)
    assert set(device.versions()) >= {"python", "torch", "timm", "numpy"}


def test_free_memory_is_positive_and_a_missing_procfs_gives_a_default(
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.free_memory(torch.device("cpu")) > 1 << 20
    monkeypatch.setattr(device, "Path", lambda _: (_ for _ in ()).throw(OSError()))
    assert device.free_memory(torch.device("cpu")) == 2 << 30
