"""Folded mappings against the mappings themselves, and what is not folded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attention_cases import EXACT, LAYERS, computed, frozen, layer_of, maps_of, needs_native
from torch import Tensor, nn

from sanrobust.kernels import folding
from sanrobust.kernels import position as position_module
from sanrobust.kernels.foldcache import Unchanging
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention, position_grid
from sanrobust.kernels.plain import Window, neighbours
from sanrobust.kernels.position import PositionCode, position_table

RELATION = 3


def mapping_of(kind: type[nn.Module] = PairwiseAttention, footprint: int = 3) -> nn.Sequential:
    return frozen(layer_of(kind, footprint)).conv_w


def pairwise_logits(mapping: nn.Module, query: Tensor, key: Tensor, place: Tensor) -> Tensor:
    """What the folded form computes for relations (N, R) and (N, P) of single pairs."""
    folded = folding.fold_pairwise(mapping, RELATION, torch.float64)
    code = folded.code
    relation = query * folded.query_scale + folded.query_shift - key * folded.query_scale
    initial = (place * code.scale + code.shift).relu() @ code.weight.t() + code.bias
    return (relation.relu() @ folded.w1t + initial).relu() @ folded.w2t


def patchwise_weights(mapping: nn.Module, query: Tensor, keys: Tensor) -> Tensor:
    """What the folded form computes for queries (N, R) and keys (N, K2, R): (N, K2, M)."""
    folded = folding.fold_patchwise(mapping, RELATION, torch.float64)
    read = folded.matrices
    patch = torch.cat((query * folded.query_scale + folded.query_shift,
                       (keys * read.key_scale + read.key_shift).flatten(1)), 1)
    hidden = (patch.relu() @ read.w1t + read.b1).relu()
    return (hidden @ read.w2t + read.b2).view(*keys.shape[:2], -1)


def test_a_folded_pairwise_mapping_gives_the_same_softmax() -> None:
    mapping = mapping_of()
    query, key, place = maps_of(9, RELATION), maps_of(9, RELATION, seed=2), maps_of(9, 2, seed=3)
    relations = torch.cat((query - key, place), 1)
    expected = mapping(relations.t()[None, :, :, None])[0, :, :, 0].t()
    actual = pairwise_logits(mapping, query, key, place)
    # Over the nine "neighbours": the last bias, left out, is the same for all.
    assert (actual.softmax(0) - expected.softmax(0)).abs().max() < EXACT


def test_a_folded_patchwise_mapping_gives_the_same_weights() -> None:
    mapping = mapping_of(PatchwiseAttention)
    query, keys = maps_of(5, RELATION), maps_of(5, 9, RELATION, seed=2)
    patch = torch.cat((query, keys.transpose(1, 2).flatten(1)), 1)
    expected = mapping(patch[:, :, None, None]).view(5, -1, 9).transpose(1, 2)
    assert (patchwise_weights(mapping, query, keys) - expected).abs().max() < EXACT


def test_unscaled_normalisations_and_a_first_bias_are_folded_too() -> None:
    mapping = mapping_of()
    mapping[0] = nn.BatchNorm2d(RELATION + 2, affine=False).double().eval()
    mapping[2] = nn.Conv2d(RELATION + 2, RELATION, 1).double().requires_grad_(False)
    assert folding.refusal(mapping) is None
    query, key, place = maps_of(9, RELATION), maps_of(9, RELATION, seed=2), maps_of(9, 2, seed=3)
    relations = torch.cat((query - key, place), 1)
    expected = mapping(relations.t()[None, :, :, None])[0, :, :, 0].t()
    actual = pairwise_logits(mapping, query, key, place)
    assert (actual.softmax(0) - expected.softmax(0)).abs().max() < EXACT


@pytest.mark.parametrize("fold", [folding.fold_pairwise, folding.fold_patchwise])
def test_float32_matrices_are_the_float64_ones_rounded_once(
        fold: Callable[..., folding.FoldedPairwise | folding.FoldedPatchwise]) -> None:
    mapping = mapping_of(PairwiseAttention if fold is folding.fold_pairwise
                         else PatchwiseAttention)
    exact, rounded = (fold(mapping, RELATION, dtype) for dtype in (torch.float64, torch.float32))
    if isinstance(exact, folding.FoldedPatchwise):
        exact, rounded = exact.matrices, rounded.matrices
    assert torch.equal(exact.w1.float(), rounded.w1)
    assert torch.equal(exact.w2.float(), rounded.w2)
    assert torch.equal(rounded.w1t, rounded.w1.t())


def table_of(position: Tensor, window: Window) -> tuple[Tensor, PositionCode]:
    code = folding.fold_pairwise(mapping_of(), RELATION, torch.float64).code
    return position_table(position, code, window, torch.float64), code


def expected_entries(position: Tensor, code: PositionCode, window: Window) -> Tensor:
    """The hidden layer's initial values (H * W, K2, D), neighbour by neighbour."""
    difference = position[0].flatten(1).unsqueeze(1) - neighbours(position, window)[0]
    relation = difference.permute(2, 1, 0) * code.scale + code.shift
    return relation.relu() @ code.weight.t() + code.bias


