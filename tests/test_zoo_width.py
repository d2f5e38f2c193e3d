"""Networks of other widths: names, sizes, refusals, kernels, and where a width goes by its name."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import Command
from sanrobust.errors import CheckpointError, UnknownNameError
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.native import library
from sanrobust.zoo import catalog, names
from sanrobust.zoo.build import build, parameter_count
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.families.catalog import networks
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.folded import FoldedSan
from sanrobust.zoo.forms import imagenet_config, small_config
from sanrobust.zoo.names import canonical
from sanrobust.zoo.resolve import create_model
from sanrobust.zoo.san import SHARED_CHANNELS, VALUE_REDUCTION, San
from zoo_files import ban_network, trained

WIDE = tuple(network for network in networks()
             if any(option.name == "width" for option in names.options(network)))

# The paper's Table 1 scaled by hand; small forms have an eighth, rounded up to multiples of 32.
SAN_WIDTHS = {32: (32, 128, 256, 512, 1024), 64: (64, 256, 512, 1024, 2048),
              96: (96, 384, 768, 1536, 3072), 320: (320, 1280, 2560, 5120, 10240)}
SMALL_SAN_WIDTHS = {32: (32, 32, 32, 64, 128), 64: (32, 32, 64, 128, 256),
                    96: (32, 64, 96, 192, 384), 320: (64, 160, 320, 640, 1280)}
SAN10 = (2, 1, 2, 4, 1)
RESNET26 = (1, 2, 4, 1)
needs_native = pytest.mark.skipif(library.load() is None,
                                  reason=f"no native kernels: {library.refusal()}")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ban_network(monkeypatch)
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path / "home"))


# --- names

@pytest.mark.parametrize(("typed", "meant"), [
    ("resnet26(width=32)", "resnet26(width=32)"),
    ("resnet26( Width = 32 , kernel=5 ).mine", "resnet26(kernel=5,width=32).mine"),
    ("san10-pair(width=96,position=none,relation=dot)",
     "san10-pair(relation=dot,position=none,width=96)"),
    ("san15-patch(width=128,footprints=3-5-5-5-5)", "san15-patch(footprint=5,width=128)"),
    ("sasa50(width=48,stem=attention)", "sasa50(stem=attention,width=48)"),
    *((f"{network}(width=64)", network) for network in WIDE),
])
def test_a_width_is_spelt_last_and_the_papers_never(typed: str, meant: str) -> None:
    assert canonical(typed) == canonical(meant) == meant


@pytest.mark.parametrize("network", WIDE)
def test_every_width_is_an_option_and_every_one_differs_from_the_default(network: str) -> None:
    option = names.options(network)[-1]
    assert (option.name, option.default) == ("width", "64") and "64" in option.values
    for width in ("128", option.values[-1]):
        for form in (imagenet_config, small_config):
            assert form(f"{network}(width={width})") != form(network)


@pytest.mark.parametrize(("typed", "answer"), [
    ("resnet26(width=0)", r"multiple of 8 from 8 to 512, but it is '0': did you mean 8\?"),
    ("resnet26(width=-32)", r"but it is '-32': did you mean 8\?"),
    ("resnet26(width=33)", r"but it is '33': did you mean 32\?"),
    ("resnet26(width=32.0)", r"but it is '32\.0': did you mean 32\?"),
    ("resnet26(width=032)", r"but it is '032': did you mean 32\?"),
    ("resnet26(width=wide)", r"but it is 'wide': type for example 'resnet26\(width=8\)'"),
    ("resnet26(width=)", "but it is '': type for example"),
    ("resnet26(width=1e9)", "but it is '1e9': type for example"),
    ("resnet26(width=inf)", "but it is 'inf': type for example"),
    (f"sasa26(width={'9' * 40})", r"multiple of 16 from 16 to 512, .*: did you mean 512\?"),
    ("sasa26(width=40)", r"multiple of 16 .*: did you mean (32|48)\?"),
    ("san10-patch(width=48)", r"multiple of 32 from 32 to 512, .*: did you mean (32|64)\?"),
    ("san10-pair(width=32,width=64)", "width is given twice"),
    ("san10-pair(widht=32)", r"none called 'widht': did you mean width\?"),
])
def test_an_impossible_width_is_one_sentence(typed: str, answer: str) -> None:
    for form in (imagenet_config, small_config):
        with pytest.raises(UnknownNameError, match=answer) as caught:
            form(typed)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("form", "typed", "answer"), [
    (small_config, "sasa26(width=32)", "must be a multiple of 8 for 4 heads with position "
     r"relative, but sasa26\(width=32\) has 4 in this form: use width=64 or heads one of 1, 2$"),
    (small_config, "sasa26(width=16,position=absolute)",
     "multiple of 4 .* has 2 .*: use width=32$"),
    (small_config, "sasa26(width=48)", "use width=64 or heads=1$"),
    (imagenet_config, "san10-sasa(width=32)", "has 8 in this form: use width=64 or heads one of"),
    (imagenet_config, "san10-scalar(width=32,heads=4)", "use width=64 or heads one of 1, 2$"),
    (small_config, "san10-sasa(width=320,heads=8)", "has 8 .*: use width=384 or heads one of"),
])
def test_a_width_that_the_heads_cannot_share_says_which_can(
        form: Callable[[str], Architecture], typed: str, answer: str) -> None:
    with pytest.raises(UnknownNameError, match=answer):
        form(typed)


# --- sizes

def san_parameters(widths: Sequence[int], sides: Sequence[int], *, pair: bool,
                   classes: int) -> int:
    """Trainable values of a SAN10, layer by layer (the paper's Section 4)."""
    count, before = 3 * widths[0] + 2 * widths[0], widths[0]
    for channels, depth, side in zip(widths, SAN10, sides, strict=True):
        relation, value, shared = channels // 16, channels // 4, channels // 32
        if pair:  # position, then gamma: (R + 2) to R to the shared planes
            gamma = (6 + 2 * (relation + 2) + (relation + 2) * relation + 2 * relation
                     + relation * shared + shared)
        else:
            joined, weights = relation * (side ** 2 + 1), shared * side ** 2
            gamma = (2 * joined + joined * shared + 2 * shared + shared * weights + weights)
        block = (2 * channels + 2 * (channels + 1) * relation + (channels + 1) * value + gamma
                 + 2 * value + (value + 1) * channels)
        count += before * channels + 2 * channels + depth * block
        before = channels
    return count + (before + 1) * classes


def bottleneck_parameters(width: int, *, stem: int, classes: int, footprint: int = 0) -> int:
    """Trainable values of a ResNet26 or, with a footprint, of a SASA26 with relative position."""
    count, before = 3 * width * stem ** 2 + 2 * width, width
    for group, depth in enumerate(RESNET26):
        inner, outer = width * 2 ** group, 4 * width * 2 ** group
        spatial = 3 * inner ** 2 + inner * footprint if footprint else 9 * inner ** 2
        for inputs in (before, *[outer] * (depth - 1)):
            count += inputs * inner + spatial + inner * outer + 4 * inner + 2 * outer
        count += before * outer + 2 * outer
        before = outer
    return count + (before + 1) * classes


@pytest.mark.parametrize("width", SAN_WIDTHS)
@pytest.mark.parametrize("network", ["san10-pair", "san10-patch"])
def test_a_san_has_the_parameters_of_its_width(network: str, width: int) -> None:
    for form, widths, sides, classes in (
            (imagenet_config, SAN_WIDTHS, (3, 7, 7, 7, 7), 1000),
            (small_config, SMALL_SAN_WIDTHS, (3, 5, 5, 5, 3), 10)):
        config = form(f"{network}(width={width})")
        assert isinstance(config, SanConfig) and config.widths == widths[width]
        assert parameter_count(config) == san_parameters(
            widths[width], sides, pair=network == "san10-pair", classes=classes)


@pytest.mark.parametrize("width", [8, 32, 40, 64, 512])
def test_a_resnet_has_the_parameters_of_its_width(width: int) -> None:
    typed = f"resnet26(width={width})"
    assert parameter_count(imagenet_config(typed)) == bottleneck_parameters(width, stem=7,
                                                                            classes=1000)
    assert parameter_count(small_config(typed)) == bottleneck_parameters(width // 8, stem=3,
                                                                         classes=10)


@pytest.mark.parametrize("width", [16, 48, 64, 128])
def test_a_sasa_network_has_the_parameters_of_its_width(width: int) -> None:
    typed = f"sasa26(heads=1,width={width})"
    assert parameter_count(imagenet_config(typed)) == bottleneck_parameters(
        width, stem=7, footprint=7, classes=1000)
    assert parameter_count(small_config(typed)) == bottleneck_parameters(
        width // 8, stem=3, footprint=5, classes=10)


def test_the_unit_of_a_san_is_that_of_its_shared_planes() -> None:
    option = names.options("san10-pair")[-1]
    assert option.unit == VALUE_REDUCTION * SHARED_CHANNELS


# --- what is computed

def logits_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    logits = network(images)
    gradient, = torch.autograd.grad(logits.square().sum(), images)
    return logits.detach(), gradient


def settled(typed: str) -> San:
    """A small SAN whose normalisations have seen data, frozen."""
    torch.manual_seed(0)
    network = build(small_config(typed))
    assert isinstance(network, San)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(4, 3, 32, 32))
    return network.eval().requires_grad_(False)


@needs_native
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("typed", [
    f"{network}(width={width})" for network in ("san10-pair", "san10-patch")
    for width in (32, 96, 160, 224)])
def test_native_kernels_of_odd_widths_give_the_references_numbers(typed: str,
                                                                  folded: bool) -> None:
    network = settled(typed)
    images = torch.randn(3, 3, 37, 33, generator=torch.Generator().manual_seed(1))
    with use_backend("native"):
        logits, gradient = logits_and_gradient(FoldedSan(network) if folded else network, images)
    with use_backend("reference"):
        truth = logits_and_gradient(network.double(), images.double())
    # Rounding alone moves the logits; a ReLU within rounding of 0 may flip and move a gradient.
    assert (logits - truth[0]).norm() < 1e-5 * truth[0].norm()
    assert (gradient - truth[1]).norm() < 1e-2 * truth[1].norm()


@pytest.mark.parametrize("typed", ["resnet26(width=8)", "resnet26(width=40)",
                                   "sasa26(heads=1,width=16)", "san10-scalar(width=32)",
                                   "san10-sasa(heads=4,width=96)",
                                   "sasa26(stem=attention,heads=2,width=96)"])
def test_both_forms_of_every_family_compute_at_other_widths(typed: str) -> None:
    for tag, side in (("untrained", 128), ("untrained-small", 32)):
        model = create_model(f"{typed}.{tag}")
        pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        assert model.name == f"{typed}.{tag}"
        assert model(pixels).isfinite().all()


# --- where a width goes

def test_complexity_counts_a_width_by_its_name(command: Command, tmp_path: Path) -> None:
    chosen = ("resnet26(width=32)", "san10-pair(width=32)")
    done = command("complexity", "-m", chosen[0], "-m", chosen[1], "--out", tmp_path)
    assert done.exit_code == 0 and all(name in done.output for name in chosen), done.output
    written = (tmp_path / "complexity-models.csv").read_text()
    for name, count in ((chosen[0], bottleneck_parameters(32, stem=7, classes=1000)),
                        (chosen[1], san_parameters(SAN_WIDTHS[32], (3, 7, 7, 7, 7), pair=True,
                                                   classes=1000))):
        assert f"{name},224,paper,{count}," in written


def test_a_width_is_trained_measured_and_held_to_its_name(command: Command,
                                                          tmp_path: Path) -> None:
    done = command("train", "-m", "resnet26( width=32, kernel=3 )", "--epochs", 1, "-b", 256,
                   "--tag", "s1", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    path = tmp_path / "resnet26(width=32).s1.safetensors"
    done = command("rotate", "-m", "resnet26(width=32)", "--checkpoint", path,
                   "--num-samples", 20, "--out", tmp_path)
    assert done.exit_code == 0 and "ResNet26 (width 32)" in done.output, done.output
    assert "resnet26(width=32).s1," in (tmp_path / "rotation.csv").read_text()
    for typed in ("resnet26", "resnet26(width=128)", "resnet26(kernel=5,width=32)"):
        with pytest.raises(CheckpointError, match=r"type --model 'resnet26\(width=32\)'"):
            create_model(typed, checkpoint=path)


@pytest.mark.slow
def test_a_study_takes_widths(command: Command, tmp_path: Path) -> None:
    done = command("study", "-m", "resnet26(width=16)", "--seeds", 2, "--epochs", 1,
                   "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "resnet26(width=16)" in (tmp_path / "rotation_mean.csv").read_text()


@pytest.mark.parametrize("typed", ["san10-pair(width=96)", "resnet26(width=32)",
                                   "san10-patch(width=96)", "sasa26(width=128)"])
@pytest.mark.parametrize("tag", ["untrained", "untrained-small"])
def test_a_checkpoint_of_another_width_names_the_model_to_type(tmp_path: Path, typed: str,
                                                               tag: str) -> None:
    entry, path = catalog.find(f"{typed}.{tag}"), tmp_path / "a.pth"
    torch.save(trained(entry.architecture), path)
    with pytest.raises(CheckpointError, match=r"it fits .*\(width=.*: type --model ") as caught:
        create_model(f"{names.parse(typed).network}.{tag}", checkpoint=path)
    named, = shlex.split(str(caught.value).rpartition("--model ")[2])
    model = create_model(named, checkpoint=path)
    assert model.name == f"{typed}.a"
    assert model.num_classes == entry.architecture.num_classes
