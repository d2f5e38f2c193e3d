"""The products of all pairs of neighbours, gathered, against the neighbours' own products."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sanrobust.design import PATCHWISE
from sanrobust.kernels import functional
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.mappings import RelationLayer
from sanrobust.kernels.modules import PatchwiseAttention
from sanrobust.kernels.pairs import gathered
from sanrobust.kernels.plain import Window
from sanrobust.kernels.relations import Sizes, find

CASES = [(5, 6, 3), (4, 9, 5), (2, 2, 3), (1, 1, 1)]


def products(images: int, height: int, width: int, footprint: int) -> Tensor:
    margin = footprint - 1
    return torch.randn(images, (2 * footprint - 1) ** 2, height + margin, width + margin,
                       dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("backend", ("auto", "reference"))
@pytest.mark.parametrize("padding", ("reflect", "zeros"))
@pytest.mark.parametrize("height, width, footprint", CASES)
def test_a_clique_holds_the_products_of_all_neighbours(height: int, width: int, footprint: int,
                                                       padding: str, backend: str) -> None:
    query, key = (torch.randn(2, 3, height, width, dtype=torch.float64) for _ in "qk")
    window = Window(footprint, padding_mode=padding)  # type: ignore[arg-type]
    layer = RelationLayer(find("patchwise", "clique"), Sizes(3, footprint ** 2), window)
    rows, columns = (functional.neighbours(each, footprint=footprint,
                                           padding_mode=window.padding_mode)
                     for each in (query, key))
    wanted = torch.einsum("bcjl,bckl->bjkl", rows, columns).flatten(1, 2).unsqueeze(2)
    with use_backend(backend):
        (found,) = layer(query, key)
    assert found.shape == (2, layer.width, 1, height * width)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("height, width, footprint", [(2, 3, 3), (1, 1, 5), (2, 1, 1)])
def test_gathering_is_differentiable_twice(height: int, width: int, footprint: int) -> None:
    given = products(1, height, width, footprint)
    assert gradcheck(lambda each: gathered(each, footprint), (given,))
    assert gradgradcheck(lambda each: gathered(each, footprint), (given,))


def test_a_clique_is_compiled_as_one_graph() -> None:
    layer = PatchwiseAttention(5, relation_channels=4, value_channels=8, weight_groups=2,
                               footprint=3, design=replace(PATCHWISE, relation="clique")).eval()
    features = torch.randn(2, 5, 6, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(features), layer(features), atol=1e-5)
