"""What only the tuned pairwise kernels have: tables, strips, weights that are kept."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch
from kernel_truth import (PLANAR, TUNED, Pairwise, assert_alike, assert_exact, kernel_of,
                          require_library, results, san_case, smooth, truths)
from torch import Tensor

from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import (CONCATENATION, DOT, HADAMARD, L, LRL, LRLRL,
                                                SUBTRACTION, PairwiseArgs)

RELATIONS = (16, 32, 64, 128)
DESIGNS = list(product((SUBTRACTION, HADAMARD, DOT, CONCATENATION), (L, LRL, LRLRL)))
# Width of the mapping, compared channels as a multiple of it, footprint and map: the planar
# kernel's first, the smallest legal maps and those that end inside a vector or a tile.
SHAPES = [(4, 1, 3, 2, 2), (4, 1, 3, 5, 18), (4, 4, 3, 3, 17), (16, 1, 7, 4, 4), (16, 4, 3, 5, 3),
          (32, 1, 5, 3, 7), (32, 4, 5, 4, 3), (64, 1, 7, 4, 5), (128, 1, 3, 2, 3),
          (128, 4, 3, 2, 2)]
TABLES: tuple[dict[str, bool], ...] = ({}, {"by_place": True}, {"per_pixel": True})


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
    assert_exact(smooth(san_case, "pairwise", relation, 7, height, 9, padding="zeros",
                        per_pixel=True))


@pytest.mark.parametrize("width", [11, 17, 35])
def test_rows_that_end_inside_a_strip_match_the_truth(width: int) -> None:
    assert_exact(smooth(san_case, "pairwise", 16, 7, 5, width))


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
    single = san_case("pairwise", 16, 3, 4, 5, images=1)
    single.qkv.view(4, 5, -1)[1, 2, :16] = float("inf")
    expected = truths(single, torch.float32)["y"].isnan()
    assert expected.any()
    assert torch.equal(results(single, torch.float32)["y"].isnan(), expected)


def designed(delta: int, mapping: int, shape: tuple[int, ...], **settings: Any) -> Pairwise:
    """Return a case of a shape without a pre-activation next to zero."""
    hidden, parts, footprint, height, width = shape
    return smooth(Pairwise, delta=delta, mapping=mapping, relation=parts * hidden, hidden=hidden,
                  groups=hidden // 2, channels=4 * hidden, footprint=footprint, height=height,
                  width=width, **settings)


def assert_designed(case: Pairwise, level: str | None = None) -> None:
    assert kernel_of(case) == (PLANAR if case.widths["channels"] == 16 else TUNED)
    assert_exact(case, level)


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_relation_with_every_mapping_matches_the_truth(shape: tuple[int, ...],
                                                             padding: str) -> None:
    for (delta, mapping), table in zip(DESIGNS, cycle(TABLES)):
        assert_designed(designed(delta, mapping, shape, padding=padding, images=1, **table))


@pytest.mark.parametrize("name", library.levels())
def test_every_level_of_instructions_computes_every_design(name: str) -> None:
    for (delta, mapping), shape, table in zip(DESIGNS, cycle(SHAPES[1:8]), cycle(TABLES)):
        assert_designed(designed(delta, mapping, shape, padding="zeros", images=1, **table), name)


@pytest.mark.parametrize(("delta", "mapping"), DESIGNS)
def test_no_bit_of_a_design_depends_on_batch_or_threads(delta: int, mapping: int) -> None:
    for shape in ((4, 1, 3, 31, 18), (16, 1, 5, 13, 6)):
        case = designed(delta, mapping, shape, images=3, by_place=True)
        assert_alike(case, [case], threads=3)
        assert_alike(case, [case.images(0, 1), case.images(1, 3)])
