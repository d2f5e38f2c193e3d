"""The reference operators against explicit loops, the unfold formulation and finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from attention_cases import EXACT, LAYERS, layer_of, maps_of
from oracles import (loop_aggregation, loop_neighbours, loop_pairwise, loop_patchwise,
                     unfold_attention)
from torch import Tensor, nn

from sanrobust.errors import UsageError
from sanrobust.kernels import backends, functional, reference
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention, position_grid

LOOPS = {PairwiseAttention: loop_pairwise, PatchwiseAttention: loop_patchwise}
# Odd sides, H != W either way, the smallest legal map of each footprint, two groups of weights.
SHAPES = [(3, 2, 2), (3, 5, 3), (5, 3, 3), (5, 3, 7), (5, 5, 4), (7, 4, 4), (7, 5, 9), (7, 9, 4)]


@pytest.fixture(autouse=True)
def _on_the_reference() -> Iterator[None]:
    with backends.use_backend("reference"):
        yield


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("footprint", "height", "width"), SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_attention_equals_explicit_loops(kind: type[nn.Module], footprint: int, height: int,
                                         width: int, padding_mode: str) -> None:
    layer = layer_of(kind, footprint, padding_mode=padding_mode).eval()
    features = maps_of(2, 6, height, width)
    with torch.no_grad():
        expected = LOOPS[kind](layer, features)
        assert (layer(features) - expected).abs().max() < EXACT


@pytest.mark.parametrize("kind", LAYERS)
def test_attention_in_train_mode_normalises_over_the_whole_batch(kind: type[nn.Module]) -> None:
    layer = layer_of(kind, 5).train()
    features = maps_of(3, 6, 5, 7)
    with torch.no_grad():
        expected = LOOPS[kind](layer, features)
        assert (layer(features) - expected).abs().max() < EXACT


@pytest.mark.parametrize("kind", LAYERS)
def test_train_mode_updates_the_running_statistics_once(kind: type[nn.Module]) -> None:
    layer = layer_of(kind, 3).train()
    layer(maps_of(3, 6, 5, 5))
    counts = [module.num_batches_tracked.item() for module in layer.modules()
              if isinstance(module, nn.BatchNorm2d)]
    assert counts == [1, 1]


@pytest.mark.parametrize("kind", LAYERS)
def test_non_contiguous_features_give_the_same_attention(kind: type[nn.Module]) -> None:
    layer = layer_of(kind, 3).eval()
    features = maps_of(2, 6, 5, 7)
    strided = features.contiguous(memory_format=torch.channels_last)
    assert (layer(strided) - layer(features)).abs().max() < EXACT


@pytest.mark.parametrize("kind", LAYERS)
def test_an_empty_batch_gives_an_empty_output(kind: type[nn.Module]) -> None:
    assert layer_of(kind, 3).eval()(maps_of(0, 6, 4, 5)).shape == (0, 8, 4, 5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("footprint", "height", "width"), [(3, 2, 2), (5, 7, 4), (7, 4, 9)])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_equal_those_of_the_unfold_formulation(
        kind: type[nn.Module], footprint: int, height: int, width: int, training: bool) -> None:
    layer = layer_of(kind, footprint).train(training)
    features = maps_of(3, 6, height, width).requires_grad_()
    upstream = maps_of(3, 8, height, width, seed=2)
    inputs = (features, *layer.parameters())
    ours = torch.autograd.grad(layer(features), inputs, upstream)
    expected = torch.autograd.grad(unfold_attention(layer, features), inputs, upstream)
    for one, other in zip(ours, expected):
        assert (one - other).abs().max() < EXACT


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_aggregation_equals_explicit_loops(stride: int, dilation: int, padding_mode: str) -> None:
    settings = dict(footprint=3, stride=stride, dilation=dilation, padding_mode=padding_mode)
    value = maps_of(2, 6, 7, 5)
    positions = len(range(0, 7, stride)) * len(range(0, 5, stride))
    weight = maps_of(2, 3, 9, positions, seed=2)
    expected = loop_aggregation(value, weight, **settings)
    actual = functional.aggregation(value, weight, **settings)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < EXACT


def test_channels_share_weights_interleaved() -> None:
    value = torch.ones(1, 4, 3, 3)
    weight = torch.zeros(1, 2, 9, 9)
    weight[:, 1] = 1
    summed = functional.aggregation(value, weight, footprint=3)
    assert summed[0, :, 1, 1].tolist() == [0, 9, 0, 9]


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("footprint", "stride", "dilation"), [(1, 1, 1), (3, 2, 1), (3, 1, 2),
                                                               (5, 1, 1), (7, 2, 1)])
def test_neighbours_and_subtraction_equal_explicit_loops(
        footprint: int, stride: int, dilation: int, padding_mode: str) -> None:
    settings = dict(footprint=footprint, stride=stride, dilation=dilation,
                    padding_mode=padding_mode)
    query, key = maps_of(2, 2, 5, 7), maps_of(2, 2, 5, 7, seed=2)
    around = loop_neighbours(key, **settings)
    centres = query[:, :, ::stride, ::stride].flatten(2).unsqueeze(2)
    assert torch.equal(functional.neighbours(key, **settings), around)
    assert torch.equal(functional.subtraction(query, key, **settings), centres - around)


def test_neighbours_come_in_the_order_of_unfold() -> None:
    maps = maps_of(2, 3, 5, 4)
    padded = nn.functional.pad(maps, (2, 2, 2, 2), mode="reflect")
    expected = nn.functional.unfold(padded, 5).view(2, 3, 25, 20)
    assert torch.equal(functional.neighbours(maps, footprint=5), expected)


@pytest.mark.parametrize("settings", [dict(footprint=3), dict(footprint=3, stride=2),
                                      dict(footprint=3, dilation=2),
                                      dict(footprint=3, padding_mode="zeros")])
def test_operators_pass_gradcheck(settings: dict[str, object]) -> None:
    positions = 9 if settings.get("stride", 1) == 1 else 4
    value = maps_of(1, 2, 3, 3).requires_grad_()
    weight = maps_of(1, 1, 9, positions, seed=2).requires_grad_()

    def aggregate(value: Tensor, weight: Tensor) -> Tensor:
        return functional.aggregation(value, weight, **settings)

    def subtract(query: Tensor, key: Tensor) -> Tensor:
        return functional.subtraction(query, key, **settings)

    assert torch.autograd.gradcheck(aggregate, (value, weight))
    assert torch.autograd.gradgradcheck(aggregate, (value, weight))
    assert torch.autograd.gradcheck(subtract, (value, maps_of(1, 2, 3, 3).requires_grad_()))


@pytest.mark.parametrize("kind", LAYERS)
def test_attention_passes_gradcheck(kind: type[nn.Module]) -> None:
    layer = layer_of(kind, 3, groups=1).eval()
    features = maps_of(1, 6, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, (features,))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("tracked", [False, True])
def test_slicing_the_batch_changes_nothing_beyond_rounding(
        kind: type[nn.Module], tracked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(kind, 5).eval()
    features = maps_of(5, 6, 6, 5).requires_grad_(tracked)
    whole = layer(features)
    mapped: list[int] = []
    layer.conv_w.register_forward_hook(lambda _, inputs, __: mapped.append(len(inputs[0])))
    monkeypatch.setattr(reference, "SLICE_VALUES", {"cpu": 9000})
    sliced = layer(features)
    assert len(mapped) > 1 and sum(mapped) == 5
    assert (sliced - whole).abs().max() < EXACT
    if tracked:
        for one, other in zip(torch.autograd.grad(sliced.sum(), features),
                              torch.autograd.grad(whole.sum(), features)):
            assert (one - other).abs().max() < EXACT


@pytest.mark.parametrize("kind", LAYERS)
def test_batch_statistics_are_never_sliced(kind: type[nn.Module],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(kind, 5).eval()
    layer.conv_w[0].train()
    features = maps_of(5, 6, 6, 5)
    whole = layer(features)
    monkeypatch.setattr(reference, "SLICE_VALUES", {"cpu": 1})
    assert torch.equal(layer(features), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_sums_round_once(dtype: torch.dtype) -> None:
    value, weight = maps_of(2, 8, 9, 9).to(dtype), maps_of(2, 2, 49, 81, seed=2).to(dtype)
    exact = functional.aggregation(value.double(), weight.double(), footprint=7)
    actual = functional.aggregation(value, weight, footprint=7)
    # Accumulated in float32, the only error of size is the rounding of the result.
    assert actual.dtype == dtype
    assert (actual.double() - exact).abs().max() <= exact.abs().max() * torch.finfo(dtype).eps


def test_position_grid_is_x_then_y_from_minus_one_to_one() -> None:
    grid = position_grid(2, 3)
    assert grid[0, 0].tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert grid[0, 1].tolist() == [[-1, -1, -1], [1, 1, 1]]


def refused(call: object, *parts: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()  # type: ignore[operator]
    for part in parts:
        assert part in str(caught.value)


def test_an_even_footprint_is_refused() -> None:
    maps = maps_of(1, 2, 8, 8)
    refused(lambda: functional.neighbours(maps, footprint=4), "must be odd", "it is 4")
    refused(lambda: PairwiseAttention(8, relation_channels=1, value_channels=2, weight_groups=1,
                                      footprint=2), "must be odd", "it is 2")


def test_a_map_smaller_than_its_reflection_is_refused() -> None:
    maps = maps_of(1, 2, 3, 8)
    refused(lambda: functional.neighbours(maps, footprint=7),
            "needs maps of at least 4x4", "maps is 3x8", "use larger images")
    assert functional.neighbours(maps, footprint=7, padding_mode="zeros").shape == (1, 2, 49, 24)


def test_channels_that_do_not_divide_into_groups_are_refused() -> None:
    refused(lambda: functional.aggregation(maps_of(1, 30, 4, 4), maps_of(1, 8, 9, 16),
                                           footprint=3),
            "channels of value (30) must be a multiple of the weight groups", "there are 8")
    refused(lambda: PatchwiseAttention(8, relation_channels=1, value_channels=6, weight_groups=4,
                                       footprint=3), "value channels (6)", "there are 4")


def test_weights_of_another_shape_are_refused() -> None:
    refused(lambda: functional.aggregation(maps_of(1, 4, 4, 4), maps_of(1, 2, 9, 15),
                                           footprint=3), "weight must have shape (1, 2, 9, 16)")
    refused(lambda: functional.aggregation(maps_of(1, 4, 4, 4), maps_of(2, 9, 16), footprint=3),
            "weight must have four dimensions")


def test_tensors_of_two_dtypes_are_refused() -> None:
    refused(lambda: functional.subtraction(maps_of(1, 2, 4, 4), maps_of(1, 2, 4, 4).float(),
                                           footprint=3), "same dtype", "torch.float32")


def test_tensors_on_two_devices_are_refused() -> None:
    elsewhere = torch.empty(1, 2, 4, 4, dtype=torch.float64, device="meta")
    refused(lambda: functional.subtraction(maps_of(1, 2, 4, 4), elsewhere, footprint=3),
            "same device", "meta")


def test_integers_and_other_ranks_are_refused() -> None:
    refused(lambda: functional.neighbours(torch.ones(1, 2, 4, 4, dtype=torch.int64), footprint=3),
            "maps must be a floating tensor", "torch.int64")
    refused(lambda: functional.neighbours(maps_of(2, 4, 4), footprint=3),
            "maps must have four dimensions")


def test_unknown_padding_strides_and_dilations_are_refused() -> None:
    maps = maps_of(1, 2, 8, 8)
    refused(lambda: functional.neighbours(maps, footprint=3, padding_mode="mirror"),
            "must be reflect or zeros", "'mirror'")
    refused(lambda: functional.neighbours(maps, footprint=3, stride=0), "the stride must be")
    refused(lambda: functional.neighbours(maps, footprint=3, dilation=0), "the dilation must be")


def test_attention_maps_of_unequal_shapes_are_refused() -> None:
    query, mapping = maps_of(1, 2, 4, 4), nn.Identity()
    refused(lambda: functional.patchwise_attention(query, maps_of(1, 3, 4, 4), query, mapping,
                                                   footprint=3), "key must have shape")
    refused(lambda: functional.patchwise_attention(query, query, maps_of(1, 2, 4, 5), mapping,
                                                   footprint=3), "value must have shape")
    refused(lambda: functional.pairwise_attention(query, query, query, maps_of(2, 2, 4, 4),
                                                  mapping, footprint=3),
            "position must have shape (1, 2, 4, 4)")
