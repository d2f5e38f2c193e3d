"""1x1 convolutions as products: torch's convolution and its gradients, on every kind of map."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.pointwise import PointwiseConv2d, convolved
from sanrobust.zoo.build import build
from sanrobust.zoo.forms import small_config

# Of the last three, all images are multiplied at once.
SIDES = [(4, 4), (5, 7), (1, 16), (3, 5), (3, 3), (2, 1), (1, 1)]


def _tensors(sides: tuple[int, int], *, bias: bool, residual: bool,
             images: int = 3) -> list[Tensor | None]:
    torch.manual_seed(0)
    shapes = [(images, 40, *sides), (48, 40, 1, 1), (48,) if bias else None,
              (images, 48, *sides) if residual else None]
    return [None if shape is None else torch.randn(shape, dtype=torch.float64, requires_grad=True)
            for shape in shapes]


@pytest.mark.parametrize(("sides", "bias", "residual"),
                         list(product(SIDES, (True, False), (True, False))))
def test_a_product_is_the_convolution_and_has_its_gradients(
        sides: tuple[int, int], bias: bool, residual: bool) -> None:
    tensors = _tensors(sides, bias=bias, residual=residual)
    maps, weight, added, rest = tensors
    assert maps is not None and weight is not None
    made = convolved(maps, weight, added, rest)
    truth = F.conv2d(maps, weight, added)
    truth = truth if rest is None else truth + rest
    assert made.shape == truth.shape
    torch.testing.assert_close(made, truth, rtol=1e-12, atol=1e-12)
    given = [each for each in tensors if each is not None]
    slope = torch.randn_like(truth)
    for own, true in zip(torch.autograd.grad(made, given, slope),
                         torch.autograd.grad(truth, given, slope)):
        torch.testing.assert_close(own, true, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("sides", "residual"), list(product([(4, 4), (2, 1)], (True, False))))
def test_second_derivatives_are_right(sides: tuple[int, int], residual: bool) -> None:
    tensors = _tensors(sides, bias=True, residual=residual, images=1)
    assert torch.autograd.gradgradcheck(convolved, tensors, fast_mode=True)


def test_the_residual_is_left_as_it_was_and_no_images_are_no_error() -> None:
    for sides in ((4, 4), (1, 1)):
        maps, weight, bias, residual = (None if each is None else each.detach() for each in
                                        _tensors(sides, bias=True, residual=True))
        assert maps is not None and weight is not None and residual is not None
        before = residual.clone()
        convolved(maps, weight, bias, residual)
        assert torch.equal(residual, before)
        assert convolved(maps[:0], weight, bias, residual[:0]).shape == residual[:0].shape


def test_maps_in_another_order_give_the_same() -> None:
    maps, weight, bias, residual = _tensors((4, 6), bias=True, residual=True)
    assert maps is not None and weight is not None and residual is not None
    last = maps.to(memory_format=torch.channels_last)
    torch.testing.assert_close(convolved(last, weight, bias, residual),
                               convolved(maps, weight, bias, residual))


def test_a_block_in_training_adds_its_residual_once_and_calls_a_watched_convolution() -> None:
    torch.manual_seed(0)
    network = build(small_config("san10-pair")).double()
    block = network.get_submodule("layer0")[0]  # type: ignore[index]
    features = torch.randn(2, block.bn1.num_features, 8, 8, dtype=torch.float64)
    calls: list[nn.Module] = []
    own = block(features)
    handle = block.conv.register_forward_hook(lambda layer, *_: calls.append(layer))
    watched = block(features)
    handle.remove()
    assert calls == [block.conv]
    torch.testing.assert_close(own, watched, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_what_a_watched_convolution_returned_stays_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    network = build(small_config("san10-pair")).train(training)
    block = network.get_submodule("layer0")[0]  # type: ignore[index]
    kept: list[tuple[Tensor, Tensor]] = []
    block.conv.register_forward_hook(lambda *seen: kept.append((seen[2], seen[2].clone())))
    block.conv.register_full_backward_hook(lambda *_: None)
    block(torch.randn(2, block.bn1.num_features, 8, 8)).sum().backward()
    (returned, then), = kept
    assert torch.equal(returned, then)


def test_a_traced_layer_takes_other_batches() -> None:
    layer = PointwiseConv2d(5, 6)
    traced, images = torch.jit.trace(layer, torch.rand(2, 5, 4, 4)), torch.rand(3, 5, 4, 4)
    assert torch.equal(traced(images), layer(images))


@pytest.mark.parametrize("name", ("san10-pair", "san10-patch"))
def test_an_exported_network_takes_other_batches(name: str) -> None:
    network = build(small_config(name)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    with use_backend("reference"):
        made = torch.export.export(network, (torch.rand(2, 3, 32, 32),),
                                   dynamic_shapes=({0: batch},)).module()
        images = torch.rand(3, 3, 32, 32)
        torch.testing.assert_close(made(images), network(images))


def test_the_module_is_the_product() -> None:
    layer = PointwiseConv2d(40, 48).double()
    maps, *_ = _tensors((3, 5), bias=True, residual=False)
    assert maps is not None
    torch.testing.assert_close(layer(maps), F.conv2d(maps, layer.weight, layer.bias))
