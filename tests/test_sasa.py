"""Scalar attention, SASA, its stem and networks, and ResNets with larger kernels."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from oracles import loop_linear, pixel
from torch import Tensor, nn

from sanrobust.design import SASA, SCALAR, AttentionConfig
from sanrobust.errors import ModelError, UsageError
from sanrobust.kernels import functional, reference
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.local import LocalAttention, sinusoids
from sanrobust.kernels.local_stem import BlockAttention
from sanrobust.zoo.build import build, parameter_count, parameter_shapes
from sanrobust.zoo.families.resnet import ResNetConfig
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.families.sasa import SasaConfig

DEPTHS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}
SMALL_SASA = SasaConfig(layers=(1, 1, 1, 1), width=8, stem="small", num_classes=10, footprint=3,
                        design=replace(SASA, heads=2))
SMALL_SAN = SanConfig(layers=(1, 1), footprints=(3, 5), widths=(32, 64), pools=(True, True),
                      num_classes=10, design=replace(SASA, heads=4))
PLAIN = replace(SASA, heads=2, position="none")

# What each layer of the oracle tests is: a design and the settings of its module.
LAYERS: dict[str, tuple[AttentionConfig, dict[str, Any]]] = {
    "scalar": (SCALAR, {}),
    "scalar, two heads, other widths": (replace(SCALAR, heads=2), {"value_channels": 6}),
    "sasa": (replace(SASA, heads=2), {}),
    "sasa, four heads, zeros": (replace(SASA, heads=4), {"padding_mode": "zeros"}),
    "sasa, larger extent": (replace(SASA, heads=1), {"footprint": 5, "query_channels": 4}),
    "sasa, no position": (PLAIN, {}),
    "sasa, absolute position": (replace(SASA, heads=2, position="absolute"), {}),
    "sasa, offsets alone": (replace(SASA, heads=2, content=False), {"bias": False}),
    "sasa, stride": (replace(SASA, heads=2), {"stride": 2, "padding_mode": "zeros"}),
}


def layer_of(name: str) -> LocalAttention:
    design, settings = LAYERS[name]
    torch.manual_seed(len(name))
    defaults = {"query_channels": 8, "value_channels": 8, "footprint": 3}
    return LocalAttention(4, design=design, **(defaults | settings)).double()


def maps_of(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameter(layer: nn.Module, name: str) -> Tensor:
    found: Tensor = layer.get_parameter(name)
    return found


def loop_sinusoids(channels: int, height: int, width: int) -> Tensor:
    """The sinusoids of Vaswani et al. (2017): rows in the first half of the channels."""
    encoded = torch.empty(1, channels, height, width, dtype=torch.float64)
    half = channels // 2
    for c, y, x in product(range(channels), range(height), range(width)):
        coordinate, pair = (y, c // 2) if c < half else (x, (c - half) // 2)
        angle = coordinate / 10_000 ** (2 * pair / half)
        encoded[0, c, y, x] = math.cos(angle) if c % 2 else math.sin(angle)
    return encoded


def loop_weights(layer: LocalAttention, features: Tensor, y: int, x: int,
                 head: int) -> list[Tensor]:
    """Weights (B) of one position's neighbours in one head, from sums over channels."""
    heads, footprint = layer.design.heads, layer.window.footprint
    if layer.design.position == "absolute":
        features = features + loop_sinusoids(features.shape[1], *features.shape[2:])
    query = loop_linear(layer.conv1, features)
    key = None if layer.conv2 is None else loop_linear(layer.conv2, features)
    channels, scores = query.shape[1], []
    for row, column in product(range(footprint), range(footprint)):
        logit = features.new_zeros(features.shape[0])
        for c in range(head, channels, heads):
            if key is not None:
                there = pixel(key, y + row - footprint // 2, x + column - footprint // 2,
                              layer.window.padding_mode)
                logit = logit + query[:, c, y, x] * there[:, c]
            if layer.design.position == "relative":
                embedding = (parameter(layer, "rows")[c, row] if c < channels // 2
                             else parameter(layer, "columns")[c - channels // 2, column])
                logit = logit + query[:, c, y, x] * embedding
        scores.append(logit.exp())
    total = torch.stack(scores).sum(0)
    return [score / total for score in scores]


def loop_attention(layer: LocalAttention, features: Tensor) -> Tensor:
    """The whole layer with explicit loops over positions, heads, neighbours and channels."""
    stride, footprint = layer.window.stride, layer.window.footprint
    value = loop_linear(layer.conv3, features)
    rows, columns = (range(0, side, stride) for side in features.shape[2:])
    attended = []
    for y, x in product(rows, columns):
        weights = [loop_weights(layer, features, y, x, head)
                   for head in range(layer.design.heads)]
        for c in range(value.shape[1]):
            total = features.new_zeros(features.shape[0])
            for n, (row, column) in enumerate(product(range(footprint), range(footprint))):
                there = pixel(value, y + row - footprint // 2, x + column - footprint // 2,
                              layer.window.padding_mode)
                total = total + weights[c % layer.design.heads][n] * there[:, c]
            attended.append(total)
    return torch.stack(attended, 1).view(
        features.shape[0], len(rows), len(columns), -1).permute(0, 3, 1, 2)


def loop_stem(stem: BlockAttention, images: Tensor) -> Tensor:
    """The stem's attention with explicit loops over pixels, heads and channels."""
    height, width = (-(-side // stem.block) * stem.block for side in images.shape[2:])
    down = [min(y, images.shape[2] - 1) for y in range(height)]
    across = [min(x, images.shape[3] - 1) for x in range(width)]
    filled = images[:, :, down][:, :, :, across]
    query, key = loop_linear(stem.conv1, filled), loop_linear(stem.conv2, filled)
    attended = filled.new_zeros(images.shape[0], query.shape[1], height, width)
    for y, x in product(range(height), range(width)):
        top, left = y - y % stem.block, x - x % stem.block
        for c in range(query.shape[1]):
            group = range(c % stem.heads, query.shape[1], stem.heads)
            total, norm = 0.0, 0.0
            for a, b in product(range(stem.block), range(stem.block)):
                score = torch.as_tensor(sum(query[:, g, y, x] * key[:, g, top + a, left + b]
                                            for g in group)).exp()
                share = torch.softmax(stem.rows[a] + stem.columns[b], 0)
                vector = sum(share[m] * stem.values[m, c] for m in range(len(share)))
                total = total + score * (filled[:, :, top + a, left + b] @ vector)
                norm = norm + score
            attended[:, c, y, x] = total / norm
    return attended


@pytest.mark.parametrize("name", LAYERS)
def test_attention_equals_loops_over_pixels(name: str) -> None:
    layer, features = layer_of(name), maps_of(2, 4, 5, 4)
    with torch.no_grad():
        ours, expected = layer(features), loop_attention(layer, features)
    # float64: sums of some dozen products of size one.
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-13


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_gradient_equals_that_of_the_loops(name: str) -> None:
    layer, features = layer_of(name), maps_of(1, 4, 3, 4).requires_grad_()
    if layer.window.footprint == 5:
        features = maps_of(1, 4, 4, 3).requires_grad_()
    attended = layer(features)
    direction = maps_of(*attended.shape, seed=2)
    ours, = torch.autograd.grad(attended, features, direction)
    expected, = torch.autograd.grad(loop_attention(layer, features), features, direction)
    assert expected.abs().max() > 0.1
    assert (ours - expected).abs().max() < 1e-13


@pytest.mark.parametrize("name", LAYERS)
def test_the_weights_shown_are_positive_sum_to_one_and_are_those_used(name: str) -> None:
    layer, features = layer_of(name), maps_of(2, 4, 7, 6)
    window = layer.window
    with torch.no_grad():
        weight, attended = layer.attention_weights(features), layer(features)
        again = functional.aggregation(
            layer.conv3(features), weight, footprint=window.footprint, stride=window.stride,
            padding_mode=window.padding_mode)
    assert weight.shape[1:3] == (layer.design.heads, window.footprint ** 2)
    assert bool((weight > 0).all())
    assert (weight.sum(2) - 1).abs().max() < 1e-14
    assert (again - attended).abs().max() < 1e-14  # a fused sum has another order


def test_slices_of_a_batch_attend_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, features = layer_of("sasa"), maps_of(5, 4, 6, 6)
    with torch.no_grad():
        whole = layer(features)
        monkeypatch.setitem(reference.SLICE_VALUES, "cpu", 2 * 2 * 9 * 36)
        with use_backend("reference"):
            sliced = layer(features)
    # The same sums in other blocks of a matrix product.
    assert (whole - sliced).abs().max() < 1e-14


def test_an_empty_batch_attends_to_an_empty_map() -> None:
    assert layer_of("sasa")(maps_of(0, 4, 5, 6)).shape == (0, 8, 5, 6)


def test_sinusoids_are_the_transformers() -> None:
    ours = sinusoids(maps_of(2, 12, 5, 3))
    # The angles are computed in another order of float64 operations.
    assert (ours - loop_sinusoids(12, 5, 3)).abs().max() < 1e-14


def test_without_content_the_keys_cost_nothing() -> None:
    names = set(dict(layer_of("sasa, offsets alone").named_parameters()))
    assert names == {"conv1.weight", "conv3.weight", "rows", "columns"}


@pytest.mark.parametrize("name", ["sasa, no position", "scalar"])
def test_without_position_a_turned_map_gives_the_turned_result(name: str) -> None:
    layer, features = layer_of(name), maps_of(1, 4, 6, 6)
    with torch.no_grad():
        turned = layer(features.rot90(1, (2, 3))).rot90(-1, (2, 3))
        assert (turned - layer(features)).abs().max() < 1e-14


@pytest.mark.parametrize("name", ["sasa", "sasa, absolute position", "sasa, offsets alone"])
def test_with_position_a_turned_map_gives_another_result(name: str) -> None:
    layer, features = layer_of(name), maps_of(1, 4, 6, 6)
    with torch.no_grad():
        turned = layer(features.rot90(1, (2, 3))).rot90(-1, (2, 3))
        assert (turned - layer(features)).abs().max() > 1e-3


@pytest.mark.parametrize(("design", "settings", "message"), [
    (replace(SASA, heads=3), {}, "multiple of 3"),
    (replace(SASA, heads=8), {}, "multiple of 16"),
    (replace(SCALAR, heads=0), {}, "at least 1"),
    (replace(PLAIN, content=False), {}, "relative position"),
    (replace(PLAIN, position="absolute"), {"channels": 6}, "multiple of 4"),
    (replace(SCALAR, relation="hadamard"), {}, "dot products"),
    (AttentionConfig(), {}, "dot products"),
    (SCALAR, {"footprint": 4}, "odd"),
])
def test_a_layer_that_cannot_be_is_refused(design: AttentionConfig, settings: dict[str, Any],
                                           message: str) -> None:
    defaults = {"channels": 4, "query_channels": 8, "value_channels": 8, "footprint": 3}
    with pytest.raises(UsageError, match=message):
        LocalAttention(design=design, **(defaults | settings))


@pytest.mark.parametrize(("sides", "heads"), [((4, 8), 1), ((8, 4), 2), ((5, 6), 2)])
def test_the_stem_equals_loops_over_pixels(sides: tuple[int, int], heads: int) -> None:
    torch.manual_seed(0)
    stem = BlockAttention(3, out_channels=4, heads=heads, transforms=3).double()
    images = maps_of(2, 3, *sides)
    with torch.no_grad():
        # float64: sums of sixteen products of size one.
        assert (stem(images) - loop_stem(stem, images)).abs().max() < 1e-13


def test_the_stems_input_gradient_is_that_of_the_loops() -> None:
    torch.manual_seed(0)
    stem = BlockAttention(3, out_channels=4, heads=2, transforms=3).double()
    images = maps_of(1, 3, 5, 4).requires_grad_()
    along = maps_of(1, 4, 8, 4)
    found, = torch.autograd.grad((stem(images) * along).sum(), images)
    wanted, = torch.autograd.grad((loop_stem(stem, images) * along).sum(), images)
    # float64, as above.
    assert (found - wanted).abs().max() < 1e-12


def test_the_stem_sees_no_further_than_its_block() -> None:
    torch.manual_seed(0)
    stem = BlockAttention(3, out_channels=8, heads=2)
    images = maps_of(1, 3, 8, 8).float().requires_grad_()
    gradient, = torch.autograd.grad(stem(images)[:, :, 4:, :4].sum(), images)
    assert bool((gradient[:, :, 4:, :4] != 0).all())
    assert gradient[:, :, :4].abs().max() == 0 == gradient[:, :, :, 4:].abs().max()


def test_a_stem_whose_heads_do_not_divide_its_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of the heads"):
        BlockAttention(3, out_channels=8, heads=3)


# Millions: 10.3, 14.1 and 18.0 in print (14.19 only if cut off), digits from the layer definitions.
@pytest.mark.parametrize(("depth", "millions"), [(26, 10.34), (38, 14.19), (50, 18.04)])
def test_sasa_resnets_have_the_papers_parameters(depth: int, millions: float) -> None:
    count = parameter_count(SasaConfig(layers=DEPTHS[depth]))
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def test_san10_with_sasa_has_the_papers_parameters() -> None:
    # 13.9 million in Section 5.3 of the SAN paper; the third digit from the layer definitions.
    count = parameter_count(SanConfig(design=SASA, layers=(2, 1, 2, 4, 1)))
    assert count / 1e6 == pytest.approx(13.855, abs=0.007)


@pytest.mark.parametrize(("kernel", "millions"), [(5, 22.675), (7, 36.143)])
def test_larger_kernels_cost_the_papers_parameters(kernel: int, millions: float) -> None:
    count = parameter_count(ResNetConfig(layers=DEPTHS[26], kernel=kernel))
    assert count / 1e6 == pytest.approx(millions, abs=0.0005)


def test_larger_kernels_keep_the_names_of_the_parameters() -> None:
    plain = parameter_shapes(ResNetConfig(layers=DEPTHS[26]))
    large = parameter_shapes(ResNetConfig(layers=DEPTHS[26], kernel=7))
    assert list(large) == list(plain)
    assert {name: shape[-2:] for name, shape in large.items() if shape != plain[name]} == {
        name: (7, 7) for name in plain if name.endswith("conv2.weight")}


@pytest.mark.parametrize("kernel", [5, 7])
@pytest.mark.parametrize("side", [32, 37])
def test_larger_kernels_keep_the_sizes_of_the_maps(kernel: int, side: int) -> None:
    config = ResNetConfig(layers=(1, 1, 1, 1), width=8, stem="small", num_classes=10)
    images = torch.zeros(1, 3, side, side)
    sizes = [[*network.layer1(network.conv1(images)).shape[2:],
              *network.layer2(network.layer1(network.conv1(images))).shape[2:]]
             for network in (build(config).eval(), build(replace(config, kernel=kernel)).eval())]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kernel", [0, 4])
def test_a_kernel_without_a_centre_is_refused(kernel: int) -> None:
    with pytest.raises(ModelError, match="odd"):
        build(ResNetConfig(layers=(1, 1, 1, 1), kernel=kernel))


NETWORKS = {
    "small": SMALL_SASA,
    "wide extent": replace(SMALL_SASA, footprint=7),
    "no position": replace(SMALL_SASA, design=PLAIN),
    "absolute position": replace(SMALL_SASA, design=replace(PLAIN, position="absolute")),
    "no content": replace(SMALL_SASA, design=replace(SASA, heads=2, content=False)),
    "early convolutions": replace(SMALL_SASA, convolutions=2),
    "convolutional stem": replace(SMALL_SASA, stem="conv"),
    "attention stem": replace(SMALL_SASA, stem="attention"),
    "SASA in a SAN": SMALL_SAN,
    "offsets alone in a SAN": replace(SMALL_SAN, design=replace(SASA, heads=4, content=False)),
    "scalar attention in a SAN": replace(SMALL_SAN, design=replace(SCALAR, heads=2)),
    "7x7 ResNet": ResNetConfig(layers=(1, 1, 1, 1), width=8, stem="small", num_classes=10,
                               kernel=7),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_few_steps_of_training_lower_the_loss(name: str) -> None:
    torch.manual_seed(0)
    network = build(NETWORKS[name])
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(value.grad is not None and bool(value.grad.isfinite().all())
               for value in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_odd_and_unequal_sides_have_finite_logits_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    network = build(NETWORKS[name]).eval()
    images = torch.rand(2, 3, 35, 29).requires_grad_()
    logits = network(images)
    gradient, = torch.autograd.grad(logits.logsumexp(1).sum(), images)
    assert logits.shape == (2, 10)
    assert bool(gradient.isfinite().all()) and gradient.abs().max() > 0


@pytest.mark.parametrize("side", [224, 225])
@pytest.mark.parametrize("stem", ["conv", "attention"])
def test_both_stems_leave_a_quarter_of_the_sides(stem: Any, side: int) -> None:
    with torch.device("meta"):
        network = build(replace(SMALL_SASA, stem=stem))
        stemmed = network.maxpool(network.relu(network.bn1(network.conv1(
            torch.empty(1, 3, side, side)))))
    assert stemmed.shape == (1, 8, -(-side // 4), -(-side // 4))


def test_early_groups_keep_the_parameters_of_their_convolutions() -> None:
    hybrid = parameter_shapes(replace(SMALL_SASA, convolutions=2))
    resnet = parameter_shapes(ResNetConfig(layers=(1, 1, 1, 1), width=8, stem="small",
                                           num_classes=10))
    early = ("conv1", "bn1", "layer1", "layer2", "fc")
    assert ([item for item in hybrid.items() if item[0].startswith(early)]
            == [item for item in resnet.items() if item[0].startswith(early)])
    assert "layer3.0.conv2.0.rows" in hybrid


def test_attention_starts_from_smaller_values_than_convolutions() -> None:
    torch.manual_seed(0)
    network = build(replace(SMALL_SASA, layers=(1, 1, 1, 2)))
    attention = network.layer4[1].conv2.conv1.weight
    assert attention.abs().max() <= attention.shape[1] ** -0.5
    assert network.layer4[1].conv1.weight.abs().max() > network.layer4[1].conv1.in_channels ** -0.5


def test_the_attention_stem_starts_from_smaller_values_than_convolutions() -> None:
    torch.manual_seed(0)
    stem = build(replace(SMALL_SASA, stem="attention")).conv1
    # torch's own bound for three channels; the values of a ResNet's have deviation 0.5 here.
    assert max(value.abs().max() for value in (stem.conv1.weight, stem.conv2.weight)) <= 3 ** -0.5


def test_where_a_resnet_strides_attention_over_zeros_is_averaged() -> None:
    torch.manual_seed(0)
    network = build(replace(SMALL_SASA, footprint=3)).double().eval()
    spatial, maps = network.layer2[0].conv2, maps_of(1, 16, 3, 5)
    with torch.no_grad():
        attended, ours = loop_attention(spatial[0], maps), spatial(maps)
    assert spatial[0].window.padding_mode == "zeros"
    for y, x in product(range(2), range(3)):
        block = attended[:, :, 2 * y:2 * y + 2, 2 * x:2 * x + 2]
        # float64; blocks that the map's border cuts are averages of what is left.
        assert (ours[:, :, y, x] - block.mean((2, 3))).abs().max() < 1e-13


@pytest.mark.parametrize("side", [1, 8])
def test_maps_smaller_than_the_extent_are_legal(side: int) -> None:
    network = build(replace(SMALL_SASA, footprint=7)).eval()
    with torch.no_grad():
        assert bool(network(torch.rand(1, 3, side, side)).isfinite().all())


@pytest.mark.parametrize(("changes", "message"), [
    ({"design": SASA}, "multiple of 16"),
    ({"convolutions": 5}, "0 to 4"),
    ({"footprint": 4}, "odd"),
    ({"stem": "attention", "design": replace(PLAIN, heads=3)}, "multiple of the heads"),
])
def test_a_network_that_cannot_be_built_is_refused(changes: dict[str, Any],
                                                   message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(replace(SMALL_SASA, **changes))
