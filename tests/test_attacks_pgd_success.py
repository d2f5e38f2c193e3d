"""What targeted PGD counts as success: over its iterates, its restarts and its losses."""

from __future__ import annotations

import pytest
import torch
from attack_cases import CLASSES, RANDOM, batch, small_net, some
from torch import Tensor, nn

from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.pgd import pgd
from sanrobust.attacks.result import BudgetResult


@pytest.mark.parametrize("loss", LOSSES.names())
def test_restarts_never_do_worse_than_the_first_start(loss: str) -> None:
    net, (images, labels, ids) = small_net(), batch(32)

    def attack(restarts: int) -> BudgetResult:
        return pgd(net, images, labels, ids, budgets=[Budget(6, 3, 2)], targets=RANDOM,
                   loss=loss, random_start=True, restarts=restarts)[0]

    one, four = attack(1), attack(4)
    assert (some(four.hit) >= some(one.hit)).all()
    assert (some(four.hit_any) >= some(one.hit_any)).all()
    final_one, final_four = some(one.target_loss)[:, -1], some(four.target_loss)[:, -1]
    unhit = ~some(four.hit)
    assert (final_four[unhit] <= final_one[unhit]).all()
    assert (final_four < final_one).any()
    assert torch.equal(four.adversarial[some(one.hit)], one.adversarial[some(one.hit)])
    torch.testing.assert_close(four.adv_logits, net(four.adversarial).detach())


def forked(pixels: Tensor) -> Tensor:
    """Bright images miss class 1 by little, dark ones win it with a lower probability."""
    bright = (pixels.mean((1, 2, 3), keepdim=True)[:, 0, 0] > 0.5).float()
    slope = pixels.mean((1, 2, 3)).unsqueeze(1) * torch.tensor([[0.0, 1e-4, 0.0]])
    missed, won = torch.tensor([[0.55, 0.45, 0.001]]).log(), torch.tensor([[0.3, 0.4, 0.3]]).log()
    return bright * missed + (1 - bright) * won + slope


def test_a_restart_that_hits_counts_more_than_one_that_comes_closer() -> None:
    images, ids = torch.full((32, 3, 2, 2), 0.5), [str(number) for number in range(32)]
    zeros = torch.zeros(32, dtype=torch.int64)

    def attack(restarts: int) -> BudgetResult:
        return pgd(forked, images, zeros, ids, targets=zeros + 1, random_start=True,
                   budgets=[Budget(8, 4, 0)], restarts=restarts)[0]

    one, many = attack(1), attack(12)
    assert 0 < some(one.hit).sum() < 32
    # A start is dark half of the time, so 12 of them miss it for 32 images in 1 run of 128.
    assert some(many.hit).all() and (some(many.target_loss) >= some(one.target_loss)).all()


def zigzag(pixels: Tensor) -> Tensor:
    """Class 1 only while the mean lies in a narrow band that a second step leaves again."""
    mean = pixels.mean((1, 2, 3))
    band = 20 * (mean - 100 / 255).clamp(max=4 / 255) - 60 * (mean - 106 / 255).clamp(min=0)
    # The slope of class 1 stays positive for the gradient while its value is replaced.
    slope = mean - mean.detach()
    return torch.stack([torch.zeros_like(mean) + 0.2, band.detach() + slope,
                        torch.zeros_like(mean) - 9], 1)


def test_hit_counts_the_last_iterate_and_hit_any_every_one() -> None:
    images = torch.full((1, 3, 4, 4), 100 / 255)
    result = pgd(zigzag, images, torch.tensor([0]), ["a"], targets=torch.tensor([1]),
                 budgets=[Budget(8, 4, 1), Budget(20, 10, 2), Budget(20, 4, 3)])
    assert [bool(some(one.hit)) for one in result] == [True, False, False]
    assert [bool(some(one.hit_any)) for one in result] == [True, False, True]


def test_a_hit_at_the_start_that_a_step_loses_is_no_hit() -> None:
    images = torch.full((1, 3, 4, 4), 103 / 255)
    still, moved = pgd(zigzag, images, torch.tensor([0]), ["a"],
                       targets=torch.tensor([1]),
                       budgets=[Budget(20, 10, 0), Budget(20, 10, 2)])
    assert some(still.hit).all() and not some(moved.hit_any).any()


def test_hit_any_counts_the_iterates_of_every_restart() -> None:
    images = torch.full((64, 3, 2, 2), 95 / 255)
    ids = [str(number) for number in range(64)]

    def attack(restarts: int) -> Tensor:
        return some(pgd(zigzag, images, torch.zeros(64, dtype=torch.int64), ids,
                        targets=torch.ones(64, dtype=torch.int64), random_start=True,
                        budgets=[Budget(20, 10, 2)], restarts=restarts)[0].hit_any)

    counts = [int(attack(restarts).sum()) for restarts in (1, 2, 8)]
    assert 0 < counts[0] < counts[1] < counts[2]


def test_with_no_step_the_start_is_scored() -> None:
    net, (images, _, ids) = small_net(), batch(16)
    targets = net(images).argmax(1)
    wrong = (targets + 1) % CLASSES
    result = pgd(net, images, wrong, ids, budgets=[Budget(8, 4, 0)], targets=targets)[0]
    assert some(result.hit).all() and some(result.hit_any).all()
    assert result.zero_gradient.shape == (16, 0)


@pytest.mark.parametrize("loss", LOSSES.names())
def test_the_attack_brings_every_image_closer_to_its_target(loss: str) -> None:
    images, labels, ids = batch(32)
    result = pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM,
                 loss=loss)[1]
    recorded = some(result.target_loss)
    assert recorded.shape == (32, 5)
    assert (recorded[:, -1] < recorded[:, 0]).float().mean() > 0.8
    expected = nn.functional.cross_entropy(result.clean_logits, some(result.targets),
                                           reduction="none")
    torch.testing.assert_close(recorded[:, 0], expected)


@pytest.mark.parametrize("loss", ["margin", "dlr"])
def test_the_loss_is_used(loss: str) -> None:
    images, labels, ids = batch(8)
    net = small_net()
    ce, other = (pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM, loss=name)
                 for name in ("ce", loss))
    assert not torch.equal(ce[1].adversarial, other[1].adversarial)


def test_a_large_budget_reaches_nearly_every_target() -> None:
    images, labels, ids = batch(32)
    result = pgd(small_net(), images, labels, ids, budgets=[Budget(128, 8, 30)],
                 targets=RANDOM)[0]
    assert some(result.hit).float().mean() > 0.9


def test_the_part_of_the_gradient_that_is_zero_is_reported() -> None:
    images, labels, ids = batch(2, side=4)
    result = pgd(lambda x: x[:, :, :2].flatten(1)[:, :CLASSES], images, labels, ids,
                 budgets=[Budget(8, 4, 2)], targets=RANDOM)[0]
    # 10 of the 48 pixels reach the logits.
    torch.testing.assert_close(result.zero_gradient, torch.full((2, 2), 38 / 48))
