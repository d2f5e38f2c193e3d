"""The CUDA kernels on a device. Without one, test_cuda_shim.py runs the same sources on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from cuda_cases import Case, make
from oracles import unfold_attention
from torch import Tensor, nn

from sanrobust.kernels.cuda import compiler
from sanrobust.kernels.folding import tensors
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.relations import Delta
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.resolve import create_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(torch.cuda.is_available() and compiler.refusal() is not None,
                       reason="CuPy cannot run here"),
]

STORAGE = (torch.float32, torch.float16, torch.bfloat16)
# As in FlashAttention's tests: twice the error that torch makes in the same dtype.
FACTOR = 2
FLOOR = 2e-7
LAYERS = (PairwiseAttention, PatchwiseAttention)
# The stages of a SAN at 64 pixels, and a map whose sides divide no tile.
STAGES = [(64, 3, 16, 16), (256, 7, 15, 9), (512, 7, 8, 8), (1024, 7, 7, 6), (2048, 7, 4, 4)]


def san_case(kind: str, relation: int, height: int, width: int, images: int = 2) -> Case:
    hidden = relation if kind == "pairwise" else relation // 2
    return make(kind, relation, hidden, relation // 2, 4 * relation, 7, "reflect", height, width,
                images=images)


def run(case: Case, dtype: torch.dtype, device: str = "cuda",
        memory_format: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    """Result and gradients of a case by the kernels of the device."""
    from sanrobust.kernels.cuda.kernels import CupyKernels
    query, key, value, grad = (
        each.to(device, dtype).contiguous(memory_format=memory_format)
        for each in (*case.maps, case.grad))
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    matrices = case.matrices_of(accumulator)
    moved = replace(matrices, **{name: each.to(device)
                                 for name, each in tensors(matrices).items()})
    kernels = CupyKernels()
    forward, backward = getattr(kernels, case.kind), getattr(kernels, f"{case.kind}_backward")
    return [forward(query, key, value, moved, case.window),
            *backward(grad, query, key, value, moved, case.window)]


@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("relation", [5, 16, 32, 64, 128])
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_errors_are_at_most_twice_those_of_torch(kind: str, relation: int,
                                                 dtype: torch.dtype) -> None:
    case = san_case(kind, relation, 9, 11) if relation != 5 \
        else make(kind, 5, 7, 3, 6, 5, "zeros", 5, 8)
    truth, plain = case.formula(torch.float64), case.formula(dtype)
    for found, exact, same in zip(run(case, dtype), truth, plain):
        error = (found.double().cpu() - exact).abs().max()
        allowed = FACTOR * (same.double() - exact).abs().max() + FLOOR * exact.abs().max()
        assert error <= allowed


@pytest.mark.parametrize("by_place", [False, True])
@pytest.mark.parametrize("dtype", STORAGE)
@pytest.mark.parametrize("relation", [5, 16, 128])
@pytest.mark.parametrize("delta", get_args(Delta))
def test_every_comparison_errs_at_most_twice_as_torch(delta: Delta, relation: int,
                                                      dtype: torch.dtype, by_place: bool) -> None:
    shape = (relation, relation // 2, 4 * relation) if relation != 5 else (5, 3, 6)
    case = make("pairwise", relation, *shape, 7 if relation != 5 else 5, "zeros", 9, 11,
                delta=delta, by_place=by_place)
    truth, plain = case.formula(torch.float64), case.formula(dtype)
    for found, exact, same in zip(run(case, dtype), truth, plain):
        error = (found.double().cpu() - exact).abs().max()
        allowed = FACTOR * (same.double() - exact).abs().max() + FLOOR * exact.abs().max()
        assert error <= allowed


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_double_maps_are_computed_in_double(kind: str) -> None:
    case = make(kind, 5, 7, 3, 6, 5, "reflect", 5, 8)
    for found, exact in zip(run(case, torch.float64), case.formula(torch.float64)):
        assert (found.cpu() - exact).abs().max() < 1e-11 * exact.abs().max()


def layer_of(kind: Callable[..., nn.Module], channels: int, footprint: int) -> nn.Module:
    torch.manual_seed(0)
    layer = kind(channels, relation_channels=channels // 16, value_channels=channels // 4,
                 weight_groups=channels // 32, footprint=footprint)
    return layer.eval().requires_grad_(False).cuda()


@pytest.mark.parametrize(("channels", "footprint", "height", "width"), STAGES)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_choose_the_kernels_and_agree_with_unfold(kind: Callable[..., nn.Module],
                                                         channels: int, footprint: int,
                                                         height: int, width: int) -> None:
    layer = layer_of(kind, channels, footprint)
    features = torch.randn(2, channels, height, width, device="cuda")
    found = layer(features)
    exact = unfold_attention(layer.double(), features.double())
    plain = unfold_attention(layer.float(), features)
    error, same = ((each - exact).abs().max() for each in (found, plain))
    assert error <= FACTOR * same + FLOOR * exact.abs().max()


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_gathered_gradients_repeat_to_the_bit(kind: str) -> None:
    case = san_case(kind, 32, 14, 14, images=8)
    for one, two in zip(run(case, torch.float32), run(case, torch.float32)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_channels_last_maps_give_the_same_numbers(kind: str) -> None:
    case = san_case(kind, 16, 9, 10)
    for one, two in zip(run(case, torch.float32),
                        run(case, torch.float32, memory_format=torch.channels_last)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_kernels_run_on_the_current_stream(kind: str) -> None:
    case = san_case(kind, 16, 9, 10)
    expected = run(case, torch.float32)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)   # kernels on another stream would overtake this
        found = run(case, torch.float32)
    stream.synchronize()
    for one, two in zip(expected, found):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_captured_graph_replays_on_new_inputs(kind: Callable[..., nn.Module]) -> None:
    layer = layer_of(kind, 256, 7)
    features = torch.randn(2, 256, 14, 14, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        out = layer(features)
        grad, = torch.autograd.grad(out.square().sum(), features)
        return out, grad

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        features.copy_(torch.randn_like(features))
    graph.replay()
    for one, two in zip(captured, step()):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["san10-pair.digits", "san10-patch.digits"])
def test_an_attack_step_on_an_accelerated_network_never_waits_for_the_device(name: str) -> None:
    device = torch.device("cuda")
    plain = create_model(name).to(device)
    quick = accelerate(plain, device).classifier
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)

    def step(classifier: Classifier) -> tuple[Tensor, Tensor]:
        leaf = pixels.clone().requires_grad_()
        logits = classifier(leaf)
        grad, = torch.autograd.grad(logits.sum(), leaf)
        return logits.detach(), grad

    step(quick)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = step(quick)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, two in zip(found, step(plain)):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
def test_a_second_device_computes_the_same(kind: str) -> None:
    case = san_case(kind, 16, 9, 10)
    for one, two in zip(run(case, torch.float32), run(case, torch.float32, "cuda:1")):
        assert torch.equal(one.cpu(), two.cpu())
