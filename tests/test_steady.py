"""An image's logits and gradient do not depend on how many images came with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import Command
from torch import Tensor, nn

from sanrobust.steady import FixedSizeBatches, pass_size, passes_of
from sanrobust.zoo.resolve import create_model

CPU = torch.device("cpu")


class Remembering(nn.Module):
    """Returns means per channel and remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        return pixels.square().mean((2, 3))


def images(count: int, side: int = 4) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("count", "passes"), [(0, [0]), (1, [4]), (4, [4]), (5, [4, 4]),
                                               (12, [4, 4, 4])])
def test_every_pass_has_one_size_and_the_filling_is_dropped(count: int, passes: list[int]) -> None:
    plain, model = Remembering(), Remembering()
    pixels = images(count)
    assert torch.equal(FixedSizeBatches(model, 4)(pixels), plain(pixels))
    assert model.sizes == passes


class Uneven(Remembering):
    """Sums in another way where there are fewer than 4 images."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels) * (1 + 1e-6 * (len(pixels) < 4))


class Drawing(Remembering):
    """Adds what it draws."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels) + torch.randn(len(pixels), 1)


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize(("made", "passes"), [(Remembering, [2, 8, 2]), (Uneven, [4, 8, 4]),
                                              (Drawing, [8, 8, 8])])
def test_smaller_passes_are_taken_once_they_are_seen_to_be_equal(
        made: type[Remembering], passes: list[int], with_gradient: bool) -> None:
    inner = made()
    model, pixels = FixedSizeBatches(inner, 8), images(2).requires_grad_(with_gradient)
    first = model(pixels)
    while inner.sizes[-1] == 8 and len(inner.sizes) < 60:
        model(pixels)
    inner.sizes.clear()
    torch.manual_seed(0)
    last = [model(some) for some in (pixels, images(8), pixels)]
    assert inner.sizes == passes
    if made is not Drawing:
        assert torch.equal(last[0], first) and torch.equal(last[2], first)


def test_trying_passes_out_takes_nothing_from_what_others_draw() -> None:
    model, drawn = FixedSizeBatches(Drawing(), 8), []
    for tries in (3, 30):  # the smaller passes are tried out in the second
        for _ in range(tries):
            torch.manual_seed(0)
            model(images(2))
        drawn.append(torch.rand(1))
    assert torch.equal(*drawn)


@pytest.mark.parametrize(("count", "passes"), [(1, (2,)), (2, (2,)), (3, (4,)), (5, (8,)),
                                               (18, (16, 2)), (20, (16, 4)), (31, (32,))])
def test_what_is_left_goes_through_the_passes_that_cost_least(count: int, passes: tuple[int, ...]
                                                              ) -> None:
    assert passes_of(count, (32, 16, 8, 4, 2)) == passes
    assert passes_of(count, (32,)) == (32,)


def test_without_a_size_a_batch_is_passed_on_as_it_is() -> None:
    model = Remembering()
    FixedSizeBatches(model, None)(images(5))
    assert model.sizes == [5]


@pytest.mark.parametrize("count", [2, 8, 11])
def test_the_filling_adds_nothing_to_the_gradient(count: int) -> None:
    pixels = images(count).requires_grad_()
    filled, = torch.autograd.grad(FixedSizeBatches(Remembering(), 8)(pixels).sum(), pixels)
    plain, = torch.autograd.grad(Remembering()(pixels).sum(), pixels)
    assert torch.equal(filled, plain)


@pytest.mark.parametrize(("side", "size"), [(28, 32), (64, 32), (65, 8), (224, 8), (384, 8),
                                            (385, 1), (1024, 1)])
def test_large_images_come_in_small_passes(side: int, size: int) -> None:
    assert pass_size(side, CPU) == size


def test_no_size_is_set_where_none_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pass_size(224, torch.device("cuda")) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 9)
    assert pass_size(224, CPU) is None


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("name", ["resnet26.digits", "san10-pair.digits"])
def test_no_bit_of_logits_or_gradients_depends_on_the_batch(name: str, threads: int) -> None:
    classifier = create_model(name)
    model = FixedSizeBatches(classifier, pass_size(classifier.preprocessing.img_size, CPU))
    pixels = images(34, classifier.preprocessing.img_size)

    def computed(some: Tensor, batch: int) -> list[Tensor]:
        found = []
        for part in torch.split(some, batch):
            leaf = part.clone().requires_grad_()
            logits = model(leaf)
            found.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), leaf)))
        return [torch.cat(each) for each in zip(*found)]

    whole = computed(pixels, len(pixels))
    for batch, count in ((1, 3), (5, 12), (33, 34)):
        for one, two in zip(computed(pixels[:count], batch), whole):
            assert torch.equal(one, two[:count]), f"batches of {batch} with {threads} threads"


@pytest.mark.parametrize("experiment", ["rotate", "pgd"])
def test_runs_with_other_batches_record_the_same_bits(command: Command, tmp_path: Path,
                                                      experiment: str) -> None:
    column = "prob_label" if experiment == "rotate" else "target_loss"
    found = []
    for batch in (1, 7):
        out = tmp_path / str(batch)
        result = command(experiment, "--model", "resnet26.digits", "--num-samples", 7,
                         "--batch-size", batch, "--out", out)
        assert result.exit_code == 0, result.output
        # A chunk of the records at a time, in the order of the images.
        rows = [pandas.read_parquet(path) for path in sorted(out.glob("runs/**/*.parquet"))]
        found.append([repr(np.asarray(each).tolist()) for each in pandas.concat(rows)[column]])
    assert len(found[0]) >= 14 and found[0] == found[1]
