"""The model and the images of a check, and what is measured of them, each thing once when needed.

Letters: N images that are attacked, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sanrobust.attacks.guards import sealed
from sanrobust.attacks.losses import margin
from sanrobust.attacks.randomness import seeded
from sanrobust.attacks.result import zero_share
from sanrobust.data.loader import Batch
from sanrobust.errors import ModelError
from sanrobust.memory import default_batch
from sanrobust.probe import Repeatability, repeatability
from sanrobust.progress import Progress
from sanrobust.steady import FixedSizeBatches
from sanrobust.validity import differences
from sanrobust.validity.attacked import Attacks
from sanrobust.validity.settings import PROBED, SLOPED, CheckSettings
from sanrobust.zoo.accelerate import Accelerated
from sanrobust.zoo.classifier import Classifier


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of the margin between an image's first two classes, which no softmax flattens.

    Attributes:
        zero: (N,) part of the entries that are exactly zero.
        reach: (N,) how far a change of every pixel by the whole range moves the margin, to first
            order, in parts of the margin.
        finite: (N,) bool.
    """

    zero: Tensor
    reach: Tensor
    finite: Tensor


@dataclass(eq=False)
class Subject:
    """What is checked.

    Attributes:
        classifier: the network as it is written, on its device.
        fast: what computes in its place.
        attacked: the images that are attacked, decoded, on the device.
        wider: those whose accuracy is counted, on the CPU.
        data: what tables call the images.
        settings: how much is looked at.
        batch_size: images of a pass; no number depends on it.
        published: accuracy in percent that is known of these weights on such images, or None.
        source: who says so, or why it is not known.
        progress: is told of every image that an attack is done with.
        assumed: what nobody said of the preprocessing; empty where it is known.
        precision: in what the network is computed.
    """

    classifier: Classifier
    fast: Accelerated
    attacked: Batch
    wider: Batch
    data: str
    settings: CheckSettings
    batch_size: int
    published: float | None
    source: str
    progress: Progress
    assumed: str
    precision: str

    def __post_init__(self) -> None:
        side = self.classifier.preprocessing.img_size
        self.device = self.attacked.pixels.device
        size = self.fast.pass_size(side, self.device)
        self._pass = default_batch(side, self.device)
        self.model = FixedSizeBatches(self.fast.classifier, size)

    def logits_of(self, pixels: Tensor) -> Tensor:
        """Return the logits (M, K) of pixels (M, 3, H, W), on the CPU.

        The number of images of a pass is always the same, so that what a random network draws does
        not depend on the batch size either.
        """
        with torch.no_grad(), sealed(self.model), seeded(0, self.device):
            return torch.cat([self.model(part.to(self.device)).float().cpu()
                              for part in torch.split(pixels, self._pass)])

    @cached_property
    def _all_logits(self) -> Tensor:
        return self.logits_of(self.attacked.pixels)

    @cached_property
    def finite(self) -> Tensor:
        """Which of the images have finite logits, bool on the CPU."""
        return self._all_logits.isfinite().all(1)

    @cached_property
    def logits(self) -> Tensor:
        """(N, K) of the images with finite ones, on the CPU."""
        return self._all_logits[self.finite]

    @cached_property
    def predicted(self) -> Tensor:
        """(N,) int64 on the CPU: what attacks run away from."""
        return self.logits.argmax(1)

    @cached_property
    def pixels(self) -> Tensor:
        """(N, 3, H, W) of the images with finite logits, on the device."""
        return self.attacked.pixels[self.finite.to(self.device)]

    @cached_property
    def ids(self) -> Sequence[str]:
        """Ids of these images."""
        return [name for name, sound in zip(self.attacked.ids, self.finite.tolist()) if sound]

    @cached_property
    def repeated(self) -> Repeatability:
        """How passes over the first images differ, in the form that computes, unpadded."""
        sound = self.pixels[:PROBED]
        if len(sound) == 1:
            sound = torch.cat([sound, sound.flip(-1) / 2])
        return repeatability(self.fast.classifier, sound)

    @cached_property
    def margins(self) -> Tensor:
        """(N,) how far the first logit is above the second, on the CPU."""
        top = self.logits.topk(2, 1).values
        return top[:, 0] - top[:, 1]

    @cached_property
    def outside(self) -> tuple[int, int]:
        """Of how many images the logits are finite beyond [0, 1], and change there."""
        stretched = (self.pixels - 0.5) * 1.5 + 0.5
        logits, clipped = self.logits_of(stretched), self.logits_of(stretched.clamp(0, 1))
        finite = logits.isfinite().all(1)
        return int(finite.sum()), int(((logits != clipped).any(1) & finite).sum())

    @cached_property
    def gradients(self) -> Gradients | None:
        """Of the margin at the images; None where the network gives none."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        labels = self.predicted.to(self.device)
        with torch.inference_mode(False), torch.enable_grad(), sealed(self.model):
            for part, label in zip(torch.split(self.pixels, self.batch_size),
                                   torch.split(labels, self.batch_size)):
                leaf = part.clone().requires_grad_()
                try:
                    values = margin(self.model(leaf).float(), None, label)
                    gradient = torch.autograd.grad(values.sum(), leaf)[0]
                except (ModelError, RuntimeError) as error:
                    if not _has_no_graph(error):
                        raise
                    return None
                length = gradient.abs().flatten(1).sum(1)
                found.append((zero_share(gradient).cpu(), length.cpu(),
                              gradient.isfinite().flatten(1).all(1).cpu()))
        zero, length, finite = (torch.cat(each) for each in zip(*found))
        return Gradients(zero, length / self.margins.clamp_min(1e-12), finite)

    @cached_property
    def slopes(self) -> differences.Slopes:
        """Slopes by autograd and by differences, of the first images."""
        return differences.slopes(self.model, self.classifier, self.pixels[:SLOPED],
                                  self.ids[:SLOPED], seed=self.settings.seed)

    @cached_property
    def attacks(self) -> Attacks:
        """What attacks have made of the images."""
        return Attacks(self.model, self.pixels, self.predicted, self.ids, self.settings,
                       self.batch_size, self.progress, self.classifier.name,
                       self.classifier.num_classes)

    @cached_property
    def wide_logits(self) -> Tensor:
        """(M, K) of the images whose accuracy is counted, on the CPU."""
        return self.logits_of(self.wider.pixels)

    @cached_property
    def right(self) -> Tensor:
        """(M,) bool: which of these are classified as their label; without finite logits none."""
        return self.hits(self.wide_logits)

    def hits(self, logits: Tensor) -> Tensor:
        """Return which logits (m, K) of the first m of these images have the label on top."""
        return (logits.argmax(1) == self.wider.labels[:len(logits)]) & logits.isfinite().all(1)


def _has_no_graph(error: Exception) -> bool:
    """Say whether an error tells that no gradient comes back to the pixels."""
    if isinstance(error, ModelError):
        return "must have gradients" in error.rule
    said = str(error)
    return "does not require grad" in said or "not have been used in the graph" in said
