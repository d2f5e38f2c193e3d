"""The tuned attention kernels against the reference in float64, and their bits."""

from __future__ import annotations

import pytest
import torch
from kernel_truth import (TUNED, Pairwise, Patchwise, assert_alike, assert_exact,
                          kernel_of, results, san_case, smooth)

from sanrobust.kernels.native import library

RELATIONS = (16, 32, 64, 128)
# Footprint and map: the smallest legal ones of each footprint, odd sides, H != W either way,
# every pixel near a border, maps that end inside a tile, maps of two and of four bands.
REFLECTED = [(3, 2, 2), (3, 5, 3), (5, 3, 7), (7, 4, 4), (7, 9, 4), (9, 5, 6), (11, 6, 7),
             (7, 13, 5), (5, 25, 4)]
ZEROS = [(3, 1, 1), (5, 2, 1), (7, 1, 5), (7, 5, 9), (9, 2, 3), (11, 3, 2), (3, 24, 3)]

pytestmark = pytest.mark.parametrize("kind", ["pairwise", "patchwise"])


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("footprint", "height", "width"), REFLECTED)
def test_reflected_maps_match_the_truth(kind: str, relation: int, footprint: int, height: int,
                                        width: int) -> None:
    assert_exact(smooth(san_case, kind, relation, footprint, height, width))


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("footprint", "height", "width"), ZEROS)
def test_maps_continued_by_zeros_match_the_truth(kind: str, relation: int, footprint: int,
                                                 height: int, width: int) -> None:
    assert_exact(smooth(san_case, kind, relation, footprint, height, width, padding="zeros"))


@pytest.mark.parametrize("relation", RELATIONS)
def test_output_without_epilogue_matches_the_truth(kind: str, relation: int) -> None:
    assert_exact(smooth(san_case, kind, relation, 5, 4, 7, epilogue=False))


@pytest.mark.parametrize("name", library.LEVELS)
@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_every_level_of_instructions_matches_the_truth(kind: str, relation: int, padding: str,
                                                       name: str) -> None:
    assert_exact(smooth(san_case, kind, relation, 5, 4, 9, padding=padding), name)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_the_tuned_kernels_take_the_shapes_of_the_networks(kind: str, relation: int,
                                                           padding: str) -> None:
    for footprint in (3, 5, 7, 9, 11):
        network = san_case(kind, relation, footprint, 14, 14, padding=padding)
        assert kernel_of(network) == TUNED


def test_other_widths_and_footprints_are_left_to_the_generic_kernels(kind: str) -> None:
    for other in (san_case(kind, 24, 7, 14, 14), san_case(kind, 16, 13, 14, 14)):
        assert kernel_of(other) == 0


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("height", [5, 13, 25])
def test_bits_do_not_depend_on_the_batch(kind: str, relation: int, height: int) -> None:
    assert_batch_is_free(san_case(kind, relation, 7, height, 5, images=5), [0, 1, 3, 5])


def test_more_images_than_halos_are_kept_give_the_same_bits(kind: str) -> None:
    assert_batch_is_free(san_case(kind, 16, 3, 12, 2, images=40), [0, 8, 16, 24, 32, 40])


def assert_batch_is_free(whole: Pairwise | Patchwise, cuts: list[int]) -> None:
    assert_alike(whole, [whole.images(first, end) for first, end in zip(cuts, cuts[1:])])


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_bits_do_not_depend_on_the_threads(kind: str, relation: int, padding: str) -> None:
    whole = san_case(kind, relation, 7, 25, 9, images=3, padding=padding)
    for threads in (2, 4):
        assert_alike(whole, [whole], threads=threads)


def test_an_empty_batch_is_left_alone(kind: str) -> None:
    assert results(san_case(kind, 16, 3, 4, 5, images=0), torch.float32)["out"].shape == (0, 64)


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_nan_spreads_to_what_sees_it_and_no_further(kind: str, relation: int,
                                                    padding: str) -> None:
    single = san_case(kind, relation, 3, 4, 9, images=1, padding=padding)
    single.qkv.view(4, 9, -1)[1, 2, relation] = float("nan")
    found = results(single, torch.float32)
    expected = torch.zeros(4, 9, dtype=torch.bool)
    expected[0:3, 1:4] = True
    for name in ("y", "out"):
        assert torch.equal(found[name].isnan().all(-1), expected.flatten())
        assert torch.equal(found[name].isnan().any(-1), expected.flatten())
