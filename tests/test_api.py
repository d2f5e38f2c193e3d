"""The functions for scripts and notebooks: they serve or refuse, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

import sanrobust
from grey_models import CLASSES, Failing, Grey, folders
from sanrobust.errors import SanrobustError, UsageError

LABELS = list(range(CLASSES))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folders(tmp_path / "val", LABELS)


def test_a_network_is_measured_and_left_as_it_was(images: Path, tmp_path: Path) -> None:
    network = nn.Sequential(Grey(), nn.Linear(CLASSES, CLASSES))
    network.train()
    plain = sanrobust.Preprocessing(img_size=32, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    table = sanrobust.rotate(network, data=images, preprocessing=plain, out=tmp_path / "o")
    assert table["model"].tolist() == ["Sequential"] and table["n"].tolist() == [CLASSES]
    assert network.training and network[1].training
    assert all(weight.requires_grad for weight in network.parameters())


def test_only_the_rows_asked_for_come_back(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    sanrobust.rotate(["grey_models:right", "grey_models:wrong"], data=str(images), out=out)
    alone = sanrobust.rotate("grey_models:wrong", data=images, out=str(out))
    assert alone["model"].tolist() == ["grey_models:wrong"]
    attacked = sanrobust.pgd("grey_models:right", data=images, budgets=[(8, 2, 4)], out=out)
    assert attacked[["eps", "step", "iters"]].values.tolist() == [[8.0, 2.0, 4]]
    other = sanrobust.pgd("grey_models:right", data=images, out=out,
                          budgets=[sanrobust.Budget(4, 1, 4), {"eps": 2, "step": 1, "iters": 2}])
    assert other["eps"].tolist() == [2.0, 4.0]


class Stops(nn.Module):
    """Stops the process politely at a pass after those of the probe."""

    passes = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Stops.passes += 1
        if Stops.passes == 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return images.flatten(1)[:, :CLASSES]


def test_who_catches_the_errors_of_models_does_not_go_on_when_stopped(images: Path, tmp_path: Path
                                                                      ) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="type the same command again"):
        try:
            sanrobust.pgd(Stops(), data=images, budgets=[(8, 1, 90)], out=tmp_path / "o")
        except SanrobustError as error:
            pytest.fail(f"as if the model had failed: {error}")
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("around", [
    lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode, torch.no_grad])
def test_what_the_caller_has_switched_on_reaches_no_number(
        tmp_path: Path, around: Callable[[], AbstractContextManager[object]]) -> None:
    model = sanrobust.create_model("resnet26.digits")

    def numbers(out: str) -> tuple[pd.DataFrame, torch.Tensor]:
        few = sanrobust.DataConfig(num_samples=6)
        made = sanrobust.pgd("resnet26.digits", data=few, budgets=[(8, 4, 3)], out=tmp_path / out)
        pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return made.records, sanrobust.attack(model, pixels, torch.tensor([1, 2]), attack="pgd",
                                              budgets=[(8, 4, 3)]).adversarial
    alone = numbers("alone")
    with around():
        within = numbers("within")
    pd.testing.assert_frame_equal(alone[0], within[0])
    assert torch.equal(alone[1], within[1])


def test_the_type_that_torch_makes_by_itself_reaches_no_number(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        made = sanrobust.rotate("resnet26.digits", data=sanrobust.DataConfig(num_samples=6),
                                out=tmp_path)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert made["n"].tolist() == [6]


def test_nothing_is_not_taken_for_the_default(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data must be .* it is empty text"):
        sanrobust.rotate("resnet26.digits", data="", out=tmp_path)
    with pytest.raises(UsageError, match="eps must be a radius"):
        sanrobust.attack(Grey(), torch.rand(1, 3, 8, 8), torch.tensor([0]), eps=[])


def test_a_checkpoint_may_be_text(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save(Grey(shift=1).state_dict(), path)
    table = sanrobust.rotate("grey_models:right", checkpoint=str(path), data=images,
                             out=tmp_path / "o")
    assert table["none_top1"].tolist() == [0.0]


def test_classifiers_of_one_name_and_other_weights_are_two_rows(images: Path,
                                                                tmp_path: Path) -> None:
    networks = [Grey(), Grey(shift=1)]
    table = sanrobust.rotate(networks, data=images, out=tmp_path / "o")
    assert table["none_top1"].tolist() == [100.0, 0.0]


@pytest.mark.parametrize(("call", "words"), [
    (lambda **to: sanrobust.rotate(3, **to), "models must be names, classifiers or networks"),
    (lambda **to: sanrobust.rotate([Grey(), None], **to), "models must be names"),
    (lambda **to: sanrobust.rotate("grey_models:right", preprocessing=32, **to),
     "preprocessing must be a Preprocessing"),
    (lambda **to: sanrobust.rotate("grey_models:right", batch_size=0, **to), "--batch-size"),
    (lambda **to: sanrobust.pgd("grey_models:right", budgets=[(8, 2)], **to), "a budget must be"),
    (lambda **to: sanrobust.pgd("grey_models:right", budgets=8, **to), "budgets must be"),
    (lambda **to: sanrobust.pgd("grey_models:right", budgets=[], **to), "there must be a budget"),
    (lambda **to: sanrobust.rotate([], **to), "there must be a model"),
    (lambda **to: sanrobust.pgd("grey_models:right", budgets=[(0.03, 0.01, 4)], **to), "1/255"),
    (lambda **to: sanrobust.rotate("grey_models:right", checkpoint=3, **to), "--checkpoint"),
    (lambda **to: sanrobust.rotate(sanrobust.create_model("resnet26.digits"),
                                   preprocessing=sanrobust.Preprocessing(), **to),
     "a preprocessing must go with a name"),
    (lambda **to: sanrobust.rotate(Grey(), checkpoint="x.pth", **to), "load_state_dict"),
    (lambda **to: sanrobust.rotate("grey_models:right", device=0, **to), "--device"),
])
def test_what_cannot_be_meant_is_refused(images: Path, tmp_path: Path,
                                         call: Callable[..., object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        call(data=images, out=tmp_path / "o")
    assert words in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_torchs_switches_and_pythons_path_are_as_before(images: Path, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_model.py").write_text("from grey_models import right as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)

    def state() -> tuple[object, ...]:
        return (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                torch.backends.cudnn.allow_tf32, torch.get_num_threads(),
                torch.random.get_rng_state().tolist(), torch.is_grad_enabled(), list(sys.path))

    before = state()
    sanrobust.pgd("own_model:make", data=images, out=tmp_path / "o", threads=2)
    assert state() == before


def test_failed_images_come_with_a_warning_and_the_table(images: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="5 of 6 did"):
        table = sanrobust.rotate(Failing(1), data=images, out=tmp_path / "o")
    assert isinstance(table, sanrobust.Result) and table["failed"].tolist() == [5]


def test_a_model_that_cannot_run_is_an_error_after_the_others_were_measured(
        images: Path, tmp_path: Path) -> None:
    with pytest.raises(SanrobustError, match="no_such_module"):
        sanrobust.rotate(["no_such_module:make", "grey_models:right"], data=images,
                         out=tmp_path / "o")
    assert pd.read_csv(tmp_path / "o" / "rotation.csv")["model"].tolist() == ["grey_models:right"]
