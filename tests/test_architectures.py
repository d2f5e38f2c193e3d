"""The networks: names, sizes, agreement with independent formulations, and refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from oracles import attention_by, unfold_attention
from safetensors.torch import save
from torch import Tensor, nn

from sanrobust.errors import ModelError, UnknownNameError
from sanrobust.kernels import reference
from sanrobust.kernels.modules import PairwiseAttention
from sanrobust.zoo.build import build, parameter_count, parameter_shapes
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.forms import ARCHITECTURES, imagenet_config, small_config, smallest_input

SAN_ENTRIES = {"san10-pair": 368, "san15-pair": 533, "san19-pair": 665,
               "san10-patch": 348, "san15-patch": 503, "san19-patch": 627}
# Millions, from the paper's Table 3 at one digit; the second digit from the layer definitions.
MILLIONS = {"resnet26": 13.70, "san10-pair": 10.53, "san10-patch": 11.84,
            "resnet38": 19.63, "san15-pair": 14.07, "san15-patch": 16.18,
            "resnet50": 25.56, "san19-pair": 17.60, "san19-patch": 20.52}
PACKAGE_BYTES = 9_300_000


def settled(architecture: Architecture, *, seed: int = 0) -> nn.Module:
    """A network in eval mode whose normalisations have seen data, so that logits have size 1."""
    torch.manual_seed(seed)
    network = build(architecture)
    side = 128 if architecture.num_classes == 1000 else 32
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(2, 3, side, side))
    return network.eval()


def images_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_san(arch: str, **changes: Any) -> SanConfig:
    config = small_config(arch)
    assert isinstance(config, SanConfig)
    return replace(config, **changes)


def norm_entries(prefix: str, channels: int) -> list[tuple[str, tuple[int, ...]]]:
    statistics = [(f"{prefix}.{name}", (channels,))
                  for name in ("weight", "bias", "running_mean", "running_var")]
    return [*statistics, (f"{prefix}.num_batches_tracked", ())]


def linear_entries(prefix: str, inputs: int, outputs: int, *,
                   bias: bool = True) -> list[tuple[str, tuple[int, ...]]]:
    entries = [(f"{prefix}.weight", (outputs, inputs, 1, 1))]
    return [*entries, (f"{prefix}.bias", (outputs,))] if bias else entries


def block_entries(prefix: str, channels: int, footprint: int,
                  attention: str) -> list[tuple[str, tuple[int, ...]]]:
    """What the published checkpoints hold for one block, in their order."""
    relation, value, groups = channels // 16, channels // 4, channels // 32
    if attention == "pairwise":
        widths = (relation + 2, relation, groups)
    else:
        widths = (relation * (footprint ** 2 + 1), groups, footprint ** 2 * groups)
    return [
        *norm_entries(f"{prefix}.bn1", channels),
        *linear_entries(f"{prefix}.sam.conv1", channels, relation),
        *linear_entries(f"{prefix}.sam.conv2", channels, relation),
        *linear_entries(f"{prefix}.sam.conv3", channels, value),
        *norm_entries(f"{prefix}.sam.conv_w.0", widths[0]),
        *linear_entries(f"{prefix}.sam.conv_w.2", widths[0], widths[1], bias=False),
        *norm_entries(f"{prefix}.sam.conv_w.3", widths[1]),
        *linear_entries(f"{prefix}.sam.conv_w.5", widths[1], widths[2]),
        *(linear_entries(f"{prefix}.sam.conv_p", 2, 2) if attention == "pairwise" else []),
        *norm_entries(f"{prefix}.bn2", value),
        *linear_entries(f"{prefix}.conv", value, channels),
    ]


def san_entries(config: SanConfig) -> list[tuple[str, tuple[int, ...]]]:
    width = config.widths[0]
    entries = linear_entries("conv_in", 3, width, bias=False) + norm_entries("bn_in", width)
    for stage, channels in enumerate(config.widths):
        entries += linear_entries(f"conv{stage}", width, channels, bias=False)
        entries += norm_entries(f"bn{stage}", channels)
        for block in range(config.layers[stage]):
            entries += block_entries(f"layer{stage}.{block}", channels,
                                     config.footprints[stage], config.design.attention)
        width = channels
    return entries + [("fc.weight", (config.num_classes, width)),
                      ("fc.bias", (config.num_classes,))]


@pytest.mark.parametrize(("arch", "count"), SAN_ENTRIES.items())
def test_san_state_dict_is_that_of_the_published_checkpoints(arch: str, count: int) -> None:
    config = imagenet_config(arch)
    assert isinstance(config, SanConfig)
    entries = list(parameter_shapes(config).items())
    assert len(entries) == count
    assert entries == san_entries(config)


@pytest.mark.parametrize(("arch", "millions"), MILLIONS.items())
def test_parameter_counts_are_those_of_the_paper(arch: str, millions: float) -> None:
    assert parameter_count(imagenet_config(arch)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_the_architectures_come_in_the_order_of_the_tables() -> None:
    assert ARCHITECTURES == tuple(MILLIONS)


@pytest.mark.parametrize("arch", ["san10-pair", "san10-patch"])
def test_logits_equal_the_unfold_formulation(arch: str) -> None:
    network = settled(imagenet_config(arch))
    images = images_of(2, 3, 128, 128)
    with torch.no_grad():
        logits = network(images)
        with attention_by(unfold_attention, network):
            expected = network(images)
    # float32 over ten attention blocks; the logits themselves are of size one.
    assert expected.abs().max() > 0.1
    assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("arch", ["san10-pair", "san10-patch"])
def test_input_gradients_equal_the_unfold_formulation(arch: str) -> None:
    network = settled(small_config(arch)).double()
    images = images_of(3, 3, 32, 32).double().requires_grad_()
    ours, = torch.autograd.grad(network(images).logsumexp(1).sum(), images)
    with attention_by(unfold_attention, network):
        expected, = torch.autograd.grad(network(images).logsumexp(1).sum(), images)
    # In float64 no rectifier is within rounding of its kink, so the two may be compared directly.
    assert (ours - expected).abs().max() < 1e-9 * expected.abs().max()


def test_torchvision_resnet50_weights_give_torchvision_logits() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).eval()
    ours = build(imagenet_config("resnet50")).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = images_of(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_resnet50_starts_from_torchvision_initial_values() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50(weights=None).state_dict()
    torch.manual_seed(0)
    ours = build(imagenet_config("resnet50")).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resnet26_is_the_papers_network_and_not_timms() -> None:
    # timm's depths are (2, 2, 2, 2): nearly the same cost, another network.
    with torch.device("meta"):
        theirs = timm.create_model("resnet26")
    assert sum(value.numel() for value in theirs.parameters()) == 15_995_176
    assert parameter_count(imagenet_config("resnet26")) == 13_696_552


def logit_change(network: nn.Module, images: Tensor, turned: Tensor) -> float:
    with torch.no_grad():
        return float((network(turned) - network(images)).abs().max())


TURNS = {"cw90": lambda images: torch.rot90(images, -1, (-2, -1)),
         "cw180": lambda images: torch.rot90(images, 2, (-2, -1)),
         "updown": lambda images: images.flip(-2),
         "mirror": lambda images: images.flip(-1)}


@pytest.mark.parametrize("turn", TURNS)
def test_pairwise_attention_without_position_ignores_rotation_and_flips(turn: str) -> None:
    network = settled(small_config("san10-pair")).double()
    images = images_of(2, 3, 32, 32).double()
    assert logit_change(network, images, TURNS[turn](images)) > 1e-6
    for module in network.modules():
        if isinstance(module, PairwiseAttention):
            nn.init.zeros_(module.conv_p.weight)
    # Rounding of float64 alone: the neighbours are summed in another order.
    assert logit_change(network, images, TURNS[turn](images)) < 1e-11


@pytest.mark.parametrize("turn", TURNS)
def test_patchwise_attention_sees_rotation_and_flips(turn: str) -> None:
    network = settled(small_config("san10-patch")).double()
    images = images_of(2, 3, 32, 32).double()
    assert logit_change(network, images, TURNS[turn](images)) > 1e-4


@pytest.mark.parametrize("arch", ["san10-pair", "san10-patch"])
def test_a_too_small_image_is_refused_with_the_size_needed(arch: str) -> None:
    network = build(imagenet_config(arch)).eval()
    with pytest.raises(ModelError) as caught:
        network(torch.zeros(1, 3, 96, 160))
    assert str(caught.value) == (
        "this network needs images of at least 128x128 pixels, but these are 96x160: "
        "use --img-size 128 or larger, or a model made for small images")


@pytest.mark.parametrize("arch", ["san10-pair", "san10-patch"])
def test_the_smallest_input_is_sharp(arch: str) -> None:
    config = small_san(arch, footprints=(3, 7, 5, 5, 5))
    side = smallest_input(config)
    network = build(config).eval()
    assert network(torch.zeros(1, 3, side, side + 5)).shape == (1, 10)
    with pytest.raises(ModelError):
        network(torch.zeros(1, 3, side - 1, side))


@pytest.mark.parametrize("side", [128, 224])
def test_the_paper_sizes_are_legal(side: int) -> None:
    config = imagenet_config("san19-pair")
    assert isinstance(config, SanConfig)
    assert smallest_input(config) <= side


@pytest.mark.parametrize("arch", ["san10-pair", "san10-patch"])
def test_slicing_the_batch_leaves_the_logits_alone(arch: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    network = settled(small_config(arch))
    images = images_of(6, 3, 32, 32)
    with torch.no_grad():
        monkeypatch.setattr(reference, "SLICE_VALUES", {"cpu": 1 << 40})
        whole = network(images)
        monkeypatch.setattr(reference, "SLICE_VALUES", {"cpu": 1})
        sliced = network(images)
    # float32 rounding of products that a library may group by batch size.
    assert (whole - sliced).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_small_forms_train_on_32_pixels(arch: str) -> None:
    torch.manual_seed(0)
    network = build(small_config(arch))
    loss = nn.functional.cross_entropy(network(images_of(2, 3, 32, 32)), torch.tensor([1, 2]))
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all()
               for parameter in network.parameters())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_small_forms_keep_the_depth_of_the_paper(arch: str) -> None:
    assert small_config(arch).layers == imagenet_config(arch).layers


def test_the_nine_small_forms_fit_the_package() -> None:
    sizes = [len(save(build(small_config(arch)).state_dict())) for arch in ARCHITECTURES]
    assert sum(sizes) < PACKAGE_BYTES


@pytest.mark.parametrize("form", [imagenet_config, small_config])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_form_takes_the_number_of_classes(arch: str, form: Any) -> None:
    shapes = parameter_shapes(form(arch, num_classes=7))
    assert shapes["fc.weight"][0] == 7 and shapes["fc.bias"] == (7,)


@pytest.mark.parametrize("form", [imagenet_config, small_config])
@pytest.mark.parametrize("name", ["san01-pair", "san10-pairs", "san10", "resnet27"])
def test_an_unknown_architecture_is_refused(name: str, form: Any) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        form(name)


def test_shapes_are_known_without_memory_and_equal_those_of_the_network() -> None:
    config = small_config("san10-patch")
    built = {name: tuple(value.shape) for name, value in build(config).state_dict().items()}
    assert parameter_shapes(config) == built


def test_knowing_the_shapes_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    parameter_shapes(small_config("resnet26"))
    parameter_count(small_config("san10-pair"))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("changes", "message"), [
    ({"widths": (32, 32, 64, 128, 250)}, "multiples of 32, but one is 250: use 256"),
    ({"footprints": (3, 5, 5)}, r"one item per stage, but they are \(3, 5, 5\) for 5 stages"),
    ({"layers": ()}, "at least one stage"),
])
def test_a_san_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(small_san("san10-pair", **changes))


def test_a_network_survives_copying() -> None:
    network = settled(small_config("san10-pair"))
    images = images_of(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(images), network(images))
