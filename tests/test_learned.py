"""Attention whose mapping is trained, fused, against the reference in float64: every gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from attention_cases import needs_native
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.nn import functional as F

from sanrobust.design import PAIRWISE, PATCHWISE, AttentionConfig
from sanrobust.errors import BackendError, UsageError
from sanrobust.kernels import batch_mapping, functional, kernelset, learned_stem
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.folding import PairwiseMatrices
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.native import library
from sanrobust.kernels.native.kernels import NativeKernels
from sanrobust.kernels.plain import Window
from sanrobust.zoo.build import build
from sanrobust.zoo.forms import small_config

pytestmark = needs_native

KINDS: dict[str, Any] = {"pairwise": PairwiseAttention, "patchwise": PatchwiseAttention}
# R; M and O follow as in the networks. The last are for the generic kernels alone.
TUNED, OTHERS = (16, 32, 64, 128), (4, 6)
MAPS = [(9, 13, 7), (4, 4, 7), (3, 8, 5), (10, 21, 3)]
Made = dict[str, Tensor]
# What normalisations and softmaxes cancel has a gradient of rounding alone.
CANCELLED = ("conv1.bias", "conv2.bias", "conv_p.bias", "conv_w.5.bias")


def attention(kind: str, relation: int, footprint: int, design: AttentionConfig | None = None,
              padding_mode: str = "reflect") -> nn.Module:
    torch.manual_seed(relation + footprint)
    made: nn.Module = KINDS[kind](
        12, relation_channels=relation, value_channels=4 * relation,
        weight_groups=relation // 2, footprint=footprint, padding_mode=padding_mode,
        design=design or (PAIRWISE if kind == "pairwise" else PATCHWISE))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.4)
        else:
            nn.init.uniform_(parameter, 0.3, 1.0)
    return made.double().train()


def trained(layer: nn.Module, features: Tensor, dtype: torch.dtype, backend: str) -> Made:
    """Return output, every gradient and every statistic of one training step."""
    own, given = deepcopy(layer).to(dtype), features.to(dtype).requires_grad_()
    with use_backend(backend):
        made = own(given)
    slope = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    made.backward(slope.to(dtype))
    parameters = {name: each.grad for name, each in own.named_parameters()}
    assert not [name for name, each in parameters.items() if each is None]
    return {"y": made.detach(), "features": given.grad, **parameters,  # type: ignore[dict-item]
            **dict(own.named_buffers())}


def assert_trains(layer: nn.Module, features: Tensor, dtype: torch.dtype,
                  tolerance: float) -> None:
    found, wanted = (trained(layer, features, kind, backend) for kind, backend
                     in ((dtype, "native"), (torch.float64, "reference")))
    for name, each in wanted.items():
        error = (found[name].double() - each).abs().max()
        scale = 1.0 if name.endswith(CANCELLED) else each.abs().max()
        bound = 1e3 * tolerance if name.endswith(CANCELLED) else tolerance
        assert error <= bound * scale, (name, float(error), float(scale))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the fused calls from here on."""
    seen: list[str] = []

    def counting(name: str) -> Callable[..., Tensor]:
        own = getattr(batch_mapping, name)

        def counted(*args: Any, **kwargs: Any) -> Tensor:
            seen.append(name)
            made: Tensor = own(*args, **kwargs)
            return made

        return counted

    for name in ("pairwise_attention", "patchwise_attention", "patchwise_sum"):
        monkeypatch.setattr(batch_mapping, name, counting(name))
    return seen


@pytest.mark.parametrize("height, width, footprint", MAPS)
@pytest.mark.parametrize("relation", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_float64_it_is_the_reference(kind: str, relation: int, height: int, width: int,
                                        footprint: int, calls: list[str]) -> None:
    features = torch.randn(2, 12, height, width).double()
    assert_trains(attention(kind, relation, footprint), features, torch.float64, 1e-10)
    assert calls == [f"{kind}_attention"]


@pytest.mark.parametrize("height, width, footprint", MAPS)
@pytest.mark.parametrize("relation", (*TUNED, *OTHERS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_width_in_float32(kind: str, relation: int, height: int, width: int,
                                footprint: int) -> None:
    torch.manual_seed(height)
    features = torch.randn(3, 12, height, width).double()
    assert_trains(attention(kind, relation, footprint), features, torch.float32, 3e-5)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 3e-5)])
