"""What only the tuned pairwise kernels have: tables, strips, weights that are kept."""

from __future__ import annotations

import pytest
import torch
from native_cases import assert_exact, numbers, require_library, run_native, truth, tuned_case
from torch import Tensor

from sanrobust.kernels.native.arguments import PairwiseArgs

RELATIONS = (16, 32, 64, 128)


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
                        **tensors)
    require_library().call("sanrobust_pairwise_forward", args)
    return tensors["out"]


def room(count: int, skew: int) -> Tensor:
    """Return zeros that begin ``skew`` floats after a multiple of 64 bytes."""
    zeros = torch.zeros(count + 32)
    start = -(zeros.data_ptr() // 4) % 16 + skew
    return zeros[start:start + count]


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("height", [4, 13])
def test_a_table_for_each_pixel_matches_the_truth(relation: int, height: int) -> None:
    # With zero padding: only then does the kernel's input need one.
    assert_exact(tuned_case("pairwise", relation, 7, height, 9, padding_mode="zeros",
                            table_per_pixel=True))


@pytest.mark.parametrize("width", [11, 17, 35])
def test_rows_that_end_inside_a_strip_match_the_truth(width: int) -> None:
    assert_exact(tuned_case("pairwise", 16, 7, 5, width))


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


def test_an_infinite_logit_becomes_nan_as_in_the_reference() -> None:
    single = tuned_case("pairwise", 16, 3, 4, 5, images=1)
    made = numbers(single)
    made.qkv[0, 1, 2, :16] = float("inf")
    expected = truth(single, made, torch.float32).y.isnan()
    assert expected.any()
    assert torch.equal(run_native(single, made).y.isnan(), expected)
