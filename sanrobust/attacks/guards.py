"""The rules of the experiment that an attack holds itself to.

A broken rule stops the run. Logits or gradients that are not finite only fail their image.

Letters: B images, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sanrobust.attacks.budget import LEVELS
from sanrobust.attacks.norms import Norm
from sanrobust.errors import ModelError, NonFiniteError, ProtocolError

Classifier = Callable[[Tensor], Tensor]
TOLERANCE = 1e-6


def check_batch(images: Tensor, labels: Tensor, ids: Sequence[str]) -> None:
    """Require pixels (B, 3, H, W), float32 in [0, 1], with one int64 label and one id each.

    Raises ProtocolError.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ProtocolError("images must have the shape (B, 3, H, W) with B at least 1",
                            seen=f"it is {tuple(images.shape)}", hint="attack one batch of images")
    if images.dtype != torch.float32:
        raise ProtocolError("images must be float32", seen=f"they are {images.dtype}",
                            hint="scale 8-bit pixels to [0, 1] as float32")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64 or len(ids) != len(images):
        raise ProtocolError("each image must have one int64 label and one id",
                            seen=f"there are {len(images)} images, {len(ids)} ids and labels "
                            f"{tuple(labels.shape)} of {labels.dtype}", hint="pass them together")
    check_pixels(images, "images", hint="leave the normalisation to the model")


def check_pixels(images: Tensor, name: str, *, hint: str) -> None:
    """Require finite pixels in [0, 1]; raises ProtocolError that names the tensor."""
    # min and max carry NaN and infinity through, so two numbers show all three faults.
    low, high = (float(value) for value in torch.aminmax(images))
    if not (0 <= low and high <= 1):
        raise ProtocolError(f"{name} must be finite and in [0, 1]",
                            seen=f"they span {low:g} to {high:g}", hint=hint)


def check_eval(model: Classifier) -> None:
    """Require every submodule to be in eval mode; raises ProtocolError that names the first."""
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        if module.training:
            raise ProtocolError("every part of the model must be in eval mode",
                                seen=f"{name or 'the model'} ({type(module).__name__}) is in "
                                "train mode", hint="call model.eval() before the attack")


def check_logits(logits: Tensor, batch: int, num_classes: int | None = None) -> None:
    """Require finite logits (B, K) with K at least 2; raises as the two checks it consists of."""
    check_form(logits, batch, num_classes)
    check_finite(logits)


def check_form(logits: Tensor, batch: int, num_classes: int | None = None) -> None:
    """Require logits of shape (B, K) with K at least 2; raises ModelError. Waits for no device.

    Args:
        logits: what the model returned for ``batch`` images.
        batch: B.
        num_classes: K where it is already known.
    """
    if (not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != batch
            or logits.shape[1] < 2 or num_classes not in (None, logits.shape[1])):
        seen = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model must return logits of shape ({batch}, {num_classes or 'K'})",
                         seen=f"it returned {seen}", hint="wrap it so that it returns logits alone")


def check_finite(logits: Tensor, gradient: Tensor | None = None) -> None:
    """Require finite logits and a gradient without NaN; raises NonFiniteError.

    Of healthy ones one number is read, so that a device is waited for once.
    """
    # Sums and maxima carry NaN through; they may also overflow, or be infinite as a gradient may.
    total = logits.sum() if gradient is None else logits.sum() + gradient.amax()
    if math.isfinite(total.item()):
        return
    if not torch.isfinite(logits).all():
        raise NonFiniteError("the model's logits must be finite", seen="some are NaN or infinite",
                             hint="check the weights and the precision")
    if gradient is not None and gradient.isnan().any():
        raise NonFiniteError("the gradient must be a number everywhere", seen="some of it is NaN",
                             hint="try another --loss, or --backend reference")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Require labels in [0, K); raises ProtocolError."""
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= num_classes:
        raise ProtocolError(f"labels must be classes of the model, 0 to {num_classes - 1}",
                            seen=f"they span {low} to {high}",
                            hint="use a dataset whose classes are the model's")


def check_targets(targets: Tensor, labels: Tensor, num_classes: int) -> None:
    """Require one wrong class in [0, K) per image; raises ProtocolError."""
    if targets.shape != labels.shape or targets.dtype != torch.int64:
        raise ProtocolError("each image must have one int64 target",
                            seen=f"the targets are {tuple(targets.shape)} of {targets.dtype}",
                            hint=f"pass {len(labels)} class indices")
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        raise ProtocolError(f"targets must be classes of the model, 0 to {num_classes - 1}",
                            seen=f"they span {low} to {high}", hint="choose other targets")
    if bool((targets == labels).any()):
        place = int((targets == labels).nonzero()[0])
        raise ProtocolError("a target must differ from the image's label",
                            seen=f"image {place} of the batch has label and target "
                            f"{int(labels[place])}",
                            hint="leave out the images that TargetRule.split excludes")


def check_adversarial(adversarial: Tensor, images: Tensor, eps: float | None) -> None:
    """Require an attack's product to be finite, in [0, 1] and in the ball; raises ProtocolError.

    Args:
        adversarial: (B, 3, H, W).
        images: (B, 3, H, W), the clean images.
        eps: L-inf radius in units of 1/255; None for an attack without one.
    """
    if adversarial.shape != images.shape or adversarial.dtype != images.dtype:
        raise ProtocolError("adversarial images must have the shape and type of the clean ones",
                            seen=f"they are {tuple(adversarial.shape)} of {adversarial.dtype}",
                            hint="report this attack as broken")
    check_pixels(adversarial, "adversarial images", hint="report this attack as broken")
    if eps is None:
        return
    far = float((adversarial - images).abs().max())
    allowed = eps / LEVELS + TOLERANCE if eps > 0 else 0.0
    if far > allowed:
        raise ProtocolError(f"adversarial images must stay within {eps:g}/255 of the clean ones",
                            seen=f"a pixel moved {far * LEVELS:g}/255",
                            hint="report this attack as broken")


def check_l2(adversarial: Tensor, images: Tensor, radius: float) -> None:
    """Require each change to be within an L2 radius; raises ProtocolError.

    Args:
        adversarial: (B, 3, H, W).
        images: (B, 3, H, W), the clean images.
        radius: the longest legal change, in the pixel range [0, 1].
    """
    far = float((adversarial - images).flatten(1).norm(dim=1).max())
    # A sum over all pixels rounds more than one pixel does.
    if far > radius * (1 + 1e-3) + TOLERANCE:
        raise ProtocolError(f"adversarial images must stay within an l2 radius of {radius:g}",
                            seen=f"one is {far:g} away from the clean one",
                            hint="report this attack as broken")


def check_ball(adversarial: Tensor, images: Tensor, radius: float, norm: Norm) -> None:
    """Require an attack's product to be finite, in [0, 1] and in a ball; raises ProtocolError."""
    if norm.levels:
        check_adversarial(adversarial, images, radius * LEVELS)
    else:
        check_adversarial(adversarial, images, None)
        check_l2(adversarial, images, radius)


@contextmanager
def sealed(model: Classifier) -> Iterator[None]:
    """Freeze a model's parameters and give back its whole mode when the block ends, or fails.

    Inside, no parameter asks for a gradient, which also spares the memory and the time of
    gradients that nobody reads. Afterwards every ``training`` flag, ``requires_grad`` flag and
    ``grad`` is what it was.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    weights = [(weight, weight.requires_grad, weight.grad) for weight in model.parameters()]
    try:
        for weight, _, _ in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, requires_grad, grad in weights:
            weight.requires_grad_(requires_grad)
            weight.grad = grad
