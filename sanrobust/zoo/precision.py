"""Networks computed in another floating-point type than float32.

The weights stay float32 and torch's autocast chooses what is computed in 16 bits, convolutions and
matrix products, and what is not, normalisations by batch statistics, softmax and long sums; so is
mixed precision used everywhere, and every network takes part as it is written. Weights converted
by hand would be a little faster, but networks that make tensors of their own in float32 fail on
them, and sums that overflow float16 stay in it. Pixels, normalisation of the pixels, logits and
gradients at the pixels are float32 on both sides.

Letters: B images, H and W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanrobust.choices import FLOAT32, TF32


def autocast_type(precision: str) -> torch.dtype | None:
    """Return the type that autocast computes in; None for float32 and tf32, which need none."""
    if precision in (FLOAT32, TF32):
        return None
    dtype = getattr(torch, precision)
    assert isinstance(dtype, torch.dtype)
    return dtype


class Autocast(nn.Module):
    """A network in eval mode under autocast; float32 images (B, 3, H, W) to float32 logits (B, K).

    Gradients smaller than float16 holds would be zero, and an attack that follows them could not
    move: on their way through the network those of each image are scaled by a power of two, so
    that the largest at its logits is between 1 and 2, and at the pixels scaled back.

    Args:
        network: what computes.
        dtype: bfloat16 or float16.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of normalised ``images`` (B, 3, H, W)."""
        scaled = (torch.is_grad_enabled() and images.requires_grad
                  and self.dtype == torch.float16)
        scale = _GradientScale()
        if scaled:
            images = images.view_as(images)
            images.register_hook(scale.take_off)  # type: ignore[no-untyped-call]
        with torch.autocast(images.device.type, self.dtype):
            logits = self.network(images)
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            return logits  # type: ignore[no-any-return]  # for the classifier to refuse
        logits = logits.float()
        if scaled and logits.requires_grad:
            logits.register_hook(scale.put_on)  # type: ignore[no-untyped-call]
        return logits


class _GradientScale:
    """The powers of two of one pass, chosen anew each time that it is made backward."""

    def __init__(self) -> None:
        self._exponents: Tensor | None = None

    def put_on(self, gradient: Tensor) -> Tensor:
        """Scale the gradient (B, K) of the logits."""
        largest = gradient.abs().amax(1)
        _, exponents = torch.frexp(torch.where(largest.isfinite(), largest, 1.0))
        self._exponents = torch.where(largest > 0, exponents - 1, 0)
        return torch.ldexp(gradient, -self._exponents.unsqueeze(1))

    def take_off(self, gradient: Tensor) -> Tensor:
        """Scale the gradient (B, 3, H, W) of the images back."""
        if self._exponents is None:
            return gradient
        return torch.ldexp(gradient, self._exponents.view(-1, 1, 1, 1))
