"""Forward-mode derivatives: torch's own formulas make them, or they are refused; never lost."""

from __future__ import annotations

import pytest
import torch
from attention_cases import needs_native
from torch import Tensor, nn
from torch.autograd import forward_ad

from sanrobust.errors import BackendError
from sanrobust.kernels.backends import use_backend
from sanrobust.zoo.build import build
from sanrobust.zoo.folded import FoldedSan
from sanrobust.zoo.forms import small_config

NETWORKS = ("san10-pair", "san10-pair(relation=hadamard)", "san10-pair(position=absolute)",
            "san10-patch", "san10-patch(relation=clique)", "san10-scalar", "sasa26")


def _network(name: str) -> nn.Module:
    """A network whose biases keep pre-activations away from 0, where a ReLU has two slopes."""
    torch.manual_seed(0)
    network = build(small_config(name)).eval().double()
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return network


def _drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_they_agree_with_those_of_reverse_mode(name: str, trained: bool) -> None:
    network, pixels, step = _network(name).requires_grad_(trained), _drawn(2, 3, 32, 32), \
        _drawn(2, 3, 32, 32)
    _, slope = torch.func.jvp(network, (pixels,), (step,))
    leaf, upstream = pixels.clone().requires_grad_(), _drawn(*slope.shape)
    grad, = torch.autograd.grad(network(leaf), leaf, upstream)
    torch.testing.assert_close((slope * upstream).sum(), (grad * step).sum(), rtol=1e-10, atol=0)


@needs_native
def test_kernels_that_have_none_are_not_asked() -> None:
    network, pixels = _network("san10-pair"), _drawn(1, 3, 32, 32)
    with forward_ad.dual_level(), use_backend("native"), \
            pytest.raises(BackendError, match="forward mode: use auto or reference"):
        network(forward_ad.make_dual(pixels, pixels))
    with use_backend("native"):
        assert network(pixels).isfinite().all()


@needs_native
def test_a_folded_network_refuses_them() -> None:
    pixels = torch.rand(1, 3, 32, 32)
    folded = FoldedSan(_network("san10-pair").float())
    with pytest.raises(BackendError, match="must be taken in reverse mode"):
        torch.func.jvp(folded, (pixels,), (pixels,))
