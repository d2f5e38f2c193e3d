"""Slopes of a network by autograd, and by differences that know nothing of autograd.

A slope is that of one mixture of all logits along one random direction of all pixels. Networks with
rectifiers are piecewise smooth: within a step of 1/255 a difference meets thousands of kinks, so
steps are shortened until two neighbours agree, which takes float64. Where the network does not
compute in float64 the shortest step is limited by rounding, and the tolerance is wider. In plain
parts of an image values tie, and a maximum over them has no slope but one to each side; so slopes
are taken a level or less beside the image, where nothing ties. Letters: n images, D directions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sanrobust.attacks.budget import LEVELS
from sanrobust.attacks.guards import sealed
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.randomness import starts
from sanrobust.probe import narrowest_float
from sanrobust.steady import FixedSizeBatches
from sanrobust.zoo.classifier import Classifier

DIRECTIONS = 4
_EXACT_STEPS = tuple(10.0 ** -power for power in range(2, 9))
# Below 2**-9 the rounding of float32 logits reaches a percent of what the difference is.
_FLOAT32_STEPS = tuple(2.0 ** -power for power in range(5, 10))


@dataclass(frozen=True, eq=False)
class Slopes:
    """Slopes of images along random directions, on the CPU in float64.

    Attributes:
        autograd, difference, doubt: (n, D); the doubt is how far the two steps that agree best lie
            apart.
        length: (n,) of the gradient in l2, the root mean square of slopes along such directions.
        exact: whether the differences were taken in float64.
    """

    autograd: Tensor
    difference: Tensor
    doubt: Tensor
    length: Tensor
    exact: bool

    @property
    def off(self) -> Tensor:
        """(n,) root mean square over the directions by which autograd is off, in parts of the
        larger of its own and the differences' root mean square."""
        return _rms(self.autograd - self.difference) / self._scale

    def settled(self, tolerance: float) -> Tensor:
        """Return of which images (n,) the differences agree among themselves."""
        return _rms(self.doubt) / self._scale <= tolerance

    @property
    def _scale(self) -> Tensor:
        return torch.maximum(self.length, _rms(self.difference)).clamp_min(1e-300)


def slopes(model: FixedSizeBatches, classifier: Classifier, images: Tensor, ids: Sequence[str], *,
           seed: int) -> Slopes:
    """Return slopes of images (n, 3, H, W).

    Args:
        model: what attacks take gradients of; its autograd is judged.
        classifier: the same network as it is written, of which differences are taken.
        images: with finite logits.
        ids: with the seed they decide the directions.
        seed: of the directions.
    """
    along = torch.stack([starts(images, ids, seed, index, "slope").sign()
                         for index in range(DIRECTIONS)], 1)
    along = torch.where(along == 0, torch.ones_like(along), along)
    with torch.inference_mode(False):
        images = _beside(images, ids, seed)
        gradient, mixture = _gradient(model, images)
        autograd = (gradient.unsqueeze(1) * along.double()).flatten(2).sum(2)
        double = _in_double(classifier, images[:1])
        value = _value(classifier if double is None else FixedSizeBatches(double, model.size),
                       mixture)
        dtype = torch.float32 if double is None else torch.float64
        pixels = images.to(dtype)
        found = [torch.stack([_difference(value, pixels, along[:, index].to(dtype), step)
                              for index in range(DIRECTIONS)], 1)
                 for step in (_FLOAT32_STEPS if double is None else _EXACT_STEPS)]
    difference, doubt = _agreed(torch.stack(found))
    length = NORMS.get("l2").size(gradient)
    return Slopes(autograd.cpu(), difference.cpu(), doubt.cpu(), length.cpu(),
                  exact=double is not None)


def _beside(images: Tensor, ids: Sequence[str], seed: int) -> Tensor:
    """Return images moved by up to a level at random, within [0, 1]."""
    part = (starts(images, ids, seed, 0, "beside") + 1) / 2
    return images * (1 - 1 / LEVELS) + part / LEVELS


def _gradient(model: FixedSizeBatches, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients (n, 3, H, W) in float64 and the mixture (K,) of logits that they are of."""
    with torch.enable_grad(), sealed(model):
        leaf = images.clone().requires_grad_()
        logits = model(leaf).float()
        generator = torch.Generator().manual_seed(0)
        mixture = torch.randn(logits.shape[1], generator=generator, dtype=torch.float64)
        mixture = mixture.to(images.device)
        total = (logits * mixture.to(logits)).sum()
        return torch.autograd.grad(total, leaf)[0].double(), mixture


def _in_double(classifier: Classifier, image: Tensor) -> Classifier | None:
    """Return the network in float64; None where some part of it computes in less, or not at all."""
    try:
        double = copy.deepcopy(classifier).double()
        with torch.no_grad():
            return double if narrowest_float(double, image.double()) == 8 else None
    # Parts of other people's networks fail in float64 in their own ways.
    except Exception:
        return None


def _value(model: torch.nn.Module, mixture: Tensor) -> Callable[[Tensor], Tensor]:
    def value(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(pixels)
            return (logits.double() * mixture).sum(1)
    return value


def _difference(value: Callable[[Tensor], Tensor], pixels: Tensor, along: Tensor, step: float
                ) -> Tensor:
    return (value(pixels + step * along) - value(pixels - step * along)) / (2 * step)


def _agreed(found: Tensor) -> tuple[Tensor, Tensor]:
    """Return of differences (S, n, D), by falling steps, the later of the two neighbours that agree
    best, and how far they lie apart."""
    apart = (found[1:] - found[:-1]).abs()
    doubt, place = apart.min(0)
    return found[1:].gather(0, place.unsqueeze(0)).squeeze(0), doubt


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(1).sqrt()
