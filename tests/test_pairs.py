"""The products of all pairs of neighbours, gathered, against the neighbours' own products."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sanrobust.kernels import functional
from sanrobust.kernels.mappings import RelationLayer
from sanrobust.kernels.pairs import gathered
from sanrobust.kernels.plain import Window
from sanrobust.kernels.relations import Sizes, find

CASES = [(5, 6, 3), (4, 9, 5), (2, 2, 3), (1, 1, 1)]


def products(images: int, height: int, width: int, footprint: int) -> Tensor:
    margin = footprint - 1
    return torch.randn(images, (2 * footprint - 1) ** 2, height + margin, width + margin,
                       dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("padding", ("reflect", "zeros"))
@pytest.mark.parametrize("height, width, footprint", CASES)
def test_a_clique_holds_the_products_of_all_neighbours(height: int, width: int, footprint: int,
                                                       padding: str) -> None:
    query, key = (torch.randn(2, 3, height, width, dtype=torch.float64) for _ in "qk")
    window = Window(footprint, padding_mode=padding)  # type: ignore[arg-type]
    layer = RelationLayer(find("patchwise", "clique"), Sizes(3, footprint ** 2), window)
    rows, columns = (functional.neighbours(each, footprint=footprint,
                                           padding_mode=window.padding_mode)
                     for each in (query, key))
    wanted = torch.einsum("bcjl,bckl->bjkl", rows, columns).flatten(1, 2).unsqueeze(2)
    (found,) = layer(query, key)
    assert found.shape == (2, layer.width, 1, height * width)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("height, width, footprint", [(2, 3, 3), (1, 1, 5), (2, 1, 1)])
def test_gathering_is_differentiable_twice(height: int, width: int, footprint: int) -> None:
    given = products(1, height, width, footprint)
    assert gradcheck(lambda each: gathered(each, footprint), (given,), check_forward_ad=True)
    assert gradgradcheck(lambda each: gathered(each, footprint), (given,))


def test_gathering_can_be_transformed() -> None:
    given = products(3, 4, 5, 3).detach()
    whole, one_by_one = gathered(given, 3), torch.func.vmap(
        lambda each: gathered(each[None], 3)[0])(given)
    assert torch.equal(whole, one_by_one)
    grad = torch.func.grad(lambda each: gathered(each, 3).square().sum())(given)
    each_grad = torch.func.vmap(torch.func.grad(
        lambda each: gathered(each[None], 3).square().sum()))(given)
    assert torch.allclose(grad, each_grad, rtol=1e-12)
