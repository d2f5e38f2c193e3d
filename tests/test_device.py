"""Devices: chosen by what is there, refused with what to type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sanrobust import device
from sanrobust.errors import BackendError, UsageError


@pytest.mark.parametrize("name", ["gpu", "cpu:", "cpu:0", "cpu:3", "cuda:", "cuda:x", "cuda:-1",
                                  "cuda:01", "cuda:\u0663", "cuda: 1", "cuda:1\n", "", "mps"])
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
    for beyond in ("cuda:2", "cuda:" + "9" * 4400):
        with pytest.raises(BackendError, match="there are 2 CUDA devices") as refused:
            device.choose_device(beyond)
        assert len(str(refused.value)) < 200


def test_a_device_is_taken_as_itself_too() -> None:
    assert device.choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(("refusal", "kind"), [("no driver", "cpu"), (None, "cuda")])
def test_auto_takes_the_card_where_there_is_one(monkeypatch: pytest.MonkeyPatch,
                                                refusal: str | None, kind: str) -> None:
    monkeypatch.setattr(device, "cuda_refusal", lambda: refusal)
    assert device.choose_device("auto").type == kind


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device.cuda_refusal() == "this build of torch has no CUDA"


# Every place where torch keeps a precision, in all the words that one of its versions has.
PLACES = ("cuda.matmul.allow_tf32", "cudnn.allow_tf32", "cudnn.benchmark", "cudnn.deterministic",
          *(f"{place}.fp32_precision" for place in (
              "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.matmul",
              "mkldnn.conv")))
CHANGES = {
    "nothing": lambda: None,
    "fast products": lambda: torch.set_float32_matmul_precision("medium"),
    "tf32 products": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "no tf32 convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "searched convolutions": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "tf32 in the newer spelling": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "bf16 on the CPU": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "two threads": lambda: torch.set_num_threads(2),
}
SHOW = """
import sys; sys.path.append({folder!r})
import torch
from operator import attrgetter
from sanrobust.device import environment, exact
from test_device import CHANGES, PLACES

def state():
    found = [torch.get_num_threads()]
    for read in (torch.get_float32_matmul_precision,
                 *(lambda place=place: attrgetter(place)(torch.backends) for place in PLACES)):
        try:
            found.append(read())
        except (AttributeError, RuntimeError) as error:
            found.append(str(error))
    return found

for change, make in CHANGES.items():
    try:
        make()
    except AttributeError:
        print("this torch cannot have", change)
    before = state()
    for threads in (None, 3):
        with exact(threads):
            inside = state()
            assert torch.get_float32_matmul_precision() == "highest", change
            assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
            assert environment(torch.device("cpu"))["tf32"] is False, change
            assert threads is None or inside[0] == 3, change
            assert "bf16" not in inside, (change, inside)
        assert state() == before, (change, before, state())
print("as before")
"""


def test_exact_numbers_are_asked_for_inside_and_every_switch_is_put_back() -> None:
    # In a process of its own: some of these switches cannot be put back to how torch began.
    script = SHOW.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "as before"


def test_switches_are_put_back_after_an_error_too() -> None:
    before = torch.backends.cudnn.deterministic, torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), device.exact(2):
        assert torch.backends.cudnn.deterministic
        raise ZeroDivisionError
    assert before == (torch.backends.cudnn.deterministic, torch.get_num_threads())


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_a_number_of_threads_that_no_machine_has_is_refused(count: int) -> None:
    before = torch.get_num_threads()
    with pytest.raises(UsageError, match="--threads must be 1 to"), device.exact(count):
        pass
    assert torch.get_num_threads() == before


def test_the_environment_is_plain_facts() -> None:
    facts = device.environment(torch.device("cpu"))
    assert facts["device"] == "cpu" and facts["tf32"] in (True, False)
    assert set(device.versions()) >= {"python", "torch", "timm", "numpy"}


def test_a_library_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "LIBRARIES", ("torch", "no-such-library"))
    assert set(device.versions()) == {"python", "torch"}


def test_free_memory_is_positive_and_a_missing_procfs_gives_a_default(
        monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.free_memory(torch.device("cpu")) > 1 << 20
    monkeypatch.setattr(device, "Path", lambda _: (_ for _ in ()).throw(OSError()))
    assert device.free_memory(torch.device("cpu")) == 2 << 30


@pytest.mark.parametrize(("processors", "workers"), [(1, 0), (2, 1), (4, 3), (64, 8)])
def test_a_gpu_has_processes_that_decode_for_it(monkeypatch: pytest.MonkeyPatch,
                                                processors: int, workers: int) -> None:
    monkeypatch.setattr(device, "cores", lambda: processors)
    assert device.default_workers(torch.device("cuda:1")) == workers
    assert device.default_workers(torch.device("cpu")) == 0
