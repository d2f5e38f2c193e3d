"""Accuracy on images that training does not see.

Letters: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sanrobust.data.imageset import ImageSet
from sanrobust.training.feed import Feed
from sanrobust.training.recipes import Recipe

# Images of a pass, and fewer where they are larger than 64 pixels, so that memory stays bounded.
_MOST, _PIXELS = 256, 256 * 64 * 64


@dataclass(frozen=True)
class Score:
    """How many images are right.

    Attributes:
        top1: with the label's logit the highest; an image without finite logits counts as wrong.
        top5: with the label's among the five highest.
        finite: with finite logits.
        images: that could be decoded.
    """

    top1: int
    top5: int
    finite: int
    images: int

    def percent(self, hits: int) -> float:
        """Return ``hits`` in percent of the images."""
        return 100.0 * hits / self.images


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many of (B, K) logits are right, (3,) int64: top-1, top-5 and finite."""
    finite = logits.isfinite().all(1)
    first = logits.argmax(1) == labels
    five = (logits.topk(min(5, logits.shape[1]), 1).indices == labels.unsqueeze(1)).any(1)
    return torch.stack([(first & finite).sum(), (five & finite).sum(), finite.sum()])


@dataclass(eq=False)
class HeldOut:
    """Unseen images, measured as often as is asked for.

    Attributes:
        images: the set.
        recipe: how they are prepared.
        device: where the network is.
        workers: processes that decode.
        lost: ids of images that could not be decoded, with the reason.
    """

    images: ImageSet
    recipe: Recipe
    device: torch.device
    workers: int = 0
    lost: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._feed = Feed(self.images, self.recipe, self.device, self.workers, lost=self.lost)

    @torch.no_grad()
    def score(self, model: nn.Module) -> Score:
        """Return how many images a model, which maps pixels to logits, gets right in eval mode."""
        model.eval()
        counts = torch.zeros(3, dtype=torch.int64, device=self.device)
        size = max(1, min(_MOST, _PIXELS // self.recipe.img_size ** 2))
        for pixels, labels in self._feed.in_order(size):
            if len(labels):
                counts += right(model(pixels), labels)
        top1, top5, finite = counts.tolist()
        images = len(self.images.refs) - len(self.lost)
        return Score(top1, top5, finite, images)
