"""Each design of vector attention against per-pixel loops in float64, on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import cycle, product
from typing import get_args

import pytest
import torch
from attention_cases import BACKENDS, EXACT, computed, frozen, layer_of, maps_of
from design_oracles import PAIRS, PATCHES, loop_attention, loop_weights
from torch import Tensor, nn

from sanrobust.design import PAIRWISE, PATCHWISE, SCALAR, AttentionConfig, Mapping, Position
from sanrobust.errors import UnknownNameError, UsageError
from sanrobust.kernels import backends, reference, relations
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.relations import Relation
from sanrobust.registry import Registry
from sanrobust.zoo.build import build
from sanrobust.zoo.forms import small_config

KINDS = {"pairwise": PairwiseAttention, "patchwise": PatchwiseAttention}
MAPPINGS, POSITIONS = get_args(Mapping), get_args(Position)
# The smallest legal map of each footprint, and odd maps with H != W either way.
SHAPES = [(3, 2, 2), (3, 3, 5), (5, 3, 3), (5, 5, 3), (3, 5, 2), (7, 4, 5)]
SMALL = [(3, 2, 2), (3, 2, 5), (3, 4, 3)]


def variants(base: AttentionConfig, names: tuple[str, ...], *,
             positions: tuple[Position, ...]) -> Iterator[AttentionConfig]:
    """Each relation with each mapping, each transforms and each position, and some of all."""
    for relation in names:
        design = replace(base, relation=relation)
        yield from (replace(design, mapping=each) for each in MAPPINGS)
        yield from (replace(design, transforms=each) for each in (1, 2))
        yield from (replace(design, position=each) for each in positions)
    every = list(product(names, MAPPINGS, (1, 2, 3), positions))
    for relation, mapping, transforms, position in every[::7]:
        yield replace(base, relation=relation, mapping=mapping, transforms=transforms,
                      position=position)


DESIGNS = list(dict.fromkeys([
    *variants(PAIRWISE, relations.names("pairwise"), positions=POSITIONS),
    *variants(PATCHWISE, relations.names("patchwise"), positions=("none",))]))
CASES = [(design, *shape) for family, shapes in (("pairwise", SHAPES), ("patchwise", SMALL))
         for design, shape in zip((each for each in DESIGNS if each.attention == family),
                                  cycle(shapes))]


def named(value: object) -> str | None:
    if not isinstance(value, AttentionConfig):
        return None
    return (f"{value.attention}-{value.relation}-{value.mapping}-{value.transforms}-"
            f"{value.position}")


def layer_for(design: AttentionConfig, footprint: int, padding: str = "reflect") -> nn.Module:
    return frozen(layer_of(KINDS[design.attention], footprint, design=design,
                           padding_mode=padding))


@lru_cache(maxsize=None)
def truth(design: AttentionConfig, footprint: int, height: int, width: int,
          padding: str) -> tuple[Tensor, ...]:
    """Output, gradient of the input and weights by loops."""
    layer = layer_for(design, footprint, padding)
    features = maps_of(2, 6, height, width).requires_grad_()
    attended = loop_attention(layer, features)
    grad, = torch.autograd.grad(attended, features, maps_of(*attended.shape, seed=3))
    with torch.no_grad():
        return attended.detach(), grad, loop_weights(layer, features)


@pytest.mark.parametrize(("design", "footprint", "height", "width"), CASES, ids=named)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_design_equals_per_pixel_loops(design: AttentionConfig, footprint: int, height: int,
                                             width: int, backend: str, padding: str) -> None:
    layer = layer_for(design, footprint, padding)
    features = maps_of(2, 6, height, width)
    attended, grad, weights = truth(design, footprint, height, width, padding)
    ours, our_grad = computed(layer, features, backend)
    with backends.use_backend(backend):
        our_weights = layer.attention_weights(features)
    assert (ours - attended).abs().max() < EXACT
    assert (our_grad - grad).abs().max() < EXACT
    assert our_weights.shape == weights.shape
    assert (our_weights - weights).abs().max() < EXACT


def test_every_relation_has_its_loops() -> None:
    assert set(PAIRS) == set(relations.names("pairwise"))
    assert set(PATCHES) == set(relations.names("patchwise"))


@pytest.mark.parametrize("design", [
    replace(PAIRWISE, relation="hadamard", mapping="LRLRL", position="absolute"),
    replace(PATCHWISE, relation="star", transforms=2)], ids=named)
def test_train_mode_normalises_over_the_whole_batch(design: AttentionConfig) -> None:
    layer = layer_for(design, 3).train()
    features = maps_of(3, 6, 3, 4)
    assert (layer(features) - loop_attention(layer, features)).abs().max() < EXACT


@pytest.mark.parametrize("design", DESIGNS, ids=named)
def test_every_parameter_learns(design: AttentionConfig) -> None:
    layer = layer_for(design, 3).train().requires_grad_()
    torch.autograd.backward(layer(maps_of(2, 6, 4, 5)), maps_of(2, 8, 4, 5, seed=2))
    grads = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in grads.values())
    # These cancel in the softmax, or in the difference of positions and of shared transforms.
    constant = {"conv_p.bias", "conv1.bias", "conv2.bias", f"conv_w.{len(layer.conv_w) - 1}.bias"}
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if name not in constant)


@pytest.mark.parametrize("design", [replace(PAIRWISE, relation="concatenation"),
                                    replace(PATCHWISE, relation="clique")], ids=named)
def test_slicing_the_batch_changes_nothing_beyond_rounding(
        design: AttentionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_for(design, 3)
    features = maps_of(5, 6, 4, 5)
    whole, weights = layer(features), layer.attention_weights(features)
    seen: list[int] = []
    layer.conv_w.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    monkeypatch.setattr(reference, "SLICE_VALUES", {"cpu": 1})
    assert (layer(features) - whole).abs().max() < EXACT
    assert seen == [1] * 5
    assert (layer.attention_weights(features) - weights).abs().max() < EXACT


@pytest.mark.parametrize("design", [replace(PAIRWISE, relation="dot"),
                                    replace(PAIRWISE, relation="hadamard", position="absolute"),
                                    replace(PATCHWISE, relation="clique")], ids=named)
def test_autocast_reaches_every_step(design: AttentionConfig) -> None:
    layer = layer_for(design, 3).float()
    features = maps_of(2, 6, 4, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(features)
    # A dozen roundings to the 8 bits of bfloat16 of values of size one, averaged by the sum.
    assert 0 < (rough.float() - layer(features)).abs().max() < 0.1


@pytest.mark.parametrize("family", ["pairwise", "patchwise"])
def test_the_released_design_is_the_default(family: str) -> None:
    kind, design = KINDS[family], {"pairwise": PAIRWISE, "patchwise": PATCHWISE}[family]
    ours, default = layer_of(kind, 3, design=design), layer_of(kind, 3)
    assert list(ours.state_dict()) == list(default.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), default.state_dict().values()))


@pytest.mark.parametrize(("transforms", "names"), [
    (3, ["conv1", "conv2", "conv3"]), (2, ["conv1", "conv3"]), (1, ["conv1"])])
def test_shared_transforms_are_stored_once(transforms: int, names: list[str]) -> None:
    layer = layer_for(replace(PAIRWISE, transforms=transforms), 3)
    assert [f"{name}.weight" for name in names] == [
        name for name in layer.state_dict() if name.startswith("conv") and name[4].isdigit()
        and name.endswith("weight")]


def squared(local: relations.Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    return (local.subtraction(query, key).square(),)


@pytest.fixture
def _with_squared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One new entry is all that a relation function takes."""
    known: Registry[Relation] = Registry("pairwise relation", listing="the list")
    for each in (*relations.RELATIONS["pairwise"],
                 Relation("pairwise", "squared", lambda sizes: sizes.channels, squared,
                          counted=lambda sizes: sizes.channels * sizes.neighbours)):
        known.add(each.name, each)
    monkeypatch.setitem(relations.RELATIONS, "pairwise", known)


