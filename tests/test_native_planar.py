"""The kernels whose lanes are pixels against the reference in float64, and their own bits."""

from __future__ import annotations

import pytest
import torch
from kernel_truth import (PLANAR, Pairwise, Patchwise, assert_alike, assert_exact, kernel_of,
                          results, san_case, smooth)

from sanrobust.kernels.native import library

KINDS = ("pairwise", "patchwise")
# The smallest legal maps, H != W either way, widths around multiples of 4, 8 and 16 lanes, one
# beyond the common width, maps of several bands.
REFLECTED = [(2, 2), (2, 5), (5, 2), (3, 3), (4, 17), (3, 18), (7, 16), (3, 33), (30, 5),
             (2, 113), (57, 9)]
ZEROS = [(1, 1), (1, 4), (4, 1), (2, 2), (3, 9), (5, 16), (3, 18), (29, 3), (2, 113)]


def case(kind: str, height: int, width: int, **settings: object) -> Pairwise | Patchwise:
    return san_case(kind, 4, 3, height, width, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), REFLECTED)
def test_reflected_maps_match_the_truth(kind: str, height: int, width: int) -> None:
    assert_exact(smooth(case, kind, height, width))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), ZEROS)
def test_maps_continued_by_zeros_match_the_truth(kind: str, height: int, width: int) -> None:
    assert_exact(smooth(case, kind, height, width, padding="zeros"))


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 5), (5, 17), (29, 4), (2, 113)])
def test_positions_of_each_pixel_match_the_truth(height: int, width: int,
                                                 padding: str) -> None:
    assert_exact(smooth(case, "pairwise", height, width, padding=padding, per_pixel=True))


@pytest.mark.parametrize("kind", KINDS)
def test_output_without_epilogue_matches_the_truth(kind: str) -> None:
    assert_exact(smooth(case, kind, 4, 7, epilogue=False))


@pytest.mark.parametrize("name", library.LEVELS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 9), (5, 17), (30, 34)])
def test_every_level_of_instructions_matches_the_truth(kind: str, height: int, width: int,
                                                       name: str) -> None:
    assert_exact(smooth(case, kind, height, width), name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", ["reflect", "zeros"])
def test_the_planar_kernels_take_the_first_stage(kind: str, padding: str) -> None:
    assert kernel_of(case(kind, 112, 112, padding=padding)) == PLANAR


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_batch(kind: str) -> None:
    whole = case(kind, 31, 21, images=5)
    assert_alike(whole, [whole.images(first, end) for first, end in ((0, 1), (1, 3), (3, 5))])


@pytest.mark.parametrize("kind", KINDS)
def test_bits_do_not_depend_on_the_threads(kind: str) -> None:
    tables = {"per_pixel": True} if kind == "pairwise" else {}
    whole = case(kind, 31, 21, images=3, **tables)
    for threads in (2, 4):
        assert_alike(whole, [whole], threads=threads)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_left_alone(kind: str) -> None:
    assert results(case(kind, 4, 5, images=0), torch.float32)["out"].shape == (0, 16)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_spreads_to_what_sees_it_and_no_further(kind: str) -> None:
    single = case(kind, 5, 20, images=1)
    single.qkv.view(5, 20, -1)[2, 15, 4] = float("nan")
    found = results(single, torch.float32)
    expected = torch.zeros(5, 20, dtype=torch.bool)
    expected[1:4, 14:17] = True
    for name in ("y", "out"):
        assert torch.equal(found[name].isnan().all(-1), expected.flatten())
        assert torch.equal(found[name].isnan().any(-1), expected.flatten())