@pytest.mark.parametrize("relation", (4, 16, 64))
def test_patches_beyond_a_map_are_zeros(relation: int, dtype: torch.dtype,
                                        tolerance: float) -> None:
    layer = attention("patchwise", relation, 5, padding_mode="zeros")
    assert_trains(layer, torch.randn(2, 12, 9, 14).double(), dtype, tolerance)


@pytest.mark.parametrize("design", [
    AttentionConfig("pairwise", "summation"), AttentionConfig("pairwise", position="none"),
    AttentionConfig("pairwise", transforms=2), AttentionConfig("pairwise", transforms=1)], ids=str)
def test_other_designs_of_differences(design: AttentionConfig, calls: list[str]) -> None:
    layer = attention("pairwise", 16, 7, design)
    assert_trains(layer, torch.randn(2, 12, 9, 14).double(), torch.float32, 3e-5)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 3e-5)])
@pytest.mark.parametrize("padding_mode", ("reflect", "zeros"))
@pytest.mark.parametrize("changes", [
    {"relation": "star"}, {"relation": "clique"}, {"relation": "clique", "transforms": 1},
    {"transforms": 2}, {"mapping": "LRLRL"}, {"relation": "star", "mapping": "LRLRL"}], ids=str)
def test_other_designs_of_patches(changes: dict[str, Any], padding_mode: str, dtype: torch.dtype,
                                  tolerance: float, calls: list[str]) -> None:
    layer = attention("patchwise", 16, 5, replace(PATCHWISE, **changes), padding_mode)
    assert_trains(layer, torch.randn(2, 12, 7, 10).double(), dtype, tolerance)
    assert calls == ["patchwise_sum"]


@pytest.mark.parametrize("step", ("eval", "train"))
def test_a_wrapped_layer_of_star_attention_is_called(step: str, calls: list[str]) -> None:
    layer = attention("patchwise", 4, 3, replace(PATCHWISE, relation="star"))
    layer = wrapped(layer.train(step == "train"))
    assert_trains(layer, torch.randn(2, 12, 7, 10).double(), torch.float64, 1e-10)
    assert not calls


def test_without_a_hidden_layer_weights_are_stored(calls: list[str]) -> None:
    layer = attention("patchwise", 4, 3, replace(PATCHWISE, mapping="L"))
    assert_trains(layer, torch.randn(2, 12, 7, 10).double(), torch.float64, 1e-10)
    assert not calls


@pytest.fixture
def at_level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param not in library.levels():
        pytest.skip(f"this processor lacks {request.param}")
    kernels = NativeKernels()
    kernels._library = library.load_level(request.param)
    monkeypatch.setitem(kernelset._made, "native", kernels)
    yield


@pytest.mark.parametrize("at_level", library.LEVELS, indirect=True)
@pytest.mark.parametrize("relation", (4, 16, 32, 128))
@pytest.mark.parametrize("kind", KINDS)
def test_every_level_of_instructions(kind: str, relation: int, at_level: None) -> None:
    features = torch.randn(2, 12, 7, 19, generator=torch.Generator().manual_seed(3)).double()
    assert_trains(attention(kind, relation, 7), features, torch.float32, 3e-5)


