"""Scalar attention by the native kernels: against torch in float64, and its bits."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from kernel_truth import Local, arguments, computed, error, expected
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sanrobust.design import SASA
from sanrobust.errors import BackendError, UsageError
from sanrobust.kernels import functional
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import LocalArgs

pytestmark = pytest.mark.skipif(library.refusal() is not None,
                                reason=f"native kernels: {library.refusal()}")

DOUBLE_TOLERANCE = 1e-12  # some thousand operations on numbers around 1, in another order
SINGLE_TOLERANCE = 3e-6  # the same of float32
TUNED = 1
# Shapes that the tuned kernels take at every level of instructions, heads of one and of eight.
WIDTHS = [{"relation": 32, "channels": 16}, {"relation": 64, "channels": 80, "groups": 8}]
COMPARED = {"content": {}, "both": {"embedded": True},
            "offsets": {"content": False, "embedded": True}}
# Footprint and map: the smallest legal ones, odd sides, maps of several bands and runs.
REFLECTED = [(1, 1, 1), (1, 3, 2), (3, 2, 2), (3, 5, 3), (5, 3, 7), (7, 4, 4), (7, 9, 4),
             (7, 13, 5), (5, 25, 4), (7, 4, 21), (11, 6, 17)]
ZEROS = [(3, 1, 1), (5, 2, 1), (7, 1, 5), (7, 5, 9), (9, 2, 3), (3, 24, 3), (7, 3, 19)]
MAPS = [("reflect", *each) for each in REFLECTED] + [("zeros", *each) for each in ZEROS]


def assert_double(case: Local) -> None:
    for name, found, wanted in zip(("out", "grad_qkv"), computed(case), expected(case)):
        assert error(found, wanted) < DOUBLE_TOLERANCE, name


def assert_single(case: Local, level: str | None = None) -> None:
    found = computed(case, torch.float32, level=level)
    for name, each, wanted in zip(("out", "grad_qkv"), found, expected(case)):
        assert error(each, wanted) < SINGLE_TOLERANCE, name


def is_tuned(case: Local) -> bool:
    kernels = library.require()
    return kernels.query("sanrobust_local_tuned", arguments(case, torch.float32, 1)[0]) == TUNED


@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("padding, footprint, height, width", MAPS)
def test_generic_kernels_match_the_truth(padding: str, footprint: int, height: int, width: int,
                                         compared: str) -> None:
    assert_double(Local(padding=padding, footprint=footprint, height=height, width=width,
                        relation=12, groups=3, channels=9, **COMPARED[compared]))


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("padding, footprint, height, width", MAPS)
def test_tuned_kernels_match_the_truth(padding: str, footprint: int, height: int, width: int,
                                       compared: str, widths: dict[str, int]) -> None:
    case = Local(padding=padding, footprint=footprint, height=height, width=width, **widths,
                 **COMPARED[compared])
    assert is_tuned(case) or widths["groups"] > library.require().lanes
    assert_single(case)


@pytest.mark.parametrize("level", library.LEVELS)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("compared", COMPARED)
@pytest.mark.parametrize("height, width", [(4, 4), (4, 19)])
def test_every_level_of_instructions_matches_the_truth(
        compared: str, widths: dict[str, int], level: str, height: int, width: int) -> None:
    if level not in library.levels():
        pytest.skip(f"this processor lacks {level}")
    assert_single(Local(footprint=7, height=height, width=width, **widths, **COMPARED[compared]),
                  level)


@pytest.mark.parametrize("trial", range(30))
def test_random_shapes(trial: int) -> None:
    choose = random.Random(trial)
    footprint, groups = choose.choice([1, 3, 5, 7]), choose.choice([1, 2, 3, 8])
    padding = choose.choice(["reflect", "zeros"])
    least = footprint // 2 + 1 if padding == "reflect" else 1
    assert_double(Local(
        images=choose.randint(1, 3), height=least + choose.randint(0, 14),
        width=least + choose.randint(0, 20), footprint=footprint, padding=padding, groups=groups,
        relation=2 * groups * choose.randint(1, 3), channels=groups * choose.randint(1, 4),
        epilogue=choose.random() < 0.5, seed=trial, **choose.choice(list(COMPARED.values()))))


@pytest.mark.parametrize("widths", [*WIDTHS, {"relation": 4, "channels": 5}])
def test_bits_depend_on_neither_threads_nor_batch(widths: dict[str, int]) -> None:
    settings: dict[str, Any] = dict(images=3, height=25, width=9, footprint=5, embedded=True,
                                    **widths)
    case, pixels = Local(**settings), 25 * 9
    together = computed(case, torch.float32)
    assert all(torch.equal(*each) for each in zip(
        together, computed(case, torch.float32, threads=3)))
    for image in range(3):
        part = slice(image * pixels, (image + 1) * pixels)
        alone = Local(**settings)
        alone.size = (1, 25, 9)
        alone.qkv, alone.grad = case.qkv[part], case.grad[part]
        assert all(torch.equal(whole[part], one) for whole, one in zip(
            together, computed(alone, torch.float32)))


@pytest.mark.parametrize("widths", [*WIDTHS, {"relation": 4, "channels": 5}])
def test_what_is_not_finite_stays_so(widths: dict[str, int]) -> None:
    case = Local(height=9, width=9, footprint=3, epilogue=False, images=1, **widths)
    case.qkv[40, 0] = float("nan")
    out, grad = computed(case, torch.float32)
    assert out[40].isnan().any() and grad[40].isnan().any()
    assert out[:20].isfinite().all() and grad[:9].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [1, 8])
@pytest.mark.parametrize("compared", COMPARED)
def test_gradients_of_maps_and_embeddings_are_those_of_the_reference(
        compared: str, heads: int, dtype: torch.dtype) -> None:
    found, wanted = (_gradients(compared, heads, *each) for each in (
        (dtype, "native"), (torch.float64, "reference")))
    tolerance = SINGLE_TOLERANCE if dtype == torch.float32 else DOUBLE_TOLERANCE
    for name, each in wanted.items():
        assert error(found[name].double(), each) < tolerance, name


def _gradients(compared: str, heads: int, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    maps = {name: torch.randn(2, channels, 6, 9, generator=generator, dtype=torch.float64)
            for name, channels in (("query", 32), ("key", 32), ("value", 48))}
    maps["query"] /= (32 / heads) ** 0.5
    maps["embedding"] = torch.randn(2, 5, 16, generator=generator, dtype=torch.float64)
    left = {"content": "embedding", "offsets": "key"}.get(compared)
    held = {name: each.to(dtype).requires_grad_() for name, each in maps.items() if name != left}
    out = functional.local_attention(
        held["query"], held.get("key"), held["value"], held.get("embedding"), heads=heads,
        footprint=5, backend=backend)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    (out * weights).sum().backward()
    return {"out": out.detach(), **{name: each.grad for name, each in held.items()
                                    if each.grad is not None}}


def test_a_derivative_of_embeddings_is_the_slope() -> None:
    query, value = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    embedding = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    query, value = query.requires_grad_(), value.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: functional.local_attention(given[0], given[0], *given[1:], heads=2,
                                                  footprint=3, backend="native"),
        (query, value, embedding))


def test_a_second_derivative_is_that_of_torch() -> None:
    query, value = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    embedding = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda *given: functional.local_attention(given[0], given[0], *given[1:], heads=2,
                                                  footprint=3, backend="native"),
        (query.requires_grad_(), value.requires_grad_(), embedding))


def test_flops_are_counted_forward_and_back() -> None:
    maps = torch.randn(2, 4, 5, 6, requires_grad=True)
    embedding = torch.randn(2, 3, 2, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        made = functional.local_attention(maps, maps, maps, embedding, footprint=3,
                                          backend="native")
        forward = counter.get_total_flops()
        made.sum().backward()
    assert forward == 2 * 2 * 30 * (9 * (4 + 4) + 3 * 4)
    assert counter.get_total_flops() == 3 * forward


def test_attention_computes_under_autocast() -> None:
    layer = LocalAttention(16, query_channels=16, value_channels=16, design=SASA, footprint=3)
    with torch.autocast("cpu", torch.bfloat16):
        features = torch.rand(2, 16, 5, 5)
        assert layer(features).isfinite().all()
        assert layer.attention_weights(features).shape == (2, 8, 9, 25)


def test_a_backward_pass_behind_a_relu_needs_the_output() -> None:
    args, held = arguments(Local(), torch.float32, 1)
    held.pop("out")
    lacking = LocalArgs(**{name: getattr(args, name) for name, kind, *_ in args._fields_
                           if name not in held and name != "out" and kind.__name__ != "c_void_p"},
                        **held)
    with pytest.raises(BackendError, match="sanrobust_local_backward must be given"):
        library.require().call("sanrobust_local_backward", lacking)


@pytest.mark.parametrize("changed", [{"heads": 3}, {"heads": 0}, {"heads": 2.0},
                                     {"key": None, "embedding": None},
                                     {"embedding": torch.zeros(2, 5, 4)},
                                     {"value": torch.zeros(1, 8, 5, 6)},
                                     {"key": torch.zeros(1, 4, 5, 5)}])
def test_what_does_not_fit_is_refused(changed: dict[str, Any]) -> None:
    maps = torch.zeros(1, 8, 5, 5)
    given = {"query": maps, "key": maps, "value": maps, "embedding": torch.zeros(2, 3, 4),
             "heads": 2} | changed
    with pytest.raises(UsageError):
        functional.local_attention(**given, footprint=3)
    if isinstance(given["heads"], int):
        with pytest.raises(UsageError):
            torch.ops.sanrobust.local_attention(*given.values(), 3, "reflect", "native")
