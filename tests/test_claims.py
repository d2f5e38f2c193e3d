"""The paper's structural claims as properties of the layers, in float64.

Zhao, Jia and Koltun, CVPR 2020: pairwise attention treats its footprint as a set and patchwise
attention does not (Sections 3.1 and 3.2); without position a pairwise network cannot tell an image
from its rotations and flips; patchwise attention contains the convolution; Table 2.

Weights are random and large enough for attention to be selective. What is equal by structure is
equal within EXACT, the rounding of float64 through a network; what differs does so by CLEAR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import Command
from sanrobust.claims import as_patchwise, measure_claims
from sanrobust.data.digits import open_digits
from sanrobust.data.transforms import to_pixels
from sanrobust.design import PAIRWISE, PATCHWISE, SASA, SCALAR, AttentionConfig
from sanrobust.errors import UsageError
from sanrobust.kernels import modules, relations
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.zoo.build import build, parameter_count
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.forms import small_config
from sanrobust.zoo.resolve import create_model

EXACT = 1e-10
CLEAR = 1e-2
CHANNELS = 16
FOOTPRINT = 5

PAIRS = [replace(PAIRWISE, relation=name) for name in relations.names("pairwise")]
PATCHES = [replace(PATCHWISE, relation=name) for name in relations.names("patchwise")]
PLACED = [replace(PAIRWISE, position="absolute"), replace(PAIRWISE, position="none"),
          replace(PAIRWISE, mapping="L"), replace(PAIRWISE, mapping="LRLRL"),
          replace(PAIRWISE, transforms=1), replace(PAIRWISE, transforms=2)]
SETS = [*PAIRS, *PLACED, SCALAR, replace(SASA, heads=2, position="none")]
SEQUENCES = [*PATCHES, replace(PATCHWISE, mapping="L"), replace(PATCHWISE, transforms=1),
             replace(SASA, heads=2)]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def named(design: AttentionConfig) -> str:
    return "-".join((design.attention, design.relation, design.mapping, str(design.transforms),
                     design.position))


def layer_of(design: AttentionConfig, *, footprint: int = FOOTPRINT, seed: int = 0,
             channels: int = CHANNELS) -> nn.Module:
    torch.manual_seed(seed)
    if design.attention in ("scalar", "sasa"):
        return drawn(LocalAttention(channels, query_channels=8, value_channels=CHANNELS,
                                    design=design, footprint=footprint))
    kind = PairwiseAttention if design.attention == "pairwise" else PatchwiseAttention
    return drawn(kind(channels, relation_channels=4, value_channels=CHANNELS, weight_groups=8,
                      footprint=footprint, design=design))


def drawn(module: nn.Module) -> nn.Module:
    """Random weights and statistics of size one."""
    module = module.double().eval().requires_grad_(False)
    for name, value in module.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
        elif name.endswith(("running_var", "weight")):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.normal_(std=0.5)
    return module


def maps(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(seed))


def change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm())


def middle(values: Tensor) -> Tensor:
    return values[:, :, values.shape[2] // 2, values.shape[3] // 2]


# The footprint as a set.


def shuffled_around_the_middle(values: Tensor) -> Tensor:
    """Shuffle all pixels of a map but the middle one, in one fixed order."""
    count = values.shape[2] * values.shape[3]
    around = [place for place in range(count) if place != count // 2]
    drawn_order = torch.randperm(len(around), generator=torch.Generator().manual_seed(5))
    order = [around[place] for place in drawn_order]
    order.insert(count // 2, count // 2)
    assert order != sorted(order)
    return values.flatten(2)[:, :, order].view(values.shape)


def output_change_when_shuffled(design: AttentionConfig, monkeypatch: pytest.MonkeyPatch) -> float:
    """How the output in the middle of a map as large as the footprint takes a shuffled map.

    Every pixel of the map is a neighbour of the middle, once. The coordinates of the neighbours
    are shuffled with their features.
    """
    layer = layer_of(design)
    features = maps(1, CHANNELS, FOOTPRINT, FOOTPRINT)
    before = middle(layer(features))
    grid = modules.position_grid

    def shuffled_grid(*size: int, **options: object) -> Tensor:
        return shuffled_around_the_middle(grid(*size, **options))

    monkeypatch.setattr(modules, "position_grid", shuffled_grid)
    return change(before, middle(layer(shuffled_around_the_middle(features))))


@pytest.mark.parametrize("design", SETS, ids=named)
def test_shuffling_the_neighbours_changes_nothing(design: AttentionConfig,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_change_when_shuffled(design, monkeypatch) < EXACT


@pytest.mark.parametrize("design", SEQUENCES, ids=named)
def test_shuffling_the_neighbours_matters_to_attention_that_knows_places(
        design: AttentionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_change_when_shuffled(design, monkeypatch) > CLEAR


@pytest.mark.parametrize("design", [*PAIRS, *PLACED], ids=named)
def test_a_larger_footprint_keeps_the_proportions_of_the_smaller_ones_weights(
        design: AttentionConfig) -> None:
    small, large = (layer_of(design, footprint=side) for side in (3, 5))
    small.load_state_dict(large.state_dict(), strict=True)
    features = maps(2, CHANNELS, 9, 9)
    weight = large.attention_weights(features).view(2, 8, 5, 5, 9, 9)
    inner = weight[:, :, 1:4, 1:4].flatten(2, 3).flatten(3)
    expected = small.attention_weights(features)
    assert change(expected, inner / inner.sum(2, keepdim=True)) < EXACT


@pytest.mark.parametrize("design", PATCHES, ids=named)
def test_patchwise_weights_fit_one_footprint_alone(design: AttentionConfig) -> None:
    small, large = (layer_of(design, footprint=side) for side in (3, 5))
    with pytest.raises(RuntimeError, match="size mismatch"):
        small.load_state_dict(large.state_dict(), strict=True)


def parameters_by_footprint(design: AttentionConfig) -> list[int]:
    config = small_config("san10-pair")
    assert isinstance(config, SanConfig)
    return [parameter_count(replace(config, design=design, footprints=(3, *(side,) * 4)))
            for side in (3, 5, 7, 9, 11)]


@pytest.mark.parametrize("design", [*PAIRS, *PLACED, SCALAR], ids=named)
def test_the_footprint_costs_no_parameters(design: AttentionConfig) -> None:
    assert len(set(parameters_by_footprint(design))) == 1


@pytest.mark.parametrize("design", PATCHES, ids=named)
def test_the_footprint_costs_patchwise_attention_parameters(design: AttentionConfig) -> None:
    counts = parameters_by_footprint(design)
    assert all(fewer < more for fewer, more in zip(counts, counts[1:]))


# Rotation and flip.


def views(images: Tensor) -> list[Tensor]:
    turned = [torch.rot90(images, quarters, (2, 3)) for quarters in (1, 2, 3)]
    return [*turned, images.flip(2), images.flip(3), images.transpose(2, 3)]


def logit_change_when_turned(network: nn.Module, images: Tensor) -> float:
    upright = network(images)
    assert torch.isfinite(upright).all()
    return max(change(upright, network(view)) for view in views(images))


def settled(design: AttentionConfig) -> tuple[nn.Module, Tensor]:
    """A small SAN that has normalised just these images, lest a deep one overflows on them."""
    config = small_config("san10-pair")
    assert isinstance(config, SanConfig)
    torch.manual_seed(3)
    network = drawn(build(replace(config, design=design)))
    images = maps(4, 3, 32, 32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.cat([images, *views(images)]))
    return network.eval(), images


def without_position(network: nn.Module) -> nn.Module:
    for name, parameter in network.named_parameters():
        if name.endswith("conv_p.weight"):
            parameter.detach().zero_()
    return network


@pytest.mark.parametrize("design", [*PAIRS, *PLACED, SCALAR], ids=named)
def test_without_position_no_logit_changes_when_the_image_is_turned(
        design: AttentionConfig) -> None:
    network, images = settled(design)
    assert logit_change_when_turned(without_position(network), images) < EXACT


@pytest.mark.parametrize("design", [
    PAIRWISE, replace(PAIRWISE, position="absolute"), replace(SASA, heads=2), *PATCHES], ids=named)
def test_with_places_logits_change_when_the_image_is_turned(design: AttentionConfig) -> None:
    network, images = settled(design)
    assert logit_change_when_turned(network, images) > CLEAR


def test_the_trained_network_sees_rotation_through_its_position_weights_alone() -> None:
    model = create_model("san10-pair.digits").double()
    digits = open_digits("test")
    pixels = torch.stack([to_pixels(digits.load(index), model.preprocessing)
                          for index in range(8)]).double()
    assert logit_change_when_turned(model, pixels) > 0.1
    assert logit_change_when_turned(without_position(model), pixels) < EXACT


# Convolution.


@pytest.mark.parametrize(("channels", "out", "side", "shared", "mode", "bias"), [
    (8, 8, 3, 8, "reflect", True), (16, 5, 3, 8, "zeros", False), (10, 12, 3, 8, "reflect", True),
    (2, 3, 7, 8, "reflect", True), (3, 4, 5, 1, "zeros", True), (1, 1, 1, 8, "zeros", True),
])
def test_every_dense_convolution_is_patchwise_attention_and_a_linear_layer(
        channels: int, out: int, side: int, shared: int, mode: str, bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(channels, out, side, padding=side // 2, padding_mode=mode,
                            bias=bias).double()
    layers = as_patchwise(convolution, shared=shared)
    attention = layers[0]
    assert isinstance(attention, PatchwiseAttention)
    groups = attention.conv_w[-1].out_channels // side ** 2
    assert attention.conv3.out_channels == shared * groups
    images = maps(2, channels, 9, 11)
    assert change(convolution(images), layers(images)) < EXACT


def silenced(design: AttentionConfig, groups: int) -> tuple[PatchwiseAttention, Tensor]:
    """A layer whose gamma returns its bias alone, random, and that bias as kernels."""
    torch.manual_seed(4)
    layer = PatchwiseAttention(CHANNELS, relation_channels=4, value_channels=CHANNELS,
                               weight_groups=groups, footprint=3, design=design)
    drawn(layer)
    last = layer.conv_w[-1]
    last.weight.zero_()
    return layer, last.bias.view(groups, 1, 3, 3)


@pytest.mark.parametrize("design", [*PATCHES, replace(PATCHWISE, mapping="L"),
                                    replace(PATCHWISE, mapping="LRLRL"),
                                    replace(PATCHWISE, transforms=1),
                                    replace(PATCHWISE, transforms=2)], ids=named)
@pytest.mark.parametrize("groups", [CHANNELS, CHANNELS // 8], ids=["own", "shared"])
def test_with_its_last_linear_layer_zeroed_patchwise_attention_is_a_depthwise_convolution(
        design: AttentionConfig, groups: int) -> None:
    layer, kernels = silenced(design, groups)
    values = layer.conv1 if design.transforms == 1 else layer.conv3
    values.weight.copy_(torch.eye(CHANNELS).view(CHANNELS, CHANNELS, 1, 1))
    values.bias.zero_()
    images = maps(2, CHANNELS, 8, 9)
    # Channel c has kernel c % M: any depthwise convolution with a group per channel.
    kernel = torch.cat([kernels] * (CHANNELS // groups))
    expected = F.conv2d(F.pad(images, (1,) * 4, mode="reflect"), kernel, groups=CHANNELS)
    assert change(expected, layer(images)) < EXACT


def test_the_convolutions_of_a_silenced_layer_are_products_with_shared_spatial_factors() -> None:
    groups = 2
    layer, kernels = silenced(PATCHWISE, groups)
    mix = drawn(nn.Conv2d(CHANNELS, 7, 1))
    factors = kernels.view(groups, 9)
    kernel = torch.zeros(7, CHANNELS, 9, dtype=torch.float64)
    for o in range(CHANNELS):
        spatial = factors[o % groups]
        for q in range(7):
            for c in range(CHANNELS):
                kernel[q, c] += mix.weight[q, o, 0, 0] * layer.conv3.weight[o, c, 0, 0] * spatial
    images = maps(2, CHANNELS, 8, 9)
    attended = mix(layer(images)) - mix(layer(torch.zeros_like(images)))
    expected = F.conv2d(F.pad(images, (1,) * 4, mode="reflect"), kernel.view(7, CHANNELS, 3, 3))
    assert change(expected, attended) < EXACT
    # The limit of what M groups can express: their kernels span M spatial patterns of nine.
    assert torch.linalg.matrix_rank(kernel.flatten(0, 1)) == groups


def test_patchwise_attention_is_more_than_a_convolution() -> None:
    layer = layer_of(PATCHWISE)
    first, second = maps(1, CHANNELS, 7, 7), maps(1, CHANNELS, 7, 7, seed=2)
    nothing = layer(torch.zeros_like(first))
    added = layer(first) + layer(second) - nothing
    assert change(added, layer(first + second)) > CLEAR


@pytest.mark.parametrize("settings", [
    {"stride": 2}, {"padding": 0}, {"dilation": 2, "padding": 2}, {"groups": 2},
    {"padding_mode": "circular"}])
def test_other_convolutions_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="to become attention"):
        as_patchwise(nn.Conv2d(4, 4, 3, **{"padding": 1, **settings}))


# Table 2.


def weights_by_impulses(layer: nn.Module, content: Tensor) -> Tensor:
    """Read the weights (K2, O) of the middle position from outputs alone.

    The layer compares the first channels, ``content``, and sums the others: an impulse in those
    at neighbour n comes out with the weight of n.
    """
    for transform in (layer.conv1, layer.conv2):
        transform.weight[:, CHANNELS:] = 0
    layer.conv3.weight.zero_()
    layer.conv3.bias.zero_()
    layer.conv3.weight[:, CHANNELS:, 0, 0] = torch.eye(CHANNELS)
    side, reach = content.shape[-1], FOOTPRINT // 2
    impulses = torch.zeros(FOOTPRINT ** 2, CHANNELS, side, side, dtype=torch.float64)
    for n in range(FOOTPRINT ** 2):
        dy, dx = n // FOOTPRINT - reach, n % FOOTPRINT - reach
        impulses[n, :, side // 2 + dy, side // 2 + dx] = 1
    return middle(layer(torch.cat((content.expand(len(impulses), -1, -1, -1), impulses), 1)))


def impulse_adaptivity(design: AttentionConfig) -> tuple[float, float]:
    """How much weights change from image to image, and how much from channel to channel."""
    layer = layer_of(design, channels=2 * CHANNELS)
    first, second = (weights_by_impulses(layer, maps(1, CHANNELS, 9, 9, seed=seed))
                     for seed in (1, 2))
    return change(first, second), change(first, first.mean(1, keepdim=True).expand_as(first))


@pytest.mark.parametrize("design", [SCALAR, replace(SASA, heads=1)], ids=named)
def test_scalar_attention_adapts_to_content_but_not_to_channels(design: AttentionConfig) -> None:
    content, channel = impulse_adaptivity(design)
    assert content > CLEAR and channel < EXACT


@pytest.mark.parametrize("design", [*PAIRS, *PATCHES], ids=named)
def test_vector_attention_adapts_to_content_and_channels(design: AttentionConfig) -> None:
    content, channel = impulse_adaptivity(design)
    assert content > CLEAR and channel > CLEAR


def test_heads_let_scalar_attention_adapt_between_heads_and_not_within_one() -> None:
    layer = layer_of(replace(SCALAR, heads=4), channels=2 * CHANNELS)
    weight = weights_by_impulses(layer, maps(1, CHANNELS, 9, 9))
    heads = weight[:, :4]
    assert change(heads, heads.mean(1, keepdim=True).expand_as(heads)) > CLEAR
    assert change(weight, heads.repeat(1, CHANNELS // 4)) < EXACT


def test_a_convolution_adapts_to_channels_but_not_to_content() -> None:
    convolution = drawn(nn.Conv2d(CHANNELS, CHANNELS, FOOTPRINT, padding=2, groups=CHANNELS))
    impulse = torch.zeros(1, CHANNELS, 9, 9, dtype=torch.float64)
    impulse[:, :, 4, 4] = 1
    first, second = (convolution(image + impulse) - convolution(image)
                     for image in (maps(1, CHANNELS, 9, 9), maps(1, CHANNELS, 9, 9, seed=2)))
    assert change(first, second) < EXACT
    assert change(first, first.mean(1, keepdim=True).expand_as(first)) > CLEAR


@pytest.mark.parametrize("design", [SCALAR, PAIRWISE, PATCHWISE], ids=named)
def test_the_weights_that_layers_tell_are_those_of_their_outputs(design: AttentionConfig) -> None:
    layer = layer_of(design, channels=2 * CHANNELS)
    content = maps(1, CHANNELS, 9, 9)
    read = weights_by_impulses(layer, content)
    told = layer.attention_weights(torch.cat((content, torch.zeros_like(content)), 1))
    at_middle = told[0, :, :, 9 * 9 // 2].T
    assert change(read, at_middle.repeat(1, CHANNELS // at_middle.shape[1])) < EXACT


# The report.


def test_the_report_holds_with_any_seed_and_leaves_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    report = measure_claims(seed=7)
    assert report.holds and len(report.table2) == 4
    assert torch.equal(before, torch.random.get_rng_state())
    assert report == measure_claims(seed=7)
    assert report.table2 != measure_claims(seed=8).table2


def test_a_claim_that_fails_is_marked() -> None:
    report = measure_claims()
    wrong = replace(report, table2=(replace(report.table2[0], content=0.5), *report.table2[1:]))
    assert not wrong.holds
    assert [line for line in wrong.lines() if "NOT as" in line] == [
        line for line in wrong.lines() if "convolution  " in line and "channels" not in line]
    unknown = replace(report, table2=(replace(report.table2[0], content=float("nan")),))
    assert not unknown.holds


def test_the_command_prints_table_2_and_every_claim(command: Command) -> None:
    result = command("show", "claims")
    assert result.exit_code == 0, result.output
    assert "vector attention, patchwise" in result.output and "NOT" not in result.output
    assert "10.7 11.2 11.8 12.7 13.8" in result.output