@pytest.mark.parametrize("relation", (4, 16, 64))
def test_no_bit_depends_on_threads(relation: int) -> None:
    torch.manual_seed(relation)
    hidden, groups, window = relation // 2, relation // 2, Window(7)
    query, key = (torch.randn(5, relation, 13, 17) for _ in range(2))
    value, grad = (torch.randn(5, 4 * relation, 13, 17) for _ in range(2))
    w1, w2 = torch.randn(relation, relation), torch.randn(groups, relation)
    table, slope = torch.randn(1, 50, relation), torch.randn(3, relation)
    matrices = PairwiseMatrices(w1, w1.t().contiguous(), w2, w2.t().contiguous(), table)
    patch = query, key, torch.rand(49, relation), torch.randn(49, relation), \
        torch.randn(hidden, 50 * relation)
    layer, weights = torch.rand(5, hidden, 13, 17), (torch.randn(49 * groups, hidden),
                                                     torch.randn(49 * groups))
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            kernels = NativeKernels()
            attended, *kept = kernels.pairwise_learned(query, key, value, matrices, window)
            made.append([
                attended, kernels.pairwise_moments(query, key, w1, table[0], window),
                *kernels.pairwise_learned_backward(grad, query, key, value, matrices, kept,
                                                   window),
                *kernels.pairwise_moments_backward(slope, query, key, w1, table[0], window),
                kernels.patch_hidden(*patch, window),
                *kernels.patch_hidden_backward(layer, *patch, window),
                kernels.patch_weighted(layer, value, *weights, window),
                *kernels.patch_weighted_backward(grad, layer, value, *weights, window)])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *made)) and all(each.isfinite().all() for each in made[0])


def test_statistics_far_from_zero_keep_their_digits() -> None:
    layer = attention("pairwise", 16, 7)
    features = torch.randn(2, 12, 9, 14).double() + 30
    found, wanted = (trained(layer, features, dtype, backend) for dtype, backend
                     in ((torch.float32, "native"), (torch.float64, "reference")))
    for name in ("conv_w.0.running_var", "conv_w.3.running_var"):
        assert ((found[name] - wanted[name]).abs() / wanted[name]).max() < 1e-4


def operators() -> dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]]:
    """Return each operator's tensors in float64, and how it is called with them."""
    torch.manual_seed(2)
    ops = torch.ops.sanrobust
    query, key, value = (torch.randn(2, channels, 3, 4).double() for channels in (2, 2, 4))
    layer = query, key, torch.randn(10, 3).double(), torch.randn(3, 2).double()
    patch = query, key, *(torch.randn(9, 2).double() for _ in range(2)), \
        torch.randn(3, 20).double()
    weighted = torch.rand(2, 3, 3, 4).double(), value, torch.randn(18, 3).double(), \
        torch.randn(18).double()
    return {
        "pairwise": (lambda *given: ops.learned_pairwise(*given, 0, 3, "native")[0],
                     (*layer, value, torch.randn(2, 3).double())),
        "moments": (lambda *given: ops.pair_moments(*given, 3, "native"), layer),
        "hidden": (lambda *given: ops.patch_hidden(*given, 3, "zeros", "native"), patch),
        "weighted": (lambda *given: ops.patch_weighted(*given, 3, "zeros", "native"), weighted)}


@pytest.mark.parametrize("name", operators())
def test_gradients_pass_gradcheck(name: str) -> None:
    operator, tensors = operators()[name]
    given = tuple(each.requires_grad_() for each in tensors)
    assert gradcheck(operator, given)
    assert gradgradcheck(operator, given)


def test_the_operators_pass_opcheck() -> None:
    ops, (_, pairwise), (_, layer), (_, patch), (_, weighted) = torch.ops.sanrobust, *(
        operators()[name] for name in ("pairwise", "moments", "hidden", "weighted"))
    opcheck(ops.learned_pairwise, (*pairwise, 0, 3, "native"))
    y, *kept = ops.learned_pairwise(*pairwise, 0, 3, "native")
    opcheck(ops.learned_pairwise_backward,
            (torch.randn_like(y), *pairwise, kept, 0, 3, "native"))
    opcheck(ops.pair_moments, (*layer, 3, "native"))
    opcheck(ops.pair_moments_backward, (torch.randn(3, 3).double(), *layer, 3, "native"))
    opcheck(ops.patch_hidden, (*patch, 3, "reflect", "native"))
    opcheck(ops.patch_hidden_backward,
            (torch.randn(2, 3, 3, 4).double(), *patch, 3, "reflect", "native"))
    opcheck(ops.patch_weighted, (*weighted, 3, "reflect", "native"))
    opcheck(ops.patch_weighted_backward,
            (torch.randn(2, 4, 3, 4).double(), *weighted, 3, "reflect", "native"))
    pixels, weight, bias = torch.randn(2, 3, 5, 4), torch.randn(6, 3), torch.randn(6)
    opcheck(ops.learned_stem, (pixels, weight, bias, "native"))
    codes = ops.learned_stem(pixels, weight, bias, "native")[1]
    opcheck(ops.learned_stem_backward,
            (torch.randn(2, 6, 2, 2), pixels, weight, bias, codes, "native"))


