"""The custom operators as torch sees them: registration, gradients, compilation, FLOP counts."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import pytest
import torch
from attention_cases import (BACKENDS, EXACT, LAYERS, computed, frozen, layer_of, maps_of,
                             needs_native)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from sanrobust.design import PAIRWISE
from sanrobust.errors import BackendError, UnknownNameError
from sanrobust.kernels import backends, folding, functional
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention, position_grid
from sanrobust.kernels.relations import Delta

RELATION, VALUES, FOOTPRINT = 3, 8, 3
ASKED: ContextVar[str] = ContextVar("asked", default="")
# Stride and dilation of their own, a map that is no square, both continuations at the border.
SETTINGS = [dict(footprint=3), dict(footprint=3, stride=2), dict(footprint=3, dilation=2),
            dict(footprint=5, padding_mode="zeros"),
            dict(footprint=3, stride=2, dilation=2, padding_mode="zeros")]


def spelled(footprint: int, stride: int = 1, dilation: int = 1,
            padding_mode: str = "reflect") -> tuple[int, int, int, str]:
    return footprint, stride, dilation, padding_mode


def positions(height: int, width: int, stride: int = 1) -> int:
    return len(range(0, height, stride)) * len(range(0, width, stride))


def aggregated(settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Value and weight on a map of 4 x 3 pixels."""
    count = positions(4, 3, settings.get("stride", 1))
    return (maps_of(2, 4, 4, 3).requires_grad_(),
            maps_of(2, 2, settings["footprint"] ** 2, count, seed=2).requires_grad_())


def fused_arguments(kind: type[nn.Module], height: int = 4, width: int = 3,
                    padding_mode: str = "reflect", delta: Delta = "subtraction",
                    absolute: bool = False) -> list[Any]:
    """What the fused operator of a layer is given: maps, position, matrices, settings."""
    settings = {} if kind is PatchwiseAttention else {"design": replace(
        PAIRWISE, relation=delta, position="absolute" if absolute else "relative")}
    layer = frozen(layer_of(kind, FOOTPRINT, **settings))
    maps: list[Any] = [maps_of(2, channels, height, width, seed=seed).requires_grad_()
                       for seed, channels in enumerate((RELATION, RELATION, VALUES))]
    if kind is PairwiseAttention:
        folded = folding.fold_pairwise(layer.conv_w, RELATION, torch.float64, delta)
        grid = position_grid(height, width, dtype=torch.float64)
        maps += [layer.conv_p(grid)]
        return [*maps, folded.tensors(), delta, absolute, FOOTPRINT, padding_mode, "native"]
    matrices = list(vars(folding.fold_patchwise(
        layer.conv_w, RELATION, torch.float64).matrices).values())
    return [*maps, matrices, FOOTPRINT, padding_mode, "native"]