def displaced(height: int, width: int, window: Window) -> Tensor:
    """The table's entry (H * W, K2) for each neighbour: by where it really lies."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack((rows, columns, torch.ones_like(rows))).double()[None]
    around = neighbours(places, window)[0]
    step = (around[:2] - places[0, :2].flatten(1).unsqueeze(1)).long() + window.footprint // 2
    inside = step[0] * window.footprint + step[1]
    return torch.where(around[2] > 0, inside, window.neighbours).t()


@pytest.mark.parametrize("footprint", [3, 5])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
def test_the_table_holds_what_each_position_adds(padding_mode: str, affine: bool,
                                                 footprint: int) -> None:
    window = Window(footprint, padding_mode=padding_mode)
    height, width = 5, 4
    position = maps_of(1, 2, height, width)
    if affine:
        position = frozen(layer_of(PairwiseAttention, 3)).conv_p(
            position_grid(height, width, dtype=torch.float64))
    table, code = table_of(position, window)
    one_for_all = affine and padding_mode == "reflect"
    assert table.shape == (1 if one_for_all else height * width, footprint ** 2 + 1, RELATION)
    pixels = torch.arange(height * width)[:, None]
    read = table.expand(height * width, -1, -1)[pixels, displaced(height, width, window)]
    assert (read - expected_entries(position, code, window)).abs().max() < EXACT


def test_a_float32_position_counts_as_affine_and_a_bent_one_does_not() -> None:
    window = Window(3)
    position = frozen(layer_of(PairwiseAttention, 3)).float().conv_p(position_grid(28, 28))
    assert len(table_of(position, window)[0]) == 1
    position[0, 0, 5, 5] += 1e-4
    assert len(table_of(position, window)[0]) == 28 * 28


def test_a_position_that_is_no_number_stays_none() -> None:
    position = position_grid(4, 4)
    position[0, 0, 1, 1] = torch.nan
    assert table_of(position, Window(3))[0].isnan().any()


def train(mapping: nn.Sequential) -> None:
    mapping.train()


def forget_statistics(mapping: nn.Sequential) -> None:
    mapping[3].running_mean = mapping[3].running_var = None


def learn(mapping: nn.Sequential) -> None:
    mapping[2].weight.requires_grad_()


def watch(mapping: nn.Sequential) -> None:
    mapping[1].register_forward_hook(lambda *_: None)


def exchange(mapping: nn.Sequential) -> None:
    mapping[4] = nn.GELU()


def specialise(mapping: nn.Sequential) -> None:
    class Special(nn.ReLU):
        pass
    mapping[4] = Special()


def widen(mapping: nn.Sequential) -> None:
    mapping[5] = nn.Conv2d(RELATION, 2, 3, padding=1)


@pytest.mark.parametrize(("change", "reason"), [
    (train, "statistics of the batch"),
    (forget_statistics, "statistics of the batch"),
    (learn, "weights require gradients"),
    (watch, "the mapping has hooks"),
    (exchange, "the mapping is not"),
    (specialise, "the mapping is not"),
    (widen, "the mapping is not"),
])
def test_a_mapping_that_cannot_be_folded_says_why(change: Callable[[nn.Sequential], None],
                                                  reason: str) -> None:
    mapping = mapping_of()
    assert folding.refusal(mapping) is None
    change(mapping)
    assert reason in str(folding.refusal(mapping))


def test_weights_that_could_be_learned_are_folded_where_no_gradient_is_taken() -> None:
    mapping = mapping_of()
    learn(mapping)
    with torch.no_grad():
        assert folding.refusal(mapping) is None


def test_any_other_network_is_not_folded() -> None:
    assert "the mapping is not" in str(folding.refusal(nn.Identity()))
    assert "the mapping is not" in str(folding.refusal(mapping_of()[:3]))


def test_maps_of_other_channels_or_dtypes_do_not_fit() -> None:
    mapping, maps = mapping_of(), maps_of(1, RELATION, 4, 4)
    assert folding.refusal(mapping, maps, RELATION + 2) is None
    assert "do not fit together" in str(folding.refusal(mapping, maps, RELATION + 3))
    assert "another dtype" in str(folding.refusal(mapping, maps.float(), RELATION + 2))


def test_autocast_maps_of_half_precision_fit_a_mapping_of_full_precision() -> None:
    mapping, maps = mapping_of().float(), maps_of(1, RELATION, 4, 4).bfloat16()
    assert "another dtype" in str(folding.refusal(mapping, maps))
    with torch.autocast("cpu", torch.bfloat16):
        assert folding.refusal(mapping, maps) is None


def write_in_place(mapping: nn.Sequential) -> None:
    with torch.no_grad():
        mapping[2].weight.mul_(2)


def write_data(mapping: nn.Sequential) -> None:
    mapping[5].weight.data.mul_(2)


def replace(mapping: nn.Sequential) -> None:
    mapping[5].weight = nn.Parameter(mapping[5].weight * 2, requires_grad=False)


def move_statistics(mapping: nn.Sequential) -> None:
    mapping[3].running_var.fill_(3.0)


def change_eps(mapping: nn.Sequential) -> None:
    mapping[0].eps = 0.1


@pytest.mark.parametrize("change",
                         [write_in_place, write_data, replace, move_statistics, change_eps])
def test_a_changed_mapping_is_folded_anew(change: Callable[[nn.Sequential], None]) -> None:
    mapping = mapping_of()
    query, key, place = maps_of(9, RELATION), maps_of(9, RELATION, seed=2), maps_of(9, 2, seed=3)
    before = pairwise_logits(mapping, query, key, place)
    change(mapping)
    expected = mapping(torch.cat((query - key, place), 1).t()[None, :, :, None])[0, :, :, 0].t()
    after = pairwise_logits(mapping, query, key, place)
    assert (after.softmax(0) - expected.softmax(0)).abs().max() < EXACT
    assert (after.softmax(0) - before.softmax(0)).abs().max() > 1e-4


def test_an_unchanged_mapping_is_folded_once() -> None:
    mapping = mapping_of()
    first = folding.fold_pairwise(mapping, RELATION, torch.float32)
    assert folding.fold_pairwise(mapping, RELATION, torch.float32) is first
    assert folding.fold_pairwise(mapping, RELATION, torch.float64) is not first


@pytest.mark.parametrize("kind", LAYERS)
def test_what_was_folded_in_inference_mode_serves_a_backward_pass(kind: type[nn.Module]) -> None:
    layer = frozen(layer_of(kind, 3))
    with torch.inference_mode():
        layer(maps_of(1, 6, 4, 4))
    features = maps_of(1, 6, 4, 4).requires_grad_()
    grad, = torch.autograd.grad(layer(features).sum(), features)
    assert grad.abs().max() > 0


@needs_native
@pytest.mark.parametrize("kind", LAYERS)
def test_where_nobody_changes_mappings_each_is_folded_once(kind: type[nn.Module]) -> None:
    layer, features = frozen(layer_of(kind, 3)), maps_of(2, 6, 5, 4)
    before = computed(layer, features, "native")
    mappings = Unchanging()
    with mappings.assumed():
        first = computed(layer, features, "native")
    layer.conv_w[2].weight.data.mul_(2)
    with mappings.assumed():
        later = computed(layer, features, "native")
    for one, two, three in zip(before, first, later):
        assert torch.equal(one, two) and torch.equal(one, three)
    assert not torch.equal(computed(layer, features, "native")[0], before[0])


@needs_native
def test_where_nobody_changes_mappings_a_table_is_made_once_for_a_size(
        monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    compute = position_module._computed
    monkeypatch.setattr(position_module, "_computed", lambda position, *rest: (
        made.append(tuple(position.shape[2:])), compute(position, *rest))[1])
    layer, mappings = frozen(layer_of(PairwiseAttention, 3)), Unchanging()
    for _ in range(2):
        with mappings.assumed():
            attended = layer(features := maps_of(1, 6, 5, 4).requires_grad_())
            layer(maps_of(1, 6, 4, 7))
        torch.autograd.grad(attended.sum(), features)
    assert made == [(5, 4), (4, 7)]
    layer(maps_of(1, 6, 5, 4))
    assert len(made) == 3