def test_what_does_not_fit_is_refused() -> None:
    for operator, tensors in operators().values():
        for place in range(len(tensors)):
            given = list(tensors)
            given[place] = given[place][..., :-1].contiguous()
            with pytest.raises((UsageError, RuntimeError), match="must"):
                operator(*given)
    with pytest.raises(BackendError, match="fused"):
        torch.ops.sanrobust.pair_moments(*operators()["moments"][1], 3, "reference")


def hooked(layer: nn.Module) -> nn.Module:
    layer.get_submodule("conv_w.2").register_forward_hook(lambda *_: None)
    return layer


def wrapped(layer: nn.Module) -> nn.Module:
    last = layer.get_submodule("conv_w.5")
    last.forward = partial(_one_more, last)
    return layer


def _one_more(last: nn.Module, given: Tensor) -> Tensor:
    made: Tensor = type(last).forward(last, given)
    return made + 1


def replaced(layer: nn.Module) -> nn.Module:
    layer.conv_w[1] = nn.LeakyReLU()  # type: ignore[index, operator]
    return layer


LEFT: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eval": lambda layer: layer.eval(), "hooked": hooked, "wrapped": wrapped,
    "another mapping": replaced,
    "a norm in eval": lambda layer: layer.get_submodule("conv_w.3").eval() and layer}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("kind", KINDS)
def test_other_mappings_are_composed(kind: str, name: str, calls: list[str]) -> None:
    layer = LEFT[name](attention(kind, 16, 5))
    assert_trains(layer, torch.randn(2, 12, 9, 9).double(), torch.float32, 3e-5)
    assert f"{kind}_attention" not in calls


def test_a_position_of_unknown_origin_gets_all_of_its_gradient(calls: list[str]) -> None:
    layer = attention("pairwise", 4, 3)
    query, key, value = (torch.randn(2, channels, 5, 5).double() for channels in (4, 4, 16))
    grads = []
    for backend in ("native", "reference"):
        position = torch.linspace(-1, 1, 25).view(1, 1, 5, 5).expand(1, 2, 5, 5).double().clone()
        position.requires_grad_()
        functional.pairwise_attention(query, key, value, position, deepcopy(layer.conv_w),
                                      footprint=3, backend=backend).square().sum().backward()
        grads.append(position.grad)
    assert torch.allclose(*grads) and not calls  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"kernel_size": 3, "padding": 1}, {"stride": 2},
                                     {"kernel_size": 1, "groups": 2}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_projections_of_another_kind_are_computed_one_by_one(kind: str,
                                                             changes: dict[str, Any]) -> None:
    layer = attention(kind, 16, 3).float()
    for name in ("conv1", "conv2", "conv3"):
        width = layer.get_submodule(name).out_channels
        setattr(layer, name, nn.Conv2d(12, width, **({"kernel_size": 1} | changes)))
    features = torch.randn(2, 12, 12, 12)
    wanted = deepcopy(layer).eval()(features).shape
    assert layer(features).shape == wanted
    assert torch.equal(layer.conv1(features), layer.compared(features)[0])


def test_a_position_of_another_kind_gets_all_of_its_gradient() -> None:
    layer, grads = attention("pairwise", 4, 3), []
    wide = nn.Conv2d(2, 2, 3, padding=1).double()
    with torch.no_grad():
        wide.weight.zero_()
        wide.bias.zero_()
        wide.weight[0, 0, 1, 1] = wide.weight[1, 1, 1, 1] = 1  # an affine position, so far
    layer.conv_p = wide
    for backend in ("native", "reference"):
        made = deepcopy(layer)
        with use_backend(backend):
            made(torch.ones(1, 12, 6, 7).double()).square().sum().backward()
        grads.append(made.conv_p.weight.grad)
    assert torch.allclose(*grads)


