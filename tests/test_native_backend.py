"""The native backend through the public functions: exact, the same in training, and its limits."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import pytest
import torch
from attention_cases import (EXACT, LAYERS, computed, frozen, kink_free, layer_of, maps_of,
                             needs_native)
from oracles import loop_aggregation, loop_neighbours, loop_pairwise, loop_patchwise
from torch import Tensor, nn

from sanrobust.errors import BackendError, UsageError
from sanrobust.kernels import backends, functional, kernelset
from sanrobust.kernels.calls import Call
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention, position_grid
from sanrobust.kernels.native import backend as native_backend
from sanrobust.kernels.native import fused
from sanrobust.kernels.native.backend import NativeBackend
from sanrobust.kernels.plain import Window

pytestmark = needs_native
LOOPS = {PairwiseAttention: loop_pairwise, PatchwiseAttention: loop_patchwise}
# Odd sides, H != W either way, the smallest legal map of each footprint.
SHAPES = [(3, 2, 2), (3, 5, 3), (5, 3, 3), (5, 3, 7), (7, 4, 4), (7, 5, 9), (7, 9, 4)]
# (relation, groups, channels, footprint) of the kernels made for the shapes of SAN, and not.
WIDTHS = [(4, 2, 16, 3), (16, 8, 64, 7), (16, 8, 64, 3), (32, 16, 128, 5), (64, 32, 256, 7),
          (5, 3, 6, 3), (16, 4, 64, 7)]


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("footprint", "height", "width"), SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_attention_equals_explicit_loops(kind: type[nn.Module], footprint: int, height: int,
                                         width: int, padding_mode: str) -> None:
    layer = frozen(layer_of(kind, footprint, padding_mode=padding_mode))
    features = maps_of(2, 6, height, width)
    expected = LOOPS[kind](layer, features)
    with backends.use_backend("native"):
        assert (layer(features) - expected).abs().max() < EXACT


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_elementary_operators_equal_explicit_loops(stride: int, dilation: int,
                                                   padding_mode: str) -> None:
    settings = dict(footprint=3, stride=stride, dilation=dilation, padding_mode=padding_mode)
    value = maps_of(2, 6, 7, 5)
    around = loop_neighbours(value, **settings)
    weight = maps_of(2, 3, 9, around.shape[-1], seed=2)
    summed = functional.aggregation(value, weight, **settings, backend="native")
    assert (summed - loop_aggregation(value, weight, **settings)).abs().max() < EXACT
    relation = functional.subtraction(value + 1, value, **settings, backend="native")
    centres = (value + 1)[:, :, ::stride, ::stride].flatten(2).unsqueeze(2)
    assert (relation - (centres - around)).abs().max() < EXACT


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("footprint", "height", "width"), SHAPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_equal_those_of_the_reference(kind: type[nn.Module], footprint: int, height: int,
                                                width: int, padding_mode: str) -> None:
    layer = frozen(layer_of(kind, footprint, padding_mode=padding_mode))
    features = maps_of(2, 6, height, width)
    for ours, expected in zip(computed(layer, features, "native"),
                              computed(layer, features, "reference")):
        assert (ours - expected).abs().max() < EXACT


def relative(error: Tensor, truth: Tensor) -> float:
    return (error.norm() / truth.norm()).item()


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("relation", "groups", "channels", "footprint"), WIDTHS)
@pytest.mark.parametrize("kind", LAYERS)
def test_float32_errs_at_most_twice_as_much_as_the_reference(
        kind: type[nn.Module], relation: int, groups: int, channels: int, footprint: int,
        padding_mode: str) -> None:
    def case(seed: int) -> tuple[nn.Module, Tensor]:
        layer = layer_of(kind, footprint, padding_mode=padding_mode, relation=relation,
                         groups=groups, channels=channels, seed=seed)
        return frozen(layer), maps_of(2, 6, 5, 4, seed=seed)

    layer, features = kink_free(case)
    truth = computed(layer, features, "reference")
    rough = copy.deepcopy(layer).float()
    for exact, ours, plain in zip(truth, computed(rough, features.float(), "native"),
                                  computed(rough, features.float(), "reference")):
        # The floor: one rounding of each number, which no order of summation avoids.
        allowed = 2 * relative(plain - exact, exact) + torch.finfo(torch.float32).eps
        assert relative(ours - exact, exact) <= allowed


@dataclass(frozen=True)
class Drawn:
    """One case of the random sweep."""

    kind: type[nn.Module]
    footprint: int
    padding_mode: str
    relation: int
    groups: int
    share: int
    size: tuple[int, int, int]
    seed: int


def drawn(seed: int) -> Drawn:
    choose = random.Random(seed)
    footprint = choose.choice([1, 3, 5, 7, 9])
    padding_mode = choose.choice(["reflect", "zeros"])
    least = footprint // 2 + 1 if padding_mode == "reflect" else 1
    height, width = (max(2, least + choose.randrange(6)) for _ in range(2))
    return Drawn(choose.choice(LAYERS), footprint, padding_mode, choose.randint(1, 9),
                 choose.randint(1, 4), choose.randint(1, 4),
                 (choose.randint(1, 3), height, width), seed)


@pytest.mark.parametrize("seed", range(24))
def test_random_shapes_equal_the_reference(seed: int) -> None:
    case = drawn(seed)
    images, height, width = case.size
    layer = frozen(layer_of(case.kind, case.footprint, padding_mode=case.padding_mode,
                            relation=case.relation, groups=case.groups,
                            channels=case.groups * case.share, seed=seed))
    features = maps_of(images, 6, height, width, seed=seed)
    for ours, expected in zip(computed(layer, features, "native"),
                              computed(layer, features, "reference")):
        assert (ours - expected).abs().max() < EXACT, case


@pytest.mark.parametrize("kind", LAYERS)
def test_strides_of_the_maps_change_nothing(kind: type[nn.Module]) -> None:
    layer, features = frozen(layer_of(kind, 3)), maps_of(2, 6, 5, 7)
    expected = computed(layer, features, "native")
    turned = features.transpose(2, 3).contiguous().transpose(2, 3)
    for strided in (features.contiguous(memory_format=torch.channels_last), turned):
        assert not strided.is_contiguous()
        for one, other in zip(computed(layer, strided, "native"), expected):
            # The projections before the operator may sum in another order for another layout.
            assert (one - other).abs().max() < EXACT


def test_elementary_operators_take_maps_of_any_strides() -> None:
    value, weight = maps_of(2, 4, 5, 6), maps_of(2, 2, 9, 30, seed=2)
    expected = functional.aggregation(value, weight, footprint=3, backend="native")
    strided = value.contiguous(memory_format=torch.channels_last)
    turned = weight.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(functional.aggregation(strided, turned, footprint=3, backend="native"),
                       expected)
    assert torch.equal(functional.subtraction(strided, value, footprint=3, backend="native"),
                       functional.subtraction(value, strided, footprint=3, backend="native"))


def trained(layer: nn.Module, features: Tensor, backend: str) -> dict[str, Tensor]:
    """Everything a step of training yields: outputs, gradients, running statistics."""
    layer = copy.deepcopy(layer)
    features = features.clone().requires_grad_()
    with backends.use_backend(backend):
        attended = layer(features)
    names, weights = zip(*layer.named_parameters())
    grads = torch.autograd.grad(attended, (features, *weights), maps_of(*attended.shape, seed=3))
    buffers = {name: each.double() for name, each in layer.named_buffers()}
    return {"output": attended.detach(), **dict(zip(("features", *names), grads)), **buffers}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize("kind", LAYERS)
def test_training_yields_what_the_reference_yields(kind: type[nn.Module], padding_mode: str,
                                                   training: bool) -> None:
    layer = layer_of(kind, 5, padding_mode=padding_mode).train(training)
    features = maps_of(3, 6, 5, 4)
    ours, expected = (trained(layer, features, name) for name in ("native", "reference"))
    assert ours.keys() == expected.keys()
    for name in ours:
        assert (ours[name] - expected[name]).abs().max() < EXACT, name


@pytest.mark.parametrize("kind", LAYERS)
def test_frozen_attention_is_fused_and_learning_attention_is_composed(
        kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, features = layer_of(kind, 3).eval(), maps_of(1, 6, 4, 4)
    called: list[str] = []
    kernels = kernelset.kernels("native")

    def watch(name: str) -> None:
        whole = getattr(kernels, name)

        def watched(*args: object) -> object:
            called.append(name)
            return whole(*args)
        monkeypatch.setattr(kernels, name, watched)

    for name in ("pairwise", "patchwise", "aggregation"):
        watch(name)
    with backends.use_backend("native"):
        layer(features)
        assert called == ["aggregation"]
        frozen(layer)(features)
    assert called[1:] == ["pairwise" if kind is PairwiseAttention else "patchwise"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_empty_batch_gives_empty_outputs_and_gradients(kind: type[nn.Module],
                                                          training: bool) -> None:
    layer = layer_of(kind, 3).eval().requires_grad_(training)
    attended, grad = computed(layer, maps_of(0, 6, 4, 5), "native")
    assert attended.shape == (0, 8, 4, 5) and grad.shape == (0, 6, 4, 5)


def maps_for(kind: type[nn.Module], images: int) -> tuple[nn.Module, list[Tensor]]:
    """A frozen float32 mapping of tuned width, its position if any, and maps for it."""
    layer = frozen(layer_of(kind, 7, relation=16, groups=8, channels=64)).float()
    maps = [maps_of(images, channels, 6, 5, seed=channels + n).float()
            for n, channels in enumerate((16, 16, 64))]
    return layer, maps


def attended(layer: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    """Output and gradients of the operator alone."""
    maps = [each.clone().requires_grad_() for each in maps]
    settings = dict(footprint=7, backend="native")
    if isinstance(layer, PairwiseAttention):
        position = layer.conv_p(position_grid(*maps[0].shape[-2:]))
        out = functional.pairwise_attention(*maps, position, layer.conv_w, **settings)
    else:
        out = functional.patchwise_attention(*maps, layer.conv_w, **settings)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), maps)]


@pytest.mark.parametrize("kind", LAYERS)
def test_cutting_the_backward_pass_changes_no_bit(kind: type[nn.Module],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    layer, maps = maps_for(kind, 3)
    whole = attended(layer, maps)
    monkeypatch.setattr(fused, "KEPT_BYTES", 1)
    assert all(map(torch.equal, attended(layer, maps), whole))


@pytest.mark.parametrize("kind", LAYERS)
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(kind: type[nn.Module]) -> None:
    layer, maps = maps_for(kind, 3)
    whole = attended(layer, maps)
    alone = attended(layer, [each[1:2] for each in maps])
    assert all(torch.equal(one, other[1:2]) for one, other in zip(alone, whole))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_value_that_is_no_number_reaches_its_neighbourhood_and_no_more(
        kind: type[nn.Module]) -> None:
    layer, features = frozen(layer_of(kind, 3)), maps_of(2, 6, 5, 6)
    features[1, 2, 2, 2] = torch.nan
    with backends.use_backend("native"):
        broken = layer(features).isnan().any(1)
    expected = torch.zeros(2, 5, 6, dtype=torch.bool)
    expected[1, 1:4, 1:4] = True
    assert torch.equal(broken, expected)


def call_of(maps: Tensor, *, stride: int = 1, mapping: nn.Module | None = None) -> Call:
    name = "patchwise_attention" if mapping is not None else "aggregation"
    return Call(name, (maps, maps, maps), Window(3, stride), mapping)


def test_the_backend_refuses_what_it_cannot_compute_and_says_why() -> None:
    native, maps = NativeBackend(), maps_of(1, 2, 4, 4)
    assert native.refusal(call_of(maps)) is None
    assert native.refusal(call_of(maps.half())) == "the maps are of torch.float16"
    assert native.refusal(call_of(maps.to("meta"))) == "the maps are on meta"
    assert "neither stride" in str(native.refusal(call_of(maps, stride=2, mapping=nn.Identity())))
    other = Call("patchwise_attention", (maps, maps[:, :1], maps), Window(3), nn.Identity())
    assert "different numbers of channels" in str(native.refusal(other))


def test_without_a_library_the_reason_is_that_of_the_library(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_backend.library, "refusal", lambda: "it was not built: why")
    assert NativeBackend().refusal(call_of(maps_of(1, 2, 4, 4))) == "it was not built: why"
    with pytest.raises(BackendError, match="it was not built: why"):
        functional.neighbours(maps_of(1, 2, 4, 4), footprint=3, backend="native")
    assert functional.neighbours(maps_of(1, 2, 4, 4), footprint=3).shape == (1, 2, 9, 16)


def test_half_precision_is_computed_by_the_reference() -> None:
    maps = maps_of(1, 2, 4, 4).bfloat16()
    assert functional.subtraction(maps, maps, footprint=3).dtype == torch.bfloat16
    with pytest.raises(BackendError, match="of torch.bfloat16: use auto or reference"):
        functional.subtraction(maps, maps, footprint=3, backend="native")


def test_neighbours_are_gathered() -> None:
    maps = maps_of(1, 2, 4, 5)
    gathered = functional.neighbours(maps, footprint=3, backend="native")
    assert torch.equal(gathered, loop_neighbours(maps, footprint=3))


def test_an_operator_called_directly_does_not_read_past_its_arguments() -> None:
    ops, maps = torch.ops.sanrobust, maps_of(1, 2, 4, 4)
    settings = (3, 1, 1, "reflect", "native")
    with pytest.raises(UsageError, match="shapes that fit together"):
        ops.aggregation(maps, maps_of(1, 2, 9, 15), *settings)
    with pytest.raises(UsageError, match="shapes that fit together"):
        ops.subtraction(maps, maps[:, :1], *settings)
    with pytest.raises(UsageError, match="all be float32 or all float64"):
        ops.subtraction(maps, maps.float(), *settings)
    with pytest.raises(UsageError, match="reflection needs maps of more than 3"):
        ops.subtraction(maps[:, :, :3], maps[:, :, :3], 7, *settings[1:])
    matrices = [maps_of(3, 3) for _ in range(8)]
    with pytest.raises(UsageError, match="shapes that fit together"):
        ops.patchwise_attention(maps, maps, maps, matrices, 3, "reflect", "native")
