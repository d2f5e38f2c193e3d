"""Reflecting padding made of strips, as on a GPU, is torch's padding, and so is its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sanrobust.kernels.padding import reflected, reflected_adjoint, strips, strips_adjoint


@pytest.mark.parametrize("height, width, margin", [(2, 2, 1), (4, 7, 3), (5, 9, 2), (3, 3, 0)])
def test_strips_are_reflecting_padding(height: int, width: int, margin: int) -> None:
    maps = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    found = strips(strips(maps, margin, -1), margin, -2)
    expected = F.pad(maps, (margin,) * 4, mode="reflect")
    assert torch.equal(found, expected) and torch.equal(reflected(maps, margin), expected)
    grad = torch.randn_like(found)
    ours, = torch.autograd.grad(found, maps, grad)
    torchs, = torch.autograd.grad(expected, maps, grad)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-14)
    by_hand = strips_adjoint(strips_adjoint(grad, margin, -2), margin, -1)
    torch.testing.assert_close(by_hand, torchs, rtol=0, atol=1e-14)
    torch.testing.assert_close(reflected_adjoint(grad, margin), torchs, rtol=0, atol=1e-14)


def test_the_gradient_given_is_left_as_it_is() -> None:
    grad = torch.ones(1, 1, 4, 6)
    strips_adjoint(grad, 1, -1)
    strips_adjoint(grad, 1, -2)
    assert torch.equal(grad, torch.ones(1, 1, 4, 6))
