"""Batches large enough that an image's arithmetic does not depend on how many came with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# A batch below the number of threads makes CPU libraries divide single images among threads and
# so sum in another order. Beyond this many threads a small batch would cost too much.
LARGEST_FILL = 8


def least_batch(device: torch.device) -> int:
    """Return the smallest batch in which ``device`` treats each image as in a larger one."""
    return min(torch.get_num_threads(), LARGEST_FILL) if device.type == "cpu" else 1


class SteadyBatches(nn.Module):
    """A classifier in eval mode that fills small batches up and drops the filling's logits.

    Args:
        model: maps pixels (B, 3, H, W) to logits (B, K), each image by itself.
        least: smallest batch that ``model`` is given.
    """

    def __init__(self, model: nn.Module, least: int) -> None:
        super().__init__()
        self.model = model
        self.least = least
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits (B, K) of ``pixels`` (B, 3, H, W)."""
        missing = self.least - len(pixels)
        if missing > 0 and len(pixels):
            filling = pixels[-1:].detach().expand(missing, -1, -1, -1)
            logits: Tensor = self.model(torch.cat([pixels, filling]))[:len(pixels)]
            return logits
        return self.model(pixels)  # type: ignore[no-any-return]
