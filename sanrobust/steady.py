"""Batches of one size, so that an image's arithmetic does not depend on how many came with it.

CPU libraries choose how to sum by the shape of a batch: filling small batches up is not enough,
for 33 images may be summed in another order than 64, and 8 in another than 16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# With more threads a pass of few images would leave some of them without work.
MOST_THREADS = 8
# Images of a pass by their largest side in pixels: as many as cost no time against larger passes.
_SIZES = ((64, 32), (384, 8))


def pass_size(img_size: int, device: torch.device) -> int | None:
    """Return how many images each pass must have; None where no number would help.

    Args:
        img_size: side of the images in pixels.
        device: where the model computes.
    """
    if device.type != "cpu" or torch.get_num_threads() > MOST_THREADS:
        return None
    return next((size for side, size in _SIZES if img_size <= side), 1)


class FixedSizeBatches(nn.Module):
    """A classifier in eval mode that is given the same number of images in each of its passes.

    The last pass of a batch is filled up with copies of its last image, whose logits are dropped.

    Args:
        model: maps pixels (B, 3, H, W) to logits (B, K), each image by itself.
        size: images of a pass; None: as many as there are.
    """

    def __init__(self, model: nn.Module, size: int | None) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, K) of ``pixels`` (B, 3, H, W)."""
        if self.size is None or len(pixels) in (0, self.size):
            return self.model(pixels)  # type: ignore[no-any-return]
        return torch.cat([self._filled(part, self.size) for part in torch.split(pixels, self.size)])

    def _filled(self, pixels: Tensor, size: int) -> Tensor:
        """Return the logits of at most ``size`` images."""
        missing = size - len(pixels)
        filling = pixels[-1:].detach().expand(missing, -1, -1, -1)
        logits: Tensor = self.model(torch.cat([pixels, filling]) if missing else pixels)
        return logits[:len(pixels)]