def fused_operator(kind: type[nn.Module], suffix: str = "") -> Any:
    name = "pairwise_attention" if kind is PairwiseAttention else "patchwise_attention"
    return getattr(torch.ops.sanrobust, name + suffix)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_elementary_operators_pass_opcheck(settings: dict[str, Any], backend: str) -> None:
    value, weight = aggregated(settings)
    window = spelled(**settings)
    ops = torch.ops.sanrobust
    opcheck(ops.aggregation, (value, weight, *window, backend))
    opcheck(ops.subtraction, (value, value.detach() + 1, *window, backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_elementary_gradients_pass_opcheck(backend: str) -> None:
    settings = dict(footprint=3, stride=2)
    value, weight = aggregated(settings)
    window = spelled(**settings)
    ops = torch.ops.sanrobust
    grad = maps_of(2, 4, 2, 2, seed=4).requires_grad_()
    opcheck(ops.aggregation_backward, (grad, value, weight, *window, backend, True, True))
    opcheck(ops.aggregation_backward,
            (grad.detach(), value.detach(), weight.detach(), *window, backend, False, True))
    opcheck(ops.subtraction_backward,
            (maps_of(2, 4, 9, 4, seed=5).requires_grad_(), 4, 3, *window, backend))


@needs_native
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize("kind", LAYERS)
def test_fused_operators_pass_opcheck(kind: type[nn.Module], padding_mode: str) -> None:
    arguments = fused_arguments(kind, padding_mode=padding_mode)
    opcheck(fused_operator(kind), tuple(arguments))
    arguments[:3] = [each.detach() for each in arguments[:3]]
    opcheck(fused_operator(kind, "_backward"), (maps_of(2, VALUES, 4, 3, seed=9), *arguments))


@needs_native
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("delta", get_args(Delta))
def test_every_comparison_passes_opcheck(delta: Delta, absolute: bool) -> None:
    arguments = fused_arguments(PairwiseAttention, delta=delta, absolute=absolute)
    opcheck(fused_operator(PairwiseAttention), tuple(arguments))
    arguments[:3] = [each.detach() for each in arguments[:3]]
    opcheck(fused_operator(PairwiseAttention, "_backward"),
            (maps_of(2, VALUES, 4, 3, seed=9), *arguments))


@needs_native
@pytest.mark.parametrize("given", [("key",), ("key", "embedding"), ("embedding",)])
def test_scalar_attention_passes_opcheck(given: tuple[str, ...]) -> None:
    maps = {name: maps_of(2, 4, 4, 3, seed=seed).requires_grad_()
            for seed, name in enumerate(("query", "key", "value"))}
    embedding = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    tensors = [maps["query"], maps["key"] if "key" in given else None, maps["value"],
               embedding if "embedding" in given else None]
    settings = (2, 3, "reflect", "native")
    opcheck(torch.ops.sanrobust.local_attention, (*tensors, *settings))
    held = [None if each is None else each.detach() for each in tensors]
    opcheck(torch.ops.sanrobust.local_attention_backward,
            (maps_of(2, 4, 4, 3, seed=9), *held, *settings))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_elementary_operators_pass_gradcheck_twice(settings: dict[str, Any],
                                                   backend: str) -> None:
    def aggregate(value: Tensor, weight: Tensor) -> Tensor:
        return functional.aggregation(value, weight, **settings, backend=backend)

    def subtract(query: Tensor, key: Tensor) -> Tensor:
        return functional.subtraction(query, key, **settings, backend=backend)

    value, weight = (each[:1, :2].detach().requires_grad_() for each in aggregated(settings))
    weight = weight[:, :1].detach().requires_grad_()
    key = maps_of(1, 2, 4, 3, seed=7).requires_grad_()
    assert gradcheck(aggregate, (value, weight)) and gradcheck(subtract, (value, key))
    assert gradgradcheck(aggregate, (value, weight)) and gradgradcheck(subtract, (value, key))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize("kind", LAYERS)
def test_attention_passes_gradcheck(kind: type[nn.Module], padding_mode: str,
                                    backend: str) -> None:
    layer = frozen(layer_of(kind, 3, groups=1, padding_mode=padding_mode))

    def attend(features: Tensor) -> Tensor:
        with backends.use_backend(backend):
            return layer(features)

    assert gradcheck(attend, (maps_of(1, 6, 3, 2).requires_grad_(),))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_nobody_needs_is_not_computed(backend: str,
                                                      needs: tuple[bool, bool]) -> None:
    value, weight = (each.detach().requires_grad_(need) for each, need
                     in zip(aggregated(dict(footprint=3)), needs))
    alone, = torch.autograd.grad(
        functional.aggregation(value, weight, footprint=3, backend=backend).square().sum(),
        value if needs[0] else weight)
    both = torch.autograd.grad(
        functional.aggregation(value.requires_grad_(), weight.requires_grad_(), footprint=3,
                               backend=backend).square().sum(), (value, weight))
    assert torch.equal(alone, both[0 if needs[0] else 1])


@cache
def compiles_in_one_graph() -> bool:
    """Whether this torch can look into a ContextVar, where the backend asked for is kept.

    torch since 2.14 does; before, it computes attention between two graphs.
    """
    try:
        torch.compile(lambda x: x + len(ASKED.get()), fullgraph=True, backend="eager")(
            torch.zeros(1))
    except torch._dynamo.exc.Unsupported:
        return False
    return True


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_compiled_layer_agrees_and_is_one_graph_where_torch_can(kind: type[nn.Module],
                                                                  backend: str) -> None:
    layer = frozen(layer_of(kind, 3))
    features = maps_of(2, 6, 5, 4)
    compiled = torch.compile(layer, fullgraph=compiles_in_one_graph(), backend="aot_eager")
    for one, other in zip(computed(compiled, features, backend),
                          computed(layer, features, backend)):
        assert (one - other).abs().max() < EXACT


@needs_native
def test_compiled_attention_still_calls_the_fused_operator() -> None:
    if not compiles_in_one_graph():
        pytest.skip("this torch does not look into a ContextVar")
    layer, graphs = frozen(layer_of(PairwiseAttention, 3)), []

    def look(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    torch.compile(layer, fullgraph=True, backend=look)(maps_of(2, 6, 5, 4))
    called = [node.target for graph in graphs for node in graph.graph.nodes]
    assert torch.ops.sanrobust.pairwise_attention in called


def flops(kind: type[nn.Module], backend: str, *, backward: bool = False,
          **settings: Any) -> dict[str, int]:
    """FLOPs by operator of a layer on two maps of 5 x 4 pixels."""
    layer = frozen(layer_of(kind, FOOTPRINT, relation=RELATION, **settings))
    features = maps_of(2, 6, 5, 4).requires_grad_(backward)
    with backends.use_backend(backend), FlopCounterMode(display=False) as counter:
        attended = layer(features)
        if backward:
            attended.sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return {str(operator).rpartition(".")[2]: count for operator, count in counts.items()}


def test_the_elementary_flops_are_those_counted_by_hand() -> None:
    value, weight = maps_of(2, 4, 5, 4).requires_grad_(), maps_of(2, 2, 9, 6).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        functional.aggregation(value, weight, footprint=3, stride=2).sum().backward()
        functional.subtraction(value, value, footprint=3)
    counts = {str(each): count for each, count in counter.get_flop_counts()["Global"].items()}
    # 2 images, 4 channels, 3 x 2 positions, 9 neighbours, a multiplication and an addition.
    assert counts == {"sanrobust.aggregation": 864, "sanrobust.aggregation_backward": 2 * 864,
                      "sanrobust.subtraction": 0}


@needs_native
def test_the_fused_flops_are_those_counted_by_hand() -> None:
    pixels, around = 2 * 5 * 4, 9
    pairwise = flops(PairwiseAttention, "native", backward=True)
    # (3 + 2) * 3 + 3 * 2 + 8 multiply-adds for each pair of pixels; back 3 * 3 + 3 * 2 + 2 * 8.
    assert pairwise["pairwise_attention"] == 2 * pixels * around * 29 == 20880
    assert pairwise["pairwise_attention_backward"] == 2 * pixels * around * 31 == 22320
    patchwise = flops(PatchwiseAttention, "native", backward=True)
    # 10 * 3 * 2 + 2 * 9 * 2 + 9 * 8 multiply-adds for each pixel; back once more 9 * 8.
    assert patchwise["patchwise_attention"] == 2 * pixels * 168 == 13440
    assert patchwise["patchwise_attention_backward"] == 2 * pixels * 240 == 19200


@needs_native
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_has_as_many_flops_on_every_backend(kind: type[nn.Module]) -> None:
    assert sum(flops(kind, "native").values()) == sum(flops(kind, "reference").values()) > 0


@needs_native
@pytest.mark.parametrize("changes", [dict(relation=each) for each in get_args(Delta)]
                         + [dict(position="absolute"), dict(position="none")])
def test_a_pairwise_design_has_as_many_flops_on_every_backend(changes: dict[str, Any]) -> None:
    native, composed = (flops(PairwiseAttention, backend, design=replace(PAIRWISE, **changes))
                        for backend in ("native", "reference"))
    assert "pairwise_attention" in native and "pairwise_attention" not in composed
    assert sum(native.values()) == sum(composed.values()) > 0


@needs_native
@pytest.mark.parametrize("kind", LAYERS)
def test_a_second_derivative_of_fused_attention_is_refused_with_what_to_do(
        kind: type[nn.Module]) -> None:
    layer, features = frozen(layer_of(kind, 3)), maps_of(1, 6, 4, 4).requires_grad_()
    with backends.use_backend("native"):
        first, = torch.autograd.grad(layer(features).square().sum(), features, create_graph=True)
    with pytest.raises(BackendError, match="second derivatives.*use backend='reference'"):
        torch.autograd.grad(first.sum(), features)


@needs_native
def test_a_matrix_that_wants_a_gradient_is_refused() -> None:
    arguments = fused_arguments(PairwiseAttention)
    arguments[4] = [each.clone().requires_grad_() for each in arguments[4]]
    attended = fused_operator(PairwiseAttention)(*arguments)
    with pytest.raises(BackendError, match="must be frozen"):
        attended.sum().backward()


def test_fused_operators_are_not_asked_of_the_reference() -> None:
    arguments = fused_arguments(PatchwiseAttention)
    with pytest.raises(BackendError, match="backend reference composes it"):
        fused_operator(PatchwiseAttention)(*arguments[:-1], "reference")


def test_an_unknown_kernel_set_is_refused() -> None:
    value, weight = aggregated(dict(footprint=3))
    with pytest.raises(UnknownNameError, match="did you mean native"):
        torch.ops.sanrobust.aggregation(value, weight, 3, 1, 1, "reflect", "natives")
