"""An image's logits and gradient do not depend on how many images came with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sanrobust.steady import SteadyBatches, least_batch


class Remembering(nn.Module):
    """Returns means per channel and remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        return pixels.square().mean((2, 3))


@pytest.mark.parametrize(("images", "given"), [(0, 0), (1, 4), (3, 4), (4, 4), (5, 5)])
def test_small_batches_are_filled_and_the_filling_is_dropped(images: int, given: int) -> None:
    plain, model = Remembering(), Remembering()
    pixels = torch.rand(images, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SteadyBatches(model, 4)(pixels), plain(pixels))
    assert model.sizes == [given]


def test_the_filling_adds_nothing_to_the_gradient() -> None:
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    filled, = torch.autograd.grad(SteadyBatches(Remembering(), 8)(pixels).sum(), pixels)
    plain, = torch.autograd.grad(Remembering()(pixels).sum(), pixels)
    assert torch.equal(filled, plain)


def test_the_least_batch_follows_the_threads_up_to_a_bound(
        monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 4, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        found.append(least_batch(torch.device("cpu")))
    assert found == [1, 4, 8]
    assert least_batch(torch.device("cuda")) == 1
