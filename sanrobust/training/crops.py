"""Random crops of the images of one epoch, as torchvision cuts them.

Letters: S pixels of a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import functional as F

from sanrobust.data.decode import ImageError
from sanrobust.data.imageset import ImageRef, ImageSet
from sanrobust.training.recipes import Recipe


@dataclass(frozen=True, eq=False)
class RandomCrops:
    """An image set of which each image is cut and mirrored at random, anew in each epoch.

    A part of 8 to 100 % of the area, of a ratio of 3:4 to 4:3, becomes (3, S, S). What is drawn
    belongs to (seed, epoch, image) alone.
    """

    images: ImageSet
    recipe: Recipe
    epoch: int

    @property
    def name(self) -> str:
        """The name of the images."""
        return self.images.name

    @property
    def refs(self) -> tuple[ImageRef, ...]:
        """The images in their order."""
        return self.images.refs

    @property
    def num_classes(self) -> int | None:
        """How many classes the labels index."""
        return self.images.num_classes

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Name of each class."""
        return self.images.classes

    @property
    def left_out(self) -> tuple[str, ...]:
        """What lies beside the images."""
        return self.images.left_out

    @property
    def digest(self) -> str:
        """The digest of the uncut images."""
        return self.images.digest

    def load(self, index: int) -> Tensor:
        """Return the crop of image ``index``, float32 (3, S, S) in [0, 1]; raises ImageError."""
        image = self.images.load(index)
        if isinstance(image, Tensor):
            raise ImageError("float pixels, which are not cut at random")
        steps: list[torch.nn.Module] = [T.RandomResizedCrop(self.recipe.img_size)]
        if self.recipe.flip:
            steps.append(T.RandomHorizontalFlip())
        with torch.random.fork_rng(devices=[]):
            # The CPU's generator alone, as a GPU's may be drawn from elsewhere.
            torch.default_generator.manual_seed(seed_of(self.recipe.seed, self.epoch, index))
            pixels: Tensor = F.to_tensor(T.Compose(steps)(image))
        return pixels

    def take(self, indices: Sequence[int]) -> RandomCrops:
        """Return the crops of some of the images."""
        return replace(self, images=self.images.take(indices))

    def relabelled(self, labels: Mapping[int, int], *, num_classes: int | None,
                   classes: tuple[str, ...] | None) -> RandomCrops:
        """Return the same crops with other class indices."""
        return replace(self, images=self.images.relabelled(labels, num_classes=num_classes,
                                                           classes=classes))


def seed_of(seed: int, epoch: int, index: int) -> int:
    """Return the seed of torch's generator from which the crop of one image is drawn."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1)[0])
