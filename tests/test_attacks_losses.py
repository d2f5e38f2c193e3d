"""The losses an attack can descend, against formulas written a second time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sanrobust.attacks.losses import LOSSES
from sanrobust.errors import UsageError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ce_of(z: list[float], target: int, label: int) -> float:
    return math.log(sum(math.exp(value) for value in z)) - z[target]


def margin_of(z: list[float], target: int, label: int) -> float:
    return max(value for place, value in enumerate(z) if place != target) - z[target]


def dlr_of(z: list[float], target: int, label: int) -> float:
    ordered = sorted(z, reverse=True)
    return (z[label] - z[target]) / (ordered[0] - (ordered[2] + ordered[3]) / 2)


FORMULAS: dict[str, Callable[[list[float], int, int], float]] = {
    "ce": ce_of, "margin": margin_of, "dlr": dlr_of}


def case(classes: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, classes, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(classes, (40,), generator=generator)
    shift = torch.randint(1, classes, (40,), generator=generator)
    return logits, (labels + shift) % classes, labels


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_is_its_formula(name: str) -> None:
    logits, targets, labels = case()
    expected = [FORMULAS[name](z, t, y) for z, t, y in
                zip(logits.tolist(), targets.tolist(), labels.tolist(), strict=True)]
    # Double precision; dlr adds 1e-12 to a denominator of order 1.
    torch.testing.assert_close(LOSSES.get(name)(logits, targets, labels),
                               torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES.names())
def test_the_gradient_of_a_loss_is_its_finite_difference(name: str) -> None:
    logits, targets, labels = case()
    loss = LOSSES.get(name)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, labels), logits.requires_grad_())


@pytest.mark.parametrize("name", LOSSES.names())
def test_descending_a_loss_raises_the_target_of_an_image_that_is_not_won(name: str) -> None:
    logits, targets, labels = case()
    leaf = logits.requires_grad_()
    gradient = torch.autograd.grad(LOSSES.get(name)(leaf, targets, labels).sum(), leaf)[0]
    rows = torch.arange(len(logits))
    behind = logits[rows, targets] < logits[rows, labels]
    assert behind.sum() >= 10
    assert (gradient[rows, targets][behind] < 0).all()


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_does_not_depend_on_the_other_images(name: str) -> None:
    logits, targets, labels = case()
    loss = LOSSES.get(name)
    alone = torch.cat([loss(logits[i:i + 1], targets[i:i + 1], labels[i:i + 1]) for i in range(40)])
    assert torch.equal(loss(logits, targets, labels), alone)


def test_margin_is_negative_exactly_where_the_target_wins() -> None:
    logits, targets, labels = case()
    won = logits.argmax(1) == targets
    assert 0 < won.sum() < len(won)
    assert torch.equal(LOSSES.get("margin")(logits, targets, labels) < 0, won)


def test_dlr_ignores_shift_and_scale_of_the_logits() -> None:
    logits, targets, labels = case()
    dlr = LOSSES.get("dlr")
    torch.testing.assert_close(dlr(5 * logits + 7, targets, labels), dlr(logits, targets, labels))


def test_dlr_refuses_three_classes() -> None:
    with pytest.raises(UsageError, match="at least 4 classes, but the model has 3"):
        LOSSES.get("dlr")(torch.zeros(1, 3), torch.tensor([1]), torch.tensor([0]))
