"""The walk of targeted PGD: its arithmetic, its ball and its independence of the batch."""

from __future__ import annotations

import pytest
import torch
from attack_cases import RANDOM, batch, require_torchattacks, small_net, some
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.pgd import pgd, targeted_pgd
from sanrobust.attacks.randomness import symmetric_noise
from sanrobust.attacks.result import BudgetResult
from sanrobust.attacks.targets import parse_rule


class Counting:
    """A classifier that counts its forward passes and, through a hook, its backward passes."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.forward, self.backward = net, 0, 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.forward += 1
        logits: Tensor = self.net(pixels)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backward += 1


def test_scripts_may_use_the_first_name_of_the_attack() -> None:
    assert targeted_pgd is pgd


@pytest.mark.parametrize("budget", TABLE10, ids=str)
def test_the_adversarials_are_those_of_torchattacks(budget: Budget) -> None:
    net, (images, labels, ids) = small_net(), batch(32)
    ours = pgd(net, images, labels, ids, budgets=[budget], targets=RANDOM)[0]
    other = require_torchattacks().PGD(net, eps=budget.eps / 255, alpha=budget.step / 255,
                                       steps=budget.iters, random_start=False)
    other.set_mode_targeted_by_label(quiet=True)
    theirs = other(images, some(ours.targets))
    # Theirs leaves the 8-bit grid by float rounding, which may turn the sign of a gradient that
    # is nearly zero: at most one pixel in 10,000.
    differing = (theirs * 255).round() != (ours.adversarial * 255).round()
    assert differing.float().mean() <= 1e-4
    assert torch.equal(net(theirs).argmax(1), ours.adv_pred)


def test_two_budgets_of_table_10_cost_seven_forward_and_five_backward_passes() -> None:
    model, (images, labels, ids) = Counting(small_net()), batch(4)
    pgd(model, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert (model.forward, model.backward) == (7, 5)


def test_sharing_the_first_pass_changes_no_number() -> None:
    net, (images, labels, ids) = small_net(), batch(8)
    together = pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    for budget, shared in zip(TABLE10, together, strict=True):
        alone = pgd(net, images, labels, ids, budgets=[budget], targets=RANDOM)[0]
        assert torch.equal(alone.adversarial, shared.adversarial)
        assert torch.equal(some(alone.target_loss), some(shared.target_loss))


@pytest.mark.parametrize(("budget", "forward", "backward"), [
    (Budget(8, 4, 0), 1, 0), (Budget(8, 4, 1), 2, 1), (Budget(0, 0, 0), 1, 0)])
def test_a_zero_start_spends_no_pass_on_the_start(budget: Budget, forward: int,
                                                  backward: int) -> None:
    model, (images, labels, ids) = Counting(small_net()), batch(2)
    pgd(model, images, labels, ids, budgets=[budget], targets=RANDOM)
    assert (model.forward, model.backward) == (forward, backward)


def test_a_random_start_pays_for_a_separate_clean_pass() -> None:
    model, (images, labels, ids) = Counting(small_net()), batch(2)
    pgd(model, images, labels, ids, budgets=[Budget(8, 4, 2)], targets=RANDOM,
        random_start=True, restarts=3)
    assert (model.forward, model.backward) == (1 + 3 * 3, 3 * 2)


@pytest.mark.parametrize("rule", ["random", "second", "fixed:0"])
def test_the_clean_logits_are_those_of_the_clean_images(rule: str) -> None:
    net, (images, labels, ids) = small_net(), batch(8)
    labels = labels.clamp(min=1)
    for start in (False, True):
        result = pgd(net, images, labels, ids, budgets=TABLE10,
                     targets=parse_rule(rule), random_start=start)[1]
        torch.testing.assert_close(result.clean_logits, net(images).detach())
        torch.testing.assert_close(result.adv_logits, net(result.adversarial).detach())


ODD = [Budget(0, 0, 0), Budget(0, 2, 2), Budget(8, 4, 2), Budget(8, 2, 4), Budget(255, 255, 2),
       Budget(255, 3, 2), Budget(8, 4, 0), Budget(3.5, 1.25, 3), Budget(2, 8, 1), Budget(0.5, 8, 2)]


def edge_images() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    grid = torch.randint(256, (1, 3, 8, 8), generator=generator).float() / 255
    free = torch.rand(1, 3, 8, 8, generator=generator)
    return torch.cat([torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), grid, free])


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("budget", ODD, ids=str)
def test_adversarials_stay_in_the_ball_and_in_range(budget: Budget, random_start: bool) -> None:
    images, labels = edge_images(), torch.tensor([0, 1, 2, 3])
    result = pgd(small_net(), images, labels, list("abcd"), budgets=[budget],
                 targets=RANDOM, random_start=random_start)[0]
    moved = (result.adversarial - images).abs().flatten(1).amax(1)
    # The tolerance of the guide: float32 rounds near 1 by 6e-8 per operation.
    assert (moved <= budget.eps / 255 + 1e-6).all()
    assert result.adversarial.min() >= 0 and result.adversarial.max() <= 1
    torch.testing.assert_close(result.linf, moved * 255, rtol=0, atol=3e-4)
    assert some(result.target_loss).shape == (4, budget.iters + 1)


@settings(max_examples=30, deadline=None)
@given(eps=st.floats(0, 255), step=st.floats(0.01, 255), iters=st.integers(0, 3),
       seed=st.integers(0, 2**31), random_start=st.booleans())
def test_any_budget_stays_in_the_ball(eps: float, step: float, iters: int, seed: int,
                                      random_start: bool) -> None:
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    weight = torch.randn(48, 5, generator=torch.Generator().manual_seed(seed))
    budget = Budget(eps, step, iters)
    result = pgd(lambda x: x.flatten(1) @ weight, images, torch.tensor([0, 1]), ["a", "b"],
                 budgets=[budget], targets=RANDOM, random_start=random_start)[0]
    assert (result.adversarial - images).abs().max() <= budget.eps / 255 + 1e-6
    assert 0 <= result.adversarial.min() and result.adversarial.max() <= 1


@pytest.mark.parametrize("random_start", [False, True])
def test_eps_zero_changes_nothing(random_start: bool) -> None:
    images = edge_images()
    result = pgd(small_net(), images, torch.tensor([0, 1, 2, 3]), list("abcd"),
                 budgets=[Budget(0, 2, 2)], targets=RANDOM, random_start=random_start)[0]
    assert torch.equal(result.adversarial, images)
    assert torch.equal(result.linf, torch.zeros(4))


@pytest.mark.parametrize("budget", TABLE10, ids=str)
def test_eight_bit_images_stay_exactly_eight_bit(budget: Budget) -> None:
    images, labels, ids = batch(8)
    result = pgd(small_net(), images, labels, ids, budgets=[budget], targets=RANDOM)[0]
    levels = (result.adversarial * 255).round()
    assert torch.equal(levels.to(torch.uint8).float() / 255, result.adversarial)
    assert torch.equal(result.linf, (levels - images * 255).abs().flatten(1).amax(1).round())
    assert (result.linf == 8).all()


def test_an_image_is_snapped_or_not_whatever_its_neighbours_are() -> None:
    images, labels, ids = batch(2)
    images[1] += (0.3 / 255) * (images[1] < 0.5)
    net = small_net()
    both = pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)[0]
    for place in (0, 1):
        alone = pgd(net, images[place:place + 1], labels[place:place + 1],
                    ids[place:place + 1], budgets=TABLE10, targets=RANDOM)[0]
        torch.testing.assert_close(alone.adversarial[0], both.adversarial[place])
    assert (both.adversarial[1] * 255 % 1 > 0.2).any()


@pytest.mark.parametrize("size", [1, 7, 32])
def test_targets_and_random_starts_do_not_depend_on_the_batch(size: int) -> None:
    images, labels, ids = batch(32, side=6)
    start_alone = [Budget(8, 4, 0)]

    def attack(part: slice) -> BudgetResult:
        return pgd(small_net(), images[part], labels[part], ids[part], seed=3,
                   budgets=start_alone, targets=RANDOM, random_start=True)[0]

    whole = attack(slice(None))
    parts = [attack(slice(i, i + size)) for i in range(0, 32, size)]
    assert torch.equal(torch.cat([some(part.targets) for part in parts]), some(whole.targets))
    assert torch.equal(torch.cat([part.adversarial for part in parts]), whole.adversarial)


@pytest.mark.parametrize("size", [1, 7])
def test_adversarials_do_not_depend_on_the_batch(size: int) -> None:
    images, labels, ids = batch(32)
    net = small_net()
    whole = pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)[1]
    parts = [pgd(net, images[i:i + size], labels[i:i + size], ids[i:i + size],
                 budgets=TABLE10, targets=RANDOM)[1] for i in range(0, 32, size)]
    differing = torch.cat([part.adversarial for part in parts]) != whole.adversarial
    # A convolution may sum in another order for another batch size, which turns the sign of a
    # gradient that is nearly zero.
    assert differing.float().mean() <= 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_logits_of_another_precision_are_scored_as_float32(dtype: torch.dtype) -> None:
    net, (images, labels, ids) = small_net(), batch(2)
    result = pgd(lambda x: net(x).to(dtype), images, labels, ids, budgets=TABLE10,
                 targets=RANDOM)[0]
    assert result.clean_logits.dtype == result.adv_logits.dtype == torch.float32
    assert torch.equal(result.clean_pred, net(images).to(dtype).argmax(1))


def test_random_starts_are_uniform_in_the_ball_and_differ_by_seed_image_and_restart() -> None:
    noise = symmetric_noise((3, 64, 64), 0, "a", 0)
    assert noise.dtype == "float32" and -1 <= noise.min() < -0.99 and 0.99 < noise.max() < 1
    # Standard error of the mean of 12,288 draws of variance 1/3: 0.0052; five of them.
    assert abs(noise.mean()) < 0.026 and abs((noise ** 2).mean() - 1 / 3) < 0.014
    others = [symmetric_noise((3, 64, 64), *key) for key in ((1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert all((noise != other).mean() > 0.99 for other in others)
    assert (symmetric_noise((3, 64, 64), 0, "a", 0) == noise).all()
    assert symmetric_noise((1, 3, 3), 0, "a", 0).shape == (1, 3, 3)