@pytest.mark.usefixtures("_with_squared")
@pytest.mark.parametrize("transforms", [1, 2, 3])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_relation_added_to_the_table_attends(position: Position, transforms: int,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAIRS, "squared", lambda query, key: [
        (q - k) * (q - k) for q, k in zip(query, key)])
    layer = layer_for(replace(PAIRWISE, relation="squared", position=position,
                              transforms=transforms), 3)
    features = maps_of(2, 6, 3, 4)
    assert (layer(features) - loop_attention(layer, features)).abs().max() < EXACT


@pytest.mark.usefixtures("_with_squared")
def test_a_relation_added_to_the_table_is_a_model_option() -> None:
    torch.manual_seed(0)
    network = build(small_config("san10-pair(relation=squared)")).eval()
    compared = {layer.relation.relation.name for layer in network.modules()
                if isinstance(layer, PairwiseAttention)}
    assert compared == {"squared"}
    assert network(torch.randn(2, 3, 32, 32)).isfinite().all()


def test_a_mistyped_relation_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean hadamard"):
        layer_for(replace(PAIRWISE, relation="hadamar"), 3)


def test_two_relations_of_a_family_cannot_share_a_name() -> None:
    with pytest.raises(ValueError, match="two patchwise relations are named 'star'"):
        relations.register(relations.find("patchwise", "star"))


@pytest.mark.parametrize(("kind", "design", "message"), [
    (PairwiseAttention, PATCHWISE, "attention of pairwise attention must be pairwise"),
    (PatchwiseAttention, SCALAR, "must be patchwise, but it is scalar"),
    (PairwiseAttention, replace(PAIRWISE, mapping="RL"), "must be L or LRL or LRLRL"),
    (PairwiseAttention, replace(PAIRWISE, transforms=4), "must be 1 or 2 or 3, but it is 4"),
    (PairwiseAttention, replace(PAIRWISE, position="polar"), "none or absolute or relative"),
    (PatchwiseAttention, replace(PATCHWISE, position="relative"), "must be none"),
    (PairwiseAttention, replace(PAIRWISE, heads=2), "heads of pairwise attention must be 1"),
    (PatchwiseAttention, replace(PATCHWISE, content=False), "content of patchwise attention")])
def test_designs_that_mean_nothing_are_refused(kind: type[nn.Module], design: AttentionConfig,
                                               message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layer_of(kind, 3, design=design)
