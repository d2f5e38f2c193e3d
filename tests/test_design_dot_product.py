"""The dot product of maps over footprints, against loops and finite differences."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from attention_cases import BACKENDS, EXACT, maps_of
from oracles import loop_neighbours
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sanrobust.errors import UsageError
from sanrobust.kernels import functional

PRODUCTS = [(1, 1, 1, "reflect"), (2, 2, 1, "zeros"), (6, 1, 2, "reflect"), (3, 2, 2, "zeros")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("groups", "stride", "dilation", "padding_mode"), PRODUCTS)
def test_dot_product_equals_explicit_loops(groups: int, stride: int, dilation: int,
                                           padding_mode: str, backend: str) -> None:
    settings = dict(footprint=3, stride=stride, dilation=dilation, padding_mode=padding_mode)
    query, key = maps_of(2, 6, 5, 7), maps_of(2, 6, 5, 7, seed=2)
    centres = query[:, :, ::stride, ::stride].flatten(2)
    around = loop_neighbours(key, **settings)
    expected = torch.zeros(2, groups, 9, around.shape[-1], dtype=torch.float64)
    for c, n in product(range(6), range(9)):
        expected[:, c % groups, n] += centres[:, c] * around[:, c, n]
    actual = functional.dot_product(query, key, groups=groups, backend=backend, **settings)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("groups", "stride", "dilation", "padding_mode"), PRODUCTS)
def test_dot_product_has_first_and_second_derivatives(
        groups: int, stride: int, dilation: int, padding_mode: str, backend: str) -> None:
    def product_of(query: Tensor, key: Tensor) -> Tensor:
        return functional.dot_product(query, key, groups=groups, footprint=3, stride=stride,
                                      dilation=dilation, padding_mode=padding_mode,
                                      backend=backend)

    maps = maps_of(1, 6, 3, 4).requires_grad_(), maps_of(1, 6, 3, 4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(product_of, maps)
    assert torch.autograd.gradgradcheck(product_of, maps, fast_mode=True)


def test_a_dot_product_computes_only_the_gradients_asked_for() -> None:
    query, key = maps_of(1, 2, 3, 4), maps_of(1, 2, 3, 4, seed=2).requires_grad_()
    found = functional.dot_product(query, key, footprint=3)
    assert torch.autograd.grad(found.sum(), key)[0].shape == key.shape
    assert not functional.dot_product(query, query, footprint=3).requires_grad


def test_a_dot_product_of_no_images_is_empty() -> None:
    maps = maps_of(0, 4, 3, 4)
    assert functional.dot_product(maps, maps, groups=2, footprint=3).shape == (0, 2, 9, 12)


def test_groups_of_a_dot_product_must_divide_its_channels() -> None:
    maps = maps_of(1, 4, 3, 4)
    with pytest.raises(UsageError, match=r"channels of query \(4\) must be a multiple"):
        functional.dot_product(maps, maps, groups=3, footprint=3)
    with pytest.raises(UsageError, match="key must have shape"):
        functional.dot_product(maps, maps[:, :2], footprint=3)


def test_a_dot_product_costs_one_multiply_add_for_each_channel_of_each_pair() -> None:
    maps = torch.empty(2, 6, 5, 7, device="meta")
    with FlopCounterMode(display=False) as counter:
        functional.dot_product(maps, maps, groups=3, footprint=3, backend="reference")
    assert counter.get_total_flops() == 2 * 2 * 6 * 9 * 35
