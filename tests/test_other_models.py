"""What the code of one model does, says or leaves behind costs no other model anything."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import Command
from sanrobust.zoo.switches import _settings, kept

CODE = '''
import gc, locale, os, signal, sys
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, images):
        return self.fc(images.mean((2, 3)))


class Exits(Net):
    passes = 0

    def forward(self, images):
        Exits.passes += 1
        if Exits.passes > 2:
            sys.exit(0)
        return super().forward(images)


class Numberless(Net):
    passes = 0

    def forward(self, images):
        Numberless.passes += 1
        return super().forward(images) * (1 if Numberless.passes == 1 else float("nan"))


class Trains(Net):
    def train(self, mode=True):
        return self


class Unhurried(nn.Sequential):
    def eval(self):
        return self

    def train(self, mode=True):
        self.training = False
        return self


def ours():
    import sanrobust
    return sanrobust.create_model("resnet26.digits")


class Odd(Exception):
    def __str__(self):
        raise ValueError


class Below(BaseException):
    pass


def exits():
    sys.exit(0)


def raises_below():
    raise Below("\\x1b[2Jall is well")


def raises_generator_exit():
    raise GeneratorExit


def raises_odd():
    raise Odd


def recurses():
    return recurses()


def lacks_a_file():
    raise FileNotFoundError("weights.pth is missing")


def lacks_a_host():
    raise ConnectionRefusedError("refused")


def parts_train():
    return Unhurried(Net(), nn.Dropout())


def meddles():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.set_flush_denormal(True)
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.mkldnn.enabled = False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.manual_seed(5)
    np.seterr(all="raise")
    os.environ["SANROBUST_HOME"] = "/nowhere"
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    sys.setrecursionlimit(5000)
    sys.stdout = None
    gc.disable()
    locale.setlocale(locale.LC_ALL, "C")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with torch.device("cpu"):
        return Net().float()
'''
GOOD = "san10-pair.digits"
RUN = ("rotate", "--num-samples", "4", "--out", "out", "--workers", "0")


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "others.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("others", None)


def measured() -> list[str]:
    return list(pd.read_csv("out/rotation.csv")["model"])


FAILING = {
    "exits": "raised SystemExit: 0", "raises_below": "raised Below: ?[2Jall is well",
    "raises_generator_exit": "raised GeneratorExit", "raises_odd": "raised Odd",
    "recurses": "raised RecursionError", "Exits": "it stopped with: 0",
    "lacks_a_file": "raised FileNotFoundError: weights.pth is missing",
    "Trains": "Trains) stays in train mode", "parts_train": "Net) stays in train mode",
}


def test_models_that_fail_are_named_and_the_others_are_measured(command: Command) -> None:
    names = [f"others:{name}" for name in FAILING]
    result = command(*RUN, *(word for name in (*names, GOOD) for word in ("-m", name)))
    assert result.exit_code == 4 and measured() == [GOOD]
    *_, last = result.stderr.splitlines()
    assert last.startswith("sanrobust: ") and all(name in last for name in names)
    for name, said in FAILING.items():
        assert any(f"{name} " in line and said in line for line in result.stderr.splitlines())
    assert "\x1b" not in result.stderr


def test_a_model_that_exits_is_no_success(command: Command) -> None:
    result = command(*RUN, "-m", "others:exits")
    assert result.exit_code == 4 and FAILING["exits"] in result.stderr.splitlines()[-1]


def test_a_model_without_numbers_is_no_success(command: Command) -> None:
    result = command(*RUN, "-m", "others:Numberless", "-m", GOOD)
    assert result.exit_code == 9 and "others:Numberless" in result.stderr.splitlines()[-1]


def test_pgd_says_of_train_mode_what_rotate_says(command: Command) -> None:
    said = [command(name, *RUN[1:], "-m", "others:Trains").stderr.splitlines()[-1]
            for name in ("rotate", "pgd")]
    assert said[0] == said[1] and "stays in train mode" in said[0]


def test_a_factory_may_return_a_classifier_of_ours(command: Command) -> None:
    result = command(*RUN, "-m", "others:ours", "-m", "resnet26.digits")
    assert result.exit_code == 0 and "assumed" not in result.stderr
    table = pd.read_csv("out/rotation.csv").set_index("model")
    rates = table.filter(regex="_top[15]$")
    assert rates.shape[1] == 10 and rates.nunique().eq(1).all()


def test_a_refused_connection_is_a_failed_download(command: Command) -> None:
    assert command(*RUN, "-m", "others:lacks_a_host").exit_code == 5


def test_a_defect_in_one_model_costs_no_other(command: Command,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    from sanrobust.job import Job

    def broken(self: Job, name: object, inner: Callable[..., Path] = Job._run_one) -> Path:
        if name != GOOD:
            raise LookupError("a defect")
        return inner(self, GOOD)
    monkeypatch.setattr(Job, "_run_one", broken)
    result = command(*RUN, "-m", "resnet26.digits", "-m", GOOD)
    assert result.exit_code == 4 and measured() == [GOOD]
    assert "resnet26.digits must run without an exception" in result.stderr.splitlines()[-1]


def test_what_a_factory_leaves_switched_on_is_in_no_record(command: Command) -> None:
    command(*RUN[:-4], "--out", "alone", "-m", GOOD)
    environment, path, stop = dict(os.environ), list(sys.path), signal.getsignal(signal.SIGTERM)
    result = command(*RUN, "-m", "others:meddles", "-m", GOOD)
    assert result.exit_code == 0, result.stderr
    assert (dict(os.environ), list(sys.path), signal.getsignal(signal.SIGTERM)) == (
        environment, path, stop)
    alone, after = (pd.read_csv(f"{folder}/rotation.csv").set_index("model").loc[GOOD]
                    for folder in ("alone", "out"))
    pd.testing.assert_series_equal(alone, after[alone.index])


def test_every_setting_is_put_back() -> None:
    before = [read() for read, _ in _settings()]
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    random, arrays = torch.get_rng_state(), np.random.get_state()[1]
    space: dict[str, Callable[[], object]] = {}
    with kept():
        exec(CODE, space)
        space["meddles"]()
        changed = [read() for read, _ in _settings()]
    assert [read() for read, _ in _settings()] == before
    assert sum(now != then for now, then in zip(changed, before)) >= 15
    assert torch.get_float32_matmul_precision() == precision
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(np.random.get_state()[1], arrays)
