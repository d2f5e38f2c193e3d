"""What compares queries with keys: who may, and that kernels do what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import frozen, layer_of, maps_of, needs_native
from torch import Tensor, nn

from sanrobust.design import AttentionConfig
from sanrobust.errors import UsageError
from sanrobust.kernels import functional, relations
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.mappings import RelationLayer
from sanrobust.kernels.modules import PairwiseAttention
from sanrobust.kernels.plain import Window
from sanrobust.kernels.relations import Sizes

NAMES = relations.names("pairwise")


class Doubled(RelationLayer):
    """Twice a relation."""

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        return tuple(2 * part for part in super().forward(query, key))


def attention(name: str) -> Any:
    return frozen(layer_of(PairwiseAttention, 3, design=AttentionConfig(relation=name))).float()


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_a_class_of_ones_own_is_called(name: str) -> None:
    layer, features = attention(name), maps_of(2, 6, 4, 5).float()
    once = layer(features)
    maps = (*layer.compared(features), layer.conv3(features), layer._encoded(features))
    own = Doubled(layer.relation.relation, layer.relation.sizes, layer.window)
    made = {}
    for backend in ("native", "reference"):
        made[backend] = functional.pairwise_attention(*maps, layer.conv_w, footprint=3,
                                                      compare=own, backend=backend)
    assert (made["native"] - made["reference"]).abs().max() < 1e-5
    assert (made["native"] - once).abs().max() > 1e-3


@needs_native
@pytest.mark.parametrize("name", NAMES)
def test_autocast_around_the_backward_pass_alone_changes_nothing(name: str) -> None:
    layer, features = attention(name), maps_of(2, 6, 4, 5).float().requires_grad_()
    with use_backend("native"):
        attended = layer(features)
        grad, = torch.autograd.grad(attended.sum(), features, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            again, = torch.autograd.grad(attended.sum(), features)
    assert again.dtype == torch.float32
    assert (again - grad).abs().max() < 0.05 * grad.abs().max()


@pytest.mark.parametrize("compare", ["hadamard", relations.find("pairwise", "dot"), object(),
                                     RelationLayer(relations.find("patchwise", "star"),
                                                   Sizes(4, 9), Window(3))])
def test_what_is_no_pairwise_relation_is_refused(compare: Any) -> None:
    maps = torch.rand(1, 4, 5, 5)
    with pytest.raises(UsageError, match="must be a RelationLayer of a pairwise relation"):
        functional.pairwise_attention(maps, maps, maps, maps[:, :0], nn.Identity(), footprint=3,
                                      compare=compare)


@pytest.mark.parametrize(("sizes", "window"), [
    (Sizes(4, 25), Window(5)), (Sizes(4, 9), Window(3, padding_mode="zeros")),
    (Sizes(5, 9), Window(3))])
def test_what_compares_other_maps_or_windows_is_refused(sizes: Sizes, window: Window) -> None:
    maps = torch.rand(1, 4, 5, 5)
    compare = RelationLayer(relations.find("pairwise", "hadamard"), sizes, window)
    with pytest.raises(UsageError, match="must have the footprint, padding mode and channels"):
        functional.pairwise_attention(maps, maps, maps, maps[:, :0], nn.Identity(), footprint=3,
                                      compare=compare)


def test_a_mapping_of_other_convolutions_has_weights_too() -> None:
    layer, features = attention("dot"), maps_of(2, 6, 4, 5).float()
    weights = layer.attention_weights(features)
    for index in (2, 5):
        other = nn.Conv2d(layer.conv_w[index].in_channels, layer.conv_w[index].out_channels, 1,
                          bias=layer.conv_w[index].bias is not None)
        other.load_state_dict(layer.conv_w[index].state_dict())
        layer.conv_w[index] = other
    assert (layer.attention_weights(features) - weights).abs().max() < 1e-5
