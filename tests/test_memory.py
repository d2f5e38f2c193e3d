"""How many images fit, and what happens when they do not."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from sanrobust import memory
from sanrobust.data.loader import Batch
from sanrobust.evaluate import _measure
from sanrobust.experiments.base import Columns, stacked

CPU = torch.device("cpu")


def batch_of(ids: str) -> Batch:
    return Batch(tuple(ids), torch.arange(len(ids)), torch.zeros(len(ids), 3, 2, 2))


class Doubling(nn.Module):
    """Keeps one tensor of the input's size for the gradient."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels * pixels).flatten(1)


def test_gradients_cost_the_tensors_that_are_kept() -> None:
    image = 3 * 8 * 8 * 4
    with_gradient = memory.image_bytes(Doubling(), 8, CPU, gradient=True)
    without = memory.image_bytes(Doubling(), 8, CPU, gradient=False)
    assert with_gradient - without == image


def test_nothing_of_the_pass_is_kept() -> None:
    # A ReLU keeps what it returns, which knows the ReLU.
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    weight = weakref.ref(model[0].weight)
    assert memory.image_bytes(model, 8, CPU, gradient=True) > 0
    del model
    gc.collect()
    assert weight() is None


def test_a_larger_image_leaves_room_for_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: 1 << 20)
    small = memory.fit_batch(Doubling(), 8, CPU, gradient=True)
    large = memory.fit_batch(Doubling(), 32, CPU, gradient=True)
    assert 1 <= large < small <= memory.LARGEST_BATCH


@pytest.mark.parametrize(("free", "expected"), [(0, 1), (1 << 50, memory.LARGEST_BATCH)])
def test_a_batch_is_at_least_one_image_and_never_huge(monkeypatch: pytest.MonkeyPatch, free: int,
                                                      expected: int) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: free)
    assert memory.fit_batch(Doubling(), 8, CPU, gradient=True) == expected


class Crowded:
    """A measurement whose memory holds two images; it remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def measure(self, model: object, batch: Batch) -> Columns:
        self.seen.append(len(batch.ids))
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("no room")
        return {"image": batch.ids, "label": batch.labels.tolist()}


def test_a_batch_that_does_not_fit_is_measured_in_halves_in_order() -> None:
    crowded = Crowded()
    rows = stacked(_measure(Doubling(), batch_of("abcdefg"), crowded))  # type: ignore[arg-type]
    assert rows == {"image": list("abcdefg"), "label": list(range(7))}
    assert max(crowded.seen) == 7 and min(crowded.seen) == 1


def test_one_image_that_does_not_fit_is_an_error() -> None:
    class Full(Crowded):
        def measure(self, *_: object) -> Columns:
            raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError):
        _measure(Doubling(), batch_of("abcd"), Full())  # type: ignore[arg-type]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    class Broken(Crowded):
        def measure(self, model: object, batch: Batch) -> Columns:
            self.seen.append(len(batch.ids))
            raise RuntimeError("shapes differ")

    broken = Broken()
    with pytest.raises(RuntimeError, match="shapes differ"):
        _measure(Doubling(), batch_of("abcd"), broken)  # type: ignore[arg-type]
    assert broken.seen == [4]
