"""--precision: what networks are computed in, who is told, and what no precision may change."""

from __future__ import annotations

import json
from pathlib import Path

import pandas
import pytest
import torch
from torch import Tensor, nn

import sanrobust
from conftest import Command
from sanrobust import device
from sanrobust.choices import PRECISIONS, ModelConfig
from sanrobust.errors import BackendError, UsageError
from sanrobust.experiments.replay import ReplayMeasurement, ReplaySettings
from sanrobust.kernels.native import library
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.folded import FoldedSan
from sanrobust.zoo.precision import Autocast, autocast_type
from sanrobust.zoo.resolve import create_model

CPU = torch.device("cpu")
SMALL = "resnet26.untrained-small"
HALVES = ("bfloat16", "float16")
# Half of the last digit of each, times a few dozen layers.
COARSE = {"bfloat16": 5e-2, "float16": 1e-2}


def pixels(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    gradient, = torch.autograd.grad((logits * torch.linspace(-1, 1, logits.shape[1])).sum(), leaf)
    return logits.detach(), gradient


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("name", [SMALL, "san10-pair.digits", "san10-patch.digits",
                                  "sasa26.untrained-small"])
def test_networks_compute_in_16_bits_between_float32_pixels_and_logits(
        name: str, precision: str, fold: bool) -> None:
    plain = create_model(name)
    made = accelerate(plain, CPU, precision=precision, fold=fold)
    assert isinstance(made.classifier.network, Autocast) and made.reason is not None
    assert made.computed_by.endswith(f"in {precision}")
    assert made.words == f"{made.computed_by}: {made.reason}"
    assert not any(isinstance(module, FoldedSan) for module in made.classifier.modules())
    assert made.classifier.weights_digest == plain.weights_digest
    assert {each.dtype for each in made.classifier.parameters()} == {torch.float32}
    logits, gradient = logits_and_gradient(plain, pixels())
    found, given = logits_and_gradient(made.classifier, pixels())
    assert found.dtype == given.dtype == torch.float32
    assert 1e-5 < (found - logits).norm() / logits.norm() < COARSE[precision]
    # Signs are what an attack follows.
    alike = torch.sign(given) == torch.sign(gradient)
    assert bool(gradient.abs().max() > 0) and alike.double().mean() > 0.8


def test_folded_sans_are_refused_in_16_bits_with_the_reason() -> None:
    if library.load() is None:
        pytest.skip(f"no native kernels: {library.refusal()}")
    made = accelerate(create_model("san10-pair.digits"), CPU, precision="bfloat16")
    assert made.reason == "networks are folded in float32 alone"


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_other_precisions_leave_the_network_to_itself(precision: str) -> None:
    assert autocast_type(precision) is None
    model = accelerate(create_model(SMALL), CPU, precision=precision).classifier
    assert not isinstance(model.network, Autocast)


class Tiny(nn.Module):
    """Logits with gradients at the pixels, by a product that autocast knows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(48, 5).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", HALVES)
def test_small_gradients_are_as_exact_as_large_ones(precision: str) -> None:
    dtype = autocast_type(precision)
    assert dtype is not None
    images = torch.rand(4, 3, 4, 4, requires_grad=True)
    factors = 2.0 ** torch.tensor([0, -20, -60, -100]).unsqueeze(1)
    logits = Autocast(Tiny(), dtype)(images)
    weights = torch.linspace(-1, 1, 5)
    large, = torch.autograd.grad((logits * weights).sum(), images, retain_graph=True)
    small, = torch.autograd.grad((logits * weights * factors).sum(), images)
    assert bool((large != 0).all())
    assert torch.equal(small, large * factors.view(-1, 1, 1, 1))


def test_a_gradient_of_zero_stays_zero_and_one_of_no_number_stays_none() -> None:
    images = torch.rand(3, 3, 4, 4, requires_grad=True)
    logits = Autocast(Tiny(), torch.float16)(images)
    factors = torch.tensor([0.0, torch.nan, 1.0]).unsqueeze(1)
    gradient, = torch.autograd.grad((logits * factors).sum(), images)
    assert not gradient[0].any() and bool(gradient[1].isnan().any())
    assert bool(gradient[2].isfinite().all())


def test_what_is_no_logits_goes_on_to_be_refused() -> None:
    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [images]

    assert isinstance(Autocast(Wrong(), torch.bfloat16)(pixels()), list)


@pytest.mark.parametrize("experiment", ["rotate", "pgd"])
def test_precisions_are_runs_of_their_own_told_on_screen_and_below(
        command: Command, tmp_path: Path, experiment: str) -> None:
    out, shown = tmp_path / "out", {}
    for precision in ("float32", *HALVES):
        options = () if precision == "float32" else ("--precision", precision)
        shown[precision] = command(experiment, "-m", SMALL, "--num-samples", 4, "--device", "cpu",
                                   "--out", out, *options)
        assert shown[precision].exit_code == 0, shown[precision].output
    assert "etworks computed" not in shown["float32"].output
    for precision in HALVES:
        text = " ".join(shown[precision].output.split())
        assert f"4 images, cpu, networks in {precision}" in text
        assert (f"Networks computed in {precision}, 16-bit types by torch's autocast; pixels "
                "and attacks in float32.") in text
    headers = [json.loads(path.read_text()) for path in out.glob("runs/*/run.json")]
    assert {header["spec"]["precision"] for header in headers} == {"float32", *HALVES}
    assert len({header["spec_digest"] for header in headers}) == 3
    table = pandas.read_csv(out / f"{'rotation' if experiment == 'rotate' else 'pgd'}.csv")
    assert set(table["precision"]) == {"float16"}
    everything = " ".join(command("table", experiment, "--out", out).output.split())
    assert "Networks computed in float32, bfloat16, float16, 16-bit" in everything
    assert "Not the same in all rows: precision" not in everything
    assert everything.count("precision float16)") >= 1


def test_float32_is_the_default_and_spelling_it_out_the_same_run(command: Command,
                                                                 tmp_path: Path) -> None:
    command("rotate", "-m", SMALL, "--num-samples", 2, "--out", tmp_path)
    again = command("rotate", "-m", SMALL, "--num-samples", 2, "--out", tmp_path,
                    "--precision", "float32")
    assert "already complete" in again.output


def test_python_has_the_keyword(tmp_path: Path) -> None:
    table = sanrobust.rotate(SMALL, data=sanrobust.DataConfig(num_samples=2), out=tmp_path,
                             precision="bfloat16", device="cpu")
    assert list(table["precision"]) == ["bfloat16"]
    with pytest.raises(UsageError, match="--precision must be one of float32, tf32, bfloat16"):
        sanrobust.rotate(SMALL, out=tmp_path, precision="double")


@pytest.mark.parametrize("precision", [None, 32, "half", ["tf32"]])
def test_another_precision_is_refused(precision: object) -> None:
    with pytest.raises(UsageError, match="--precision must be one of"):
        ModelConfig(precision=precision)  # type: ignore[arg-type]
    assert PRECISIONS[0] == ModelConfig().precision


def test_tf32_is_refused_where_there_is_none(command: Command, tmp_path: Path) -> None:
    result = command("rotate", "-m", SMALL, "--device", "cpu", "--precision", "tf32", "--out",
                     tmp_path / "out")
    assert result.exit_code == BackendError.exit_code
    assert "--precision tf32 must go with a CUDA device that has TF32" in result.output
    assert not (tmp_path / "out").exists()


def test_older_cards_have_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "V100")
    for capability in ((7, 0), (7, 5)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, now=capability: now)
        with pytest.raises(BackendError, match="V100.* has none"):
            device.require_tf32(torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    device.require_tf32(torch.device("cuda:0"))


def test_tf32_is_switched_on_inside_alone_whatever_stands_around() -> None:
    def switches() -> list[object]:
        return [device._read((place, "allow_tf32")) for place in ("cuda.matmul", "cudnn")]

    before = switches()
    with device.exact():
        with device.exact(tf32=True):
            assert switches() == [True, True]
            assert device.environment(CPU)["tf32"] is True
        assert switches() == [False, False]
    assert switches() == before


def test_images_made_in_16_bits_are_told_apart_from_others() -> None:
    class Source:
        def __init__(self, **more: object) -> None:
            self.spec = {"model": "m", "weights": "w", "experiment": "pgd", "settings": {}, **more}

    class Saved:
        def __init__(self, source: Source) -> None:
            self.source = source

    found = []
    for source in (Source(), Source(precision="float32"), Source(precision="bfloat16")):
        measurement = ReplayMeasurement(ReplaySettings())
        measurement._images = Saved(source)  # type: ignore[assignment]
        found.append(measurement.spec())
    assert found[0] == found[1] and found[2] == {**found[0], "source_precision": "bfloat16"}
