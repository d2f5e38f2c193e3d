"""Attention layers and maps for the tests of the operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sanrobust.kernels import backends
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.native import library

LAYERS = (PairwiseAttention, PatchwiseAttention)
# Two orders of one float64 sum of at most a few thousand terms of size one.
EXACT = 1e-9
needs_native = pytest.mark.skipif(library.refusal() is not None,
                                  reason=f"no native kernels: {library.refusal()}")
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
# A float32 pre-activation of size one is off by a few 1e-7: none of these changes its sign.
KINK_MARGIN = 1e-5


def layer_of(kind: type[nn.Module], footprint: int, *, padding_mode: str = "reflect",
             groups: int = 2, relation: int = 3, channels: int | None = None,
             seed: int = 0, **settings: object) -> nn.Module:
    """A float64 layer of 6 input channels with normalisations far from the identity."""
    torch.manual_seed(seed)
    layer = kind(6, relation_channels=relation, value_channels=channels or 4 * groups,
                 weight_groups=groups, footprint=footprint, padding_mode=padding_mode, **settings)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return layer.double()


def frozen(layer: nn.Module) -> nn.Module:
    """The layer as attacks see it: eval mode, no gradients of weights."""
    return layer.eval().requires_grad_(False)


def maps_of(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def computed(layer: Callable[[Tensor], Tensor], features: Tensor,
             backend: str) -> tuple[Tensor, Tensor]:
    """Output of a layer and the gradient of its input, for an upstream gradient of size one."""
    features = features.clone(memory_format=torch.preserve_format).requires_grad_()
    with backends.use_backend(backend):
        attended = layer(features)
    upstream = maps_of(*attended.shape, seed=3).to(attended.dtype)
    return attended.detach(), torch.autograd.grad(attended, features, upstream)[0]


def kink_free(case: Callable[[int], tuple[nn.Module, Tensor]]) -> tuple[nn.Module, Tensor]:
    """The first of the seeded cases in which every ReLU's input is well away from 0.

    Where one is within rounding of 0, float32 takes the other side and gradients differ for a
    reason that no kernel can help.
    """
    for seed in range(20):
        layer, features = case(seed)
        margins: list[float] = []
        hooks = [relu.register_forward_pre_hook(
            lambda _, inputs: margins.append(inputs[0].abs().min().item()))
            for relu in layer.modules() if isinstance(relu, nn.ReLU)]
        with backends.use_backend("reference"), torch.no_grad():
            layer(features)
        for hook in hooks:
            hook.remove()
        if min(margins) > KINK_MARGIN:
            return layer, features
    raise AssertionError("every seed has a kink")
