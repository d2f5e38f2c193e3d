"""What an attack hands back for a batch: a value that says everything a record needs.

Letters: B images, H rows, W columns, K classes, N steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sanrobust.attacks.budget import LEVELS, Budget


@dataclass(frozen=True, eq=False)
class BudgetResult:
    """One attack of one strength on one batch.

    It is scored on its last iterate, or, where it ends once the label is lost, there.

    Attributes:
        budget: the budget; None for an attack of torchattacks.
        eps: radius, in units of 1/255 in L-inf and in the pixel range [0, 1] in L2; None for an
            attack that has none.
        adversarial: (B, 3, H, W) float32 in [0, 1].
        clean_logits: (B, K) float32.
        adv_logits: (B, K) float32, of ``adversarial``.
        targets: (B,) int64; None when it is no aim to be classified as one.
        hit: (B,) bool, the last iterate is classified as its target; None when untargeted.
        hit_any: (B,) bool, some iterate after the start was, in any restart (with 0 steps: the
            start); None when the attack does not show its iterates.
        linf: (B,) float32, the largest change of a pixel in units of 1/255; a whole number where
            image and budget lie on the 8-bit grid, else within 3e-4 of the radius.
        target_loss: (B, N + 1) float32, cross entropy toward the target at the start and after
            each step of the restart that counts; None when the attack does not show it.
        zero_gradient: (B, N) float32, part of the gradient's entries that were exactly zero at
            each step of the restart that counts: 1 where no pixel could be moved, as behind a
            rounded input. For an attack of torchattacks (B, 1), the least of all gradients that
            it took of the image, nan where it took none.
        broken_by: which attack of a suite lost each image's label; None where none did.
        broken_at: step or query at which the label was lost, 0 for the clean image or the start,
            None where it was not; None for all where that is not looked at.
        losses: what each image's attack has descended, at each point; None where it is not shown.
    """

    budget: Budget | None
    eps: float | None
    adversarial: Tensor
    clean_logits: Tensor
    adv_logits: Tensor
    targets: Tensor | None
    hit: Tensor | None
    hit_any: Tensor | None
    linf: Tensor
    target_loss: Tensor | None
    zero_gradient: Tensor
    broken_by: Sequence[str | None] | None = None
    broken_at: Sequence[int | None] | None = None
    losses: Sequence[Sequence[float]] | None = None

    @property
    def clean_pred(self) -> Tensor:
        """Predicted class of each clean image, (B,) int64."""
        return self.clean_logits.argmax(1)

    @property
    def adv_pred(self) -> Tensor:
        """Predicted class of each adversarial image, (B,) int64."""
        return self.adv_logits.argmax(1)


def distance(adversarial: Tensor, images: Tensor) -> Tensor:
    """Return the L-inf distance of two batches (B, 3, H, W) in units of 1/255, (B,) float32."""
    change = (adversarial - images).abs().flatten(1)
    return change.amax(1) * LEVELS


def zero_share(gradient: Tensor) -> Tensor:
    """Return the part of each image's entries of (B, 3, H, W) that are exactly zero, (B,) float32.

    It is 1 only where every entry is zero and 0 only where none is, up to 2**24 entries; nan where
    an entry is no number.
    """
    entries = gradient[0].numel()
    return (entries - nonzero(gradient)) / entries


def nonzero(gradient: Tensor) -> Tensor:
    """Return how many of each image's entries of (B, 3, H, W) are not zero, (B,) float32.

    It is exact up to 2**24 entries; nan where an entry is no number.
    """
    # Ones and zeros add up exactly; to count them as booleans takes several times as long.
    return gradient.flatten(1).sign().abs_().sum(1)