@pytest.mark.parametrize("transforms", (2, 3))
@pytest.mark.parametrize("spread", (1.0, 100.0))
def test_what_an_image_has_in_common_costs_no_digits(transforms: int, spread: float) -> None:
    layer = attention("pairwise", 16, 3, AttentionConfig("pairwise", transforms=transforms))
    if transforms == 3:
        layer.conv2 = deepcopy(layer.conv1)
    brightness = torch.arange(3.0)[:, None, None, None] * spread
    features = brightness + torch.randn(3, 12, 9, 11, generator=torch.Generator().manual_seed(4))
    assert_trains(layer, features.double(), torch.float32, 3e-5 * max(1.0, spread / 10))


def test_statistics_that_are_switched_off_stay() -> None:
    layer = attention("pairwise", 16, 3)
    layer.get_submodule("conv_w.0").track_running_stats = False
    before = {name: each.clone() for name, each in layer.named_buffers()}
    layer(torch.randn(2, 12, 9, 9).double())
    for name, each in layer.named_buffers():
        assert torch.equal(each, before[name]) == name.startswith("conv_w.0."), name


@pytest.mark.parametrize("kind", KINDS)
def test_one_image_is_refused_in_training_as_elsewhere(kind: str) -> None:
    with pytest.raises(UsageError, match="four dimensions"):
        attention(kind, 16, 3)(torch.randn(12, 9, 9).double())


@pytest.mark.parametrize("name", ("san10-pair", "san10-patch"))
def test_a_network_in_training_calls_nothing_else(name: str, calls: list[str]) -> None:
    network = build(small_config(name)).train()
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    assert len(calls) == len([each for each in network.modules()
                              if isinstance(each, tuple(KINDS.values()))])


@pytest.mark.parametrize("height, width", [(2, 3), (9, 33), (64, 70)])
def test_the_first_layer_is_that_of_torch(height: int, width: int) -> None:
    torch.manual_seed(height)
    conv, norm = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    images = torch.randn(3, 3, height, width) * torch.tensor([1, 0.3, 2])[:, None, None] + 0.7
    assert learned_stem.takes(conv, norm, images, "native")
    made = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        own, normal = deepcopy(conv).to(dtype), deepcopy(norm).to(dtype)
        y = functional.stem(own, normal, images.to(dtype), pooled=True, backend=backend)
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype))
        made.append([y.detach(), own.weight.grad, normal.weight.grad, normal.bias.grad,
                     normal.running_mean, normal.running_var])
    for found, wanted in zip(*made):
        assert (found.double() - wanted).abs().max() <= 3e-6 * wanted.abs().max()


def test_the_first_layer_for_whom_pixels_have_a_gradient_is_torchs() -> None:
    network = build(small_config("san10-pair")).train()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    network(images).sum().backward()
    assert images.grad is not None and bool(images.grad.abs().sum() > 0)
    conv, norm = nn.Conv2d(3, 16, 1, bias=False), nn.BatchNorm2d(16)
    assert not learned_stem.takes(conv, norm, images, "native")


def test_the_first_layer_can_be_differentiated_again() -> None:
    pixels, bias = torch.randn(1, 3, 4, 4), torch.randn(2, requires_grad=True)
    weight, slopes = torch.randn(2, 3, requires_grad=True), []
    for made in (torch.ops.sanrobust.learned_stem(pixels, weight, bias, "native")[0],
                 F.max_pool2d(F.relu(F.conv2d(pixels, weight[:, :, None, None], bias)), 2)):
        gradient, = torch.autograd.grad(made.square().sum(), weight, create_graph=True)
        slopes.append(torch.autograd.grad(gradient.square().sum(), weight)[0])
    assert torch.allclose(*slopes, rtol=1e-5)
