"""The tuned pairwise kernels against the reference in float64, and their bits."""

from __future__ import annotations

import pytest
import torch
from native_cases import (TUNED, Case, assert_alike, assert_exact, images_of, joined, kernel_of,
                          level, numbers, require_library, run_native, truth)
from torch import Tensor

from sanrobust.kernels.native import library
from sanrobust.kernels.native.library import PairwiseArgs, address

RELATIONS = (16, 32, 64, 128)
# Footprint and map: the smallest legal ones of each footprint, odd sides, H != W either way,
# every pixel near a border, maps of two and of four bands.
REFLECTED = [(3, 2, 2), (3, 5, 3), (5, 3, 7), (7, 4, 4), (7, 9, 4), (9, 5, 6), (11, 6, 7),
             (7, 13, 5), (5, 25, 4)]
ZEROS = [(3, 1, 1), (5, 2, 1), (7, 1, 5), (7, 5, 9), (9, 2, 3), (11, 3, 2), (3, 24, 3)]


def case(relation: int, footprint: int, height: int, width: int, **settings: object) -> Case:
    return Case("pairwise", relation, relation // 2, footprint, height, width,
                **settings)  # type: ignore[arg-type]


def forward(relation: int, images: int, kept: Tensor | None) -> Tensor:
    """Return the output for random numbers on maps of 7x7, keeping the weights in ``kept``."""
    torch.manual_seed(0)
    groups, channels = relation // 2, 4 * relation
    w1, w2 = torch.randn(relation, relation), torch.randn(groups, relation)
    tensors = {"qkv": torch.randn(images, 7, 7, 2 * relation + channels),
               "w1t": w1, "w2t": w2, "table": torch.randn(50, relation),
               "out": torch.empty(images, 7, 7, channels), "alpha": kept}
    args = PairwiseArgs(images=images, height=7, width=7, relation=relation, hidden=relation,
                        groups=groups, channels=channels, footprint=7, threads=1,
                        **{name: address(tensor) for name, tensor in tensors.items()})
    require_library().call("sanrobust_pairwise_forward", args)
    return tensors["out"]


def room(count: int, skew: int) -> Tensor:
    """Return zeros that begin ``skew`` floats after a multiple of 64 bytes."""
    zeros = torch.zeros(count + 32)
    start = -(zeros.data_ptr() // 4) % 16 + skew
    return zeros[start:start + count]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("footprint", "height", "width"), REFLECTED)
def test_reflected_maps_match_the_truth(relation: int, footprint: int, height: int,
                                        width: int) -> None:
    assert_exact(case(relation, footprint, height, width))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("footprint", "height", "width"), ZEROS)
def test_maps_continued_by_zeros_match_the_truth(relation: int, footprint: int, height: int,
                                                 width: int) -> None:
    assert_exact(case(relation, footprint, height, width, padding_mode="zeros"))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("height", [4, 13])
def test_a_table_for_each_pixel_matches_the_truth(relation: int, height: int) -> None:
    # With zero padding: only then does the kernel's input need one.
    assert_exact(case(relation, 7, height, 9, padding_mode="zeros", table_per_pixel=True))


@pytest.mark.parametrize("relation", RELATIONS)
def test_output_without_epilogue_matches_the_truth(relation: int) -> None:
    assert_exact(case(relation, 5, 4, 7, epilogue=False))


@pytest.mark.parametrize("width", [11, 17, 35])
def test_rows_that_end_inside_a_strip_match_the_truth(width: int) -> None:
    assert_exact(case(16, 7, 5, width))


@pytest.mark.parametrize("name", library.LEVELS)
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
def test_every_level_of_instructions_matches_the_truth(relation: int, padding_mode: str,
                                                       name: str) -> None:
    assert_exact(case(relation, 5, 4, 9, padding_mode=padding_mode), level(name))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
def test_the_tuned_kernels_take_the_shapes_of_the_networks(relation: int,
                                                           padding_mode: str) -> None:
    for footprint in (3, 5, 7, 9, 11):
        assert kernel_of(case(relation, footprint, 14, 14, padding_mode=padding_mode)) == TUNED


def test_other_widths_and_footprints_are_left_to_the_generic_kernels() -> None:
    for other in (case(24, 7, 14, 14), case(16, 13, 14, 14)):
        assert kernel_of(other) == 0


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("height", [5, 13, 25])
def test_bits_do_not_depend_on_the_batch(relation: int, height: int) -> None:
    whole = case(relation, 7, height, 5, images=5)
    made = numbers(whole)
    parts = [run_native(*images_of(whole, made, first, end)) for first, end in ((0, 1), (1, 3),
                                                                                (3, 5))]
    assert_alike(run_native(whole, made), joined(parts))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
def test_bits_do_not_depend_on_the_threads(relation: int, padding_mode: str) -> None:
    whole = case(relation, 7, 25, 9, images=3, padding_mode=padding_mode)
    made = numbers(whole)
    alone = run_native(whole, made, threads=1)
    for threads in (2, 4):
        assert_alike(run_native(whole, made, threads=threads), alone)


def test_more_images_than_halos_are_kept_give_the_same_bits() -> None:
    whole = case(16, 3, 12, 2, images=40)
    made = numbers(whole)
    parts = [run_native(*images_of(whole, made, first, first + 8)) for first in range(0, 40, 8)]
    assert_alike(run_native(whole, made), joined(parts))


@pytest.mark.parametrize("relation", RELATIONS)
def test_output_does_not_depend_on_whether_the_weights_are_kept(relation: int) -> None:
    kept = torch.empty(2, 49, 49, relation // 2)
    assert torch.equal(forward(relation, 2, kept), forward(relation, 2, None))


@pytest.mark.parametrize("relation", RELATIONS)
def test_weights_do_not_depend_on_the_way_they_are_written(relation: int) -> None:
    # So many go past the caches, but only to an address that is a multiple of 64.
    images = 2 ** 22 // (relation * 49 ** 2)
    aligned, skewed = (room(images * 49 * 49 * relation // 2, skew) for skew in (0, 1))
    forward(relation, images, aligned)
    forward(relation, images, skewed)
    assert torch.equal(aligned, skewed)


def test_an_empty_batch_is_left_alone() -> None:
    empty = case(16, 3, 4, 5)
    result = run_native(*images_of(empty, numbers(empty), 0, 0))
    assert result.out.shape == (0, 4, 5, 64)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
def test_nan_spreads_to_what_sees_it_and_no_further(relation: int, padding_mode: str) -> None:
    single = case(relation, 3, 4, 9, images=1, padding_mode=padding_mode)
    made = numbers(single)
    made.qkv[0, 1, 2, relation] = float("nan")
    result = run_native(single, made)
    expected = torch.zeros(4, 9, dtype=torch.bool)
    expected[0:3, 1:4] = True
    for output in (result.y, result.out):
        assert torch.equal(output[0].isnan().all(-1), expected)
        assert torch.equal(output[0].isnan().any(-1), expected)


def test_an_infinite_logit_becomes_nan_as_in_the_reference() -> None:
    single = case(16, 3, 4, 5, images=1)
    made = numbers(single)
    made.qkv[0, 1, 2, :16] = float("inf")
    expected = truth(single, made, torch.float32).y.isnan()
    assert expected.any()
    assert torch.equal(run_native(single, made).y.isnan(), expected)
