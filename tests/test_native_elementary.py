"""Native aggregation and subtraction: forward and gradients against the torch formulation."""

from __future__ import annotations

import random

import pytest
import torch
from kernel_truth import ELEMENT, PADDING, drawing, error

from sanrobust.kernels import reference
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import STRUCTS
from sanrobust.kernels.reference import Window

pytestmark = pytest.mark.skipif(library.refusal() is not None,
                                reason=f"native kernels: {library.refusal()}")

# Sums of up to 121 * 8 products of numbers around 1, in another order.
DOUBLE_TOLERANCE = 1e-13


class Aggregation:
    """Values (B, O, H, W) and weights (B, M, K2, L) of one case."""

    function = "sanrobust_aggregation"

    def __init__(self, window, *, images=2, groups=2, shared=3, height=5, width=7, seed=0):
        draw = drawing(seed)
        self.window, self.groups = window, groups
        value = draw(images, groups * shared, height, width)
        positions = size_of(window, value)
        self.first = value
        self.second = draw(images, groups, window.neighbours, positions[0] * positions[1])
        self.grad = draw(images, groups * shared, *positions)

    def truth(self, first, second):
        return reference.aggregation(first, second, self.window)


class Subtraction:
    """Queries and keys (B, R, H, W) of one case."""

    function = "sanrobust_subtraction"

    def __init__(self, window, *, images=2, groups=1, shared=3, height=5, width=7, seed=0):
        draw = drawing(seed)
        self.window, self.groups = window, groups
        self.first = draw(images, groups * shared, height, width)
        self.second = draw(images, groups * shared, height, width)
        down, across = size_of(window, self.first)
        self.grad = draw(images, groups * shared, window.neighbours, down * across)

    def truth(self, first, second):
        return reference.subtraction(first, second, self.window)


OPERATORS = (Aggregation, Subtraction)


def size_of(window, maps):
    return window.output_size(maps)


def expected(case, dtype=torch.float64):
    """Return the output and both gradients by torch in ``dtype``, as float64."""
    first, second = (each.to(dtype).requires_grad_() for each in (case.first, case.second))
    out = case.truth(first, second)
    grads = torch.autograd.grad(out, (first, second), case.grad.to(dtype))
    return [each.detach().double() for each in (out, *grads)]


def computed(case, dtype=torch.float64, *, threads=1, level=None, wanted=("first", "second")):
    """Return the same by the native kernels; a gradient not ``wanted`` is None."""
    kernels = library.load() if level is None else library.load_level(level)
    held = {name: getattr(case, name).to(dtype).contiguous()
            for name in ("first", "second", "grad")}
    # NaN wherever a kernel forgets to write.
    held["out"] = torch.full_like(held["grad"], torch.nan)
    for name in wanted:
        held[f"grad_{name}"] = torch.full_like(held[name], torch.nan)
    images, channels, height, width = case.first.shape
    window = case.window
    args = STRUCTS[case.function + "_forward"](
        images=images, height=height, width=width, channels=channels, groups=case.groups,
        footprint=window.footprint, stride=window.stride, dilation=window.dilation,
        padding=PADDING[window.padding_mode], element=ELEMENT[dtype], threads=threads,
        **held)
    kernels.call(case.function + "_forward", args)
    kernels.call(case.function + "_backward", args)
    return [None if held.get(name) is None else held[name].double()
            for name in ("out", "grad_first", "grad_second")]


def assert_right(case, **how):
    for name, found, wanted in zip(("out", "grad_first", "grad_second"), computed(case, **how),
                                   expected(case)):
        assert error(found, wanted) < DOUBLE_TOLERANCE, name


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("operator", OPERATORS)
def test_output_and_gradients_are_the_references(operator, stride, dilation, padding_mode):
    assert_right(operator(Window(3, stride, dilation, padding_mode), height=7, width=9))


@pytest.mark.parametrize("footprint", [1, 3, 5, 7, 11])
@pytest.mark.parametrize("operator", OPERATORS)
def test_smallest_maps_that_reflect(operator, footprint):
    side = footprint // 2 + 1
    assert_right(operator(Window(footprint), height=side, width=side + 1))


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_pixel_with_zeros_around_it(operator):
    assert_right(operator(Window(5, padding_mode="zeros"), height=1, width=1))


@pytest.mark.parametrize("operator", OPERATORS)
def test_rows_longer_than_a_block_and_many_channels(operator):
    assert_right(operator(Window(3), height=19, width=37, groups=1, shared=11))


@pytest.mark.parametrize("trial", range(20))
@pytest.mark.parametrize("operator", OPERATORS)
def test_random_shapes(operator, trial):
    choose = random.Random(trial)
    window = Window(choose.choice([1, 3, 5, 7]), choose.randint(1, 3), choose.randint(1, 3),
                    choose.choice(["reflect", "zeros"]))
    least = window.padding + 1 if window.padding_mode == "reflect" else 1
    assert_right(operator(window, images=choose.randint(1, 3), groups=choose.randint(1, 4),
                          shared=choose.choice([1, 2, 8, 9]), seed=trial,
                          height=choose.randint(least, least + 12),
                          width=choose.randint(least, least + 20)))


@pytest.mark.parametrize("operator", OPERATORS)
def test_float32_errs_at_most_twice_as_much_as_torch(operator):
    case = operator(Window(7), height=14, width=17, groups=4, shared=8)
    for found, torchs, wanted in zip(computed(case, torch.float32),
                                     expected(case, torch.float32), expected(case)):
        # 1e-7: one rounding, where torch happens to make none.
        assert error(found, wanted) <= 2 * error(torchs, wanted) + 1e-7


@pytest.mark.parametrize("wanted", ["first", "second"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_one_gradient_alone_is_the_same(operator, wanted):
    case = operator(Window(3, 2))
    index = 1 if wanted == "first" else 2
    assert torch.equal(computed(case, wanted=(wanted,))[index], computed(case)[index])


@pytest.mark.parametrize("operator", OPERATORS)
def test_bits_do_not_depend_on_batch_or_threads(operator):
    case = operator(Window(5), images=3, height=18, width=23, groups=2, shared=9)
    whole = computed(case, torch.float32)
    assert all(map(torch.equal, whole, computed(case, torch.float32, threads=2)))
    for name in ("first", "second", "grad"):
        setattr(case, name, getattr(case, name)[1:2])
    alone = computed(case, torch.float32)
    assert all(torch.equal(all_of[1:2], one) for all_of, one in zip(whole, alone))


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_level_of_instructions_agrees(operator):
    case = operator(Window(5, 1, 2), height=9, width=21)
    wanted = expected(case)
    for level in library.levels():
        for found, right in zip(computed(case, level=level), wanted):
            assert error(found, right) < DOUBLE_TOLERANCE, level


@pytest.mark.parametrize("operator", OPERATORS)
def test_nan_spreads_to_the_positions_that_see_it_and_no_further(operator):
    case = operator(Window(3), images=1, groups=1, shared=1, height=6, width=8)
    second = case.second if operator is Subtraction else case.first
    second[0, 0, 2, 3] = torch.nan
    assert torch.equal(computed(case)[0].isnan(), expected(case)[0].isnan())
