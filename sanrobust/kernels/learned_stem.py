"""The first layer of a network in training, with pooling, as one operator with its gradients.

Of three colours, mean and variance of what a 1x1 convolution makes follow from those of the
colours: nothing as large as its output is stored. Letters: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.library import custom_op
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from sanrobust.kernels import ops
from sanrobust.kernels.gradients import (Gradients, again, keep_without_gradient,
                                         refuse_second_derivative, wanted)
from sanrobust.kernels.hooks import is_pointwise, is_watched
from sanrobust.kernels.kernelset import LearningKernels, learning_kernels, offers
from sanrobust.kernels.plain import pooled_shape

COLOURS = 3
_SCHEMA = "Tensor pixels, Tensor weight, Tensor bias"


@custom_op("sanrobust::learned_stem", mutates_args=(),
           schema=f"({_SCHEMA}, str backend) -> (Tensor, Tensor)")
def learned_stem(pixels: Tensor, weight: Tensor, bias: Tensor,
                 backend: str) -> tuple[Tensor, Tensor]:
    return learning_kernels(backend).learned_stem(pixels, weight, bias)


@learned_stem.register_fake
def _(pixels: Tensor, weight: Tensor, bias: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    shape = pooled_shape((len(pixels), len(weight), *pixels.shape[2:]))
    return pixels.new_empty(shape), pixels.new_empty(shape, dtype=torch.uint8)


@custom_op("sanrobust::learned_stem_backward", mutates_args=(),
           schema=f"(Tensor grad, {_SCHEMA}, Tensor codes, str backend) -> (Tensor, Tensor)")
def learned_stem_backward(grad: Tensor, pixels: Tensor, weight: Tensor, bias: Tensor,
                          codes: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return learning_kernels(backend).learned_stem_backward(grad, pixels, weight, bias, codes)


@learned_stem_backward.register_fake
def _(grad: Tensor, pixels: Tensor, weight: Tensor, bias: Tensor, codes: Tensor,
      backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(bias)


def takes(conv: nn.Module, norm: nn.Module, pixels: Tensor, backend: str) -> bool:
    """Whether `stem` computes these layers of these pixels, which need no gradient."""
    if (torch.compiler.is_compiling() or not offers(backend, LearningKernels)
            or torch.is_autocast_enabled(pixels.device.type)):
        return False
    if not is_pointwise(conv) or is_watched(norm) or not ops.by_batch(norm):
        return False
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    fits = (conv.bias is None and conv.in_channels == COLOURS
            and norm.num_features == len(conv.weight))
    return (fits and pixels.shape[1:2] == (COLOURS,) and min(pixels.shape[2:]) >= 2
            and len(pixels) > 0 and not (pixels.requires_grad and torch.is_grad_enabled())
            and {pixels.dtype, conv.weight.dtype, norm.weight.dtype} == {torch.float32})


def stem(conv: nn.Conv2d, norm: nn.BatchNorm2d, pixels: Tensor, *, backend: str) -> Tensor:
    """Return maxima over 2x2 pixels of the ReLU of the normalised convolution of (B, 3, H, W)."""
    colours = pixels.transpose(0, 1).flatten(1).double()
    mean = colours.mean(1)
    colours = colours - mean[:, None]
    covariance = colours @ colours.t() / colours.shape[1]
    weight = conv.weight.flatten(1).double()
    variance = ((weight @ covariance) * weight).sum(1)
    ops.move(norm, torch.stack((weight @ mean, variance)), colours.shape[1])
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    weight = weight * scale[:, None]
    made: Tensor
    made, _ = torch.ops.sanrobust.learned_stem(
        pixels, weight.to(pixels.dtype), (norm.bias - weight @ mean).to(pixels.dtype), backend)
    return made


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, backend = inputs
    ctx.settings = (backend,)
    keep_without_gradient(ctx, output[1])
    ctx.save_for_backward(*tensors, output[1])


def _gradient(ctx: Any, grad: Tensor | None, of_codes: None) -> Gradients:
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    if torch.is_grad_enabled():
        return (*again(ctx, grad, _plain), None)
    grads = torch.ops.sanrobust.learned_stem_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (None, *wanted(grads, ctx.needs_input_grad[1:]), None)


def _plain(pixels: Tensor, weight: Tensor, bias: Tensor, *codes: Tensor) -> Tensor:
    return F.max_pool2d(torch.relu(F.conv2d(pixels, weight[:, :, None, None], bias)), 2)


@register_flop_formula(torch.ops.sanrobust.learned_stem)
def _flops(pixels: Any, weight: Any, *rest: Any, **kwargs: Any) -> int:
    """2 * B * H * W * 3 * C."""
    count: int = 2 * pixels[0] * pixels[2] * pixels[3] * weight[0] * weight[1]
    return count


@register_flop_formula(torch.ops.sanrobust.learned_stem_backward)
def _backward_flops(grad: Any, *shapes: Any, **kwargs: Any) -> int:
    """As much as forward: pixels need no gradient."""
    return _flops(*shapes)


learned_stem.register_autograd(_gradient, setup_context=_setup)
refuse_second_derivative(learned_stem_backward)
