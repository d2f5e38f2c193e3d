"""The generic attention kernels: any shape, against the torch formulation in float64."""

from __future__ import annotations

import random

import pytest
import torch
from kernel_truth import Pairwise, Patchwise, arguments, computed, error, expected

from sanrobust.errors import BackendError
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import (CONCATENATION, DOT, HADAMARD, LRL, LRLRL,
                                                SUBTRACTION, L)

pytestmark = pytest.mark.skipif(library.refusal() is not None,
                                reason=f"native kernels: {library.refusal()}")

OPERATORS = (Pairwise, Patchwise)
DELTAS = (SUBTRACTION, HADAMARD, DOT, CONCATENATION)
MAPPINGS = (L, LRL, LRLRL)
# Some thousand operations on numbers around 1, in another order.
DOUBLE_TOLERANCE = 1e-12
# No tuned or planar kernel takes five channels, in float32 either.
GENERIC = {"relation": 5, "hidden": 6, "groups": 3, "channels": 24}


def assert_right(case, **how):
    for name, found, wanted in zip(("out", "grad_qkv"), computed(case, **how), expected(case)):
        assert error(found, wanted) < DOUBLE_TOLERANCE, name


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("footprint", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("operator", OPERATORS)
def test_output_and_gradient_on_small_odd_maps(operator, footprint, padding):
    side = footprint // 2 + 1
    assert_right(operator(footprint=footprint, padding=padding, height=side, width=side + 2))


@pytest.mark.parametrize("operator", OPERATORS)
def test_maps_in_several_bands(operator):
    assert_right(operator(height=25, width=9, footprint=5, images=1))
    assert_right(operator(height=13, width=34, footprint=7, images=1))


@pytest.mark.parametrize("relation, groups", [(2, 1), (4, 2), (8, 4), (16, 8)])
@pytest.mark.parametrize("operator", OPERATORS)
def test_widths_of_the_small_networks(operator, relation, groups):
    assert_right(operator(relation=relation, hidden=relation, groups=groups, channels=8 * groups,
                          footprint=5, height=4, width=4))


@pytest.mark.parametrize("operator", OPERATORS)
def test_without_scale_and_shift(operator):
    assert_right(operator(epilogue=False))


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_a_table_for_every_pixel(padding):
    assert_right(Pairwise(per_pixel=True, padding=padding, footprint=5, height=13, width=6))


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("delta", DELTAS)
def test_every_relation_with_every_mapping(delta, mapping, padding):
    settings = dict(relation=6, hidden=5, groups=3, channels=24, padding=padding, delta=delta,
                    mapping=mapping)
    assert_right(Pairwise(**settings, height=4, width=7, by_place=True))
    assert_right(Pairwise(**settings, height=3, width=3, footprint=5))


@pytest.mark.parametrize("trial", range(25))
@pytest.mark.parametrize("operator", OPERATORS)
def test_random_shapes(operator, trial):
    choose = random.Random(trial)
    footprint, groups = choose.choice([1, 3, 5, 7]), choose.randint(1, 5)
    padding = choose.choice(["reflect", "zeros"])
    least = footprint // 2 + 1 if padding == "reflect" else 1
    settings = dict(images=choose.randint(1, 3), height=choose.randint(least, least + 12),
                    width=choose.randint(least, least + 20), relation=choose.randint(1, 17),
                    hidden=choose.randint(1, 17), groups=groups, padding=padding,
                    channels=groups * choose.choice([1, 3, 8, 11]), footprint=footprint,
                    epilogue=choose.random() < 0.5, seed=trial)
    if operator is Pairwise:
        table = choose.choice(["", "", "per_pixel", "by_place"])
        settings.update({table: True} if table else {})
        settings.update(delta=choose.choice(DELTAS), mapping=choose.choice(MAPPINGS))
        # The rows of a concatenation have room for what the first layer makes of each half.
        settings["relation"] = max(settings["relation"], settings["hidden"], groups)
    assert_right(operator(**settings))


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_float32_errs_at_most_twice_as_much_as_torch(operator, padding):
    case = operator(**GENERIC, footprint=5, height=9, width=12, images=1, padding=padding)
    truth = expected(case)
    # 3e-7: a few roundings, where torch happens to make fewer.
    for found, torchs, wanted in zip(computed(case, torch.float32),
                                     expected(case, torch.float32), truth):
        assert error(found, wanted) <= 2 * error(torchs, wanted) + 3e-7


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_gradient_is_that_of_the_output(operator):
    case = operator(**GENERIC, height=4, width=5, images=1)
    step = 1e-6 * torch.randn(case.qkv.shape, dtype=torch.float64,
                              generator=torch.Generator().manual_seed(1))
    _, grad = computed(case)
    outputs = []
    for sign in (1, -1):
        moved = operator(**GENERIC, height=4, width=5, images=1)
        moved.qkv = case.qkv + sign * step
        outputs.append((computed(moved)[0] * case.grad).sum())
    slope = (outputs[0] - outputs[1]) / 2
    # Central differences: an error of the step squared, and rounding of the sum over the step.
    assert slope == pytest.approx((grad * step).sum().item(), rel=1e-5)


@pytest.mark.parametrize("operator", OPERATORS)
def test_bits_do_not_depend_on_batch_or_threads(operator):
    case = operator(**GENERIC, images=3, height=25, width=7, footprint=5)
    whole = computed(case, torch.float32)
    assert all(map(torch.equal, whole, computed(case, torch.float32, threads=3)))
    pixels = slice(25 * 7, 2 * 25 * 7)
    case.size, case.qkv, case.grad = (1, 25, 7), case.qkv[pixels], case.grad[pixels]
    alone = computed(case, torch.float32)
    assert all(torch.equal(all_of[pixels], one) for all_of, one in zip(whole, alone))


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_level_of_instructions_agrees(operator):
    case = operator(**GENERIC, height=13, width=11, footprint=5)
    for level in library.levels():
        assert_right(case, level=level)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_nan_spreads_to_the_pixels_that_see_it_and_no_further(operator, padding):
    case = operator(**GENERIC, height=6, width=9, images=1, padding=padding)
    case.qkv[3 * 9 + 8] = torch.nan
    out, grad = computed(case)
    truth, true_grad = expected(case)
    assert torch.equal(out.isnan(), truth.isnan())
    seen = true_grad.isnan().any(1)
    assert torch.equal(grad.isnan().any(1), seen)
    assert error(grad[~seen], true_grad[~seen]) < DOUBLE_TOLERANCE


@pytest.mark.parametrize("operator", OPERATORS)
def test_numbers_that_overflow_do_not_come_out_finite(operator):
    case = operator(**{**GENERIC, "hidden": 1}, images=1, epilogue=False)
    # One product for each weight, so that the truth does not hang on the order of a sum.
    case.w1, case.w2 = case.w1 * 1e3, case.w2.sign() * 1.7e308
    finite = expected(case)[0].isfinite()
    assert finite.any() and not finite.all()
    assert torch.equal(computed(case)[0].isfinite(), finite)


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_images_is_no_error(operator):
    out, grad = computed(operator(images=0, epilogue=False))
    assert out.shape[0] == grad.shape[0] == 0


@pytest.mark.parametrize("operator", OPERATORS)
def test_either_output_may_be_left_out(operator):
    case = operator(**GENERIC)
    args, held = arguments(case, torch.float64, 1)
    both = computed(case)[0]
    args.y = None
    library.load().call(case.function + "_forward", args)
    assert torch.equal(held["out"], both)
    args, held = arguments(case, torch.float64, 1)
    args.out = None
    library.load().call(case.function + "_forward", args)
    assert error((held["y"] * case.scale + case.shift).relu(), both) < DOUBLE_TOLERANCE


def test_the_generic_kernels_were_meant():
    for case in (Pairwise(**GENERIC), Patchwise(**GENERIC)):
        args, _ = arguments(case, torch.float32, 1)
        assert library.load().query(case.function + "_tuned", args) == 0


def test_an_unknown_kernel_is_a_missing_attribute_not_a_crash():
    with pytest.raises(AttributeError):
        library.load().query("sanrobust_nothing")


def test_the_error_names_the_arguments():
    error_of = library.Library.call
    with pytest.raises(BackendError, match="relation=5"):
        case = Pairwise(**GENERIC)
        args, _ = arguments(case, torch.float32, 1)
        error_of(Refusing(), "sanrobust_pairwise_forward", args)


class Refusing:
    """A library whose kernels take nothing."""

    def query(self, function, args):
        return 1
