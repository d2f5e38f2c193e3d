"""Targeted PGD: its arithmetic, its independence of the batch and what it leaves untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torchattacks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sanrobust.attacks import pgd
from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.pgd import targeted_pgd
from sanrobust.attacks.randomness import symmetric_noise
from sanrobust.attacks.result import BudgetResult
from sanrobust.attacks.targets import parse_rule
from sanrobust.errors import (ModelError, NonFiniteError, ProtocolError, UnknownNameError,
                              UsageError)

RANDOM = parse_rule("random")
CLASSES = 10


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads, much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_net() -> nn.Sequential:
    """A seeded conv net in eval mode whose logits are spread enough to be attacked."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(),
                        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, CLASSES)).eval()
    linear = net[-1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.mul_(10)
    return net


def batch(size: int, *, side: int = 12) -> tuple[Tensor, Tensor, list[str]]:
    """8-bit images, labels and ids."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (size, 3, side, side), generator=generator).float() / 255
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return pixels, labels, [f"image-{number}" for number in range(size)]


def some(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


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


@pytest.mark.parametrize("budget", TABLE10, ids=str)
def test_the_adversarials_are_those_of_torchattacks(budget: Budget) -> None:
    net, (images, labels, ids) = small_net(), batch(32)
    ours = targeted_pgd(net, images, labels, ids, budgets=[budget], targets=RANDOM)[0]
    other = torchattacks.PGD(net, eps=budget.eps / 255, alpha=budget.step / 255,
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
    targeted_pgd(model, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert (model.forward, model.backward) == (7, 5)


def test_sharing_the_first_pass_changes_no_number() -> None:
    net, (images, labels, ids) = small_net(), batch(8)
    together = targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    for budget, shared in zip(TABLE10, together, strict=True):
        alone = targeted_pgd(net, images, labels, ids, budgets=[budget], targets=RANDOM)[0]
        assert torch.equal(alone.adversarial, shared.adversarial)
        assert torch.equal(some(alone.target_loss), some(shared.target_loss))


@pytest.mark.parametrize(("budget", "forward", "backward"), [
    (Budget(8, 4, 0), 1, 0), (Budget(8, 4, 1), 2, 1), (Budget(0, 0, 0), 1, 0)])
def test_a_zero_start_spends_no_pass_on_the_start(budget: Budget, forward: int,
                                                  backward: int) -> None:
    model, (images, labels, ids) = Counting(small_net()), batch(2)
    targeted_pgd(model, images, labels, ids, budgets=[budget], targets=RANDOM)
    assert (model.forward, model.backward) == (forward, backward)


def test_a_random_start_pays_for_a_separate_clean_pass() -> None:
    model, (images, labels, ids) = Counting(small_net()), batch(2)
    targeted_pgd(model, images, labels, ids, budgets=[Budget(8, 4, 2)], targets=RANDOM,
                 random_start=True, restarts=3)
    assert (model.forward, model.backward) == (1 + 3 * 3, 3 * 2)


@pytest.mark.parametrize("rule", ["random", "second", "fixed:0"])
def test_the_clean_logits_are_those_of_the_clean_images(rule: str) -> None:
    net, (images, labels, ids) = small_net(), batch(8)
    labels = labels.clamp(min=1)
    for start in (False, True):
        result = targeted_pgd(net, images, labels, ids, budgets=TABLE10,
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
    result = targeted_pgd(small_net(), images, labels, list("abcd"), budgets=[budget],
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
    result = targeted_pgd(lambda x: x.flatten(1) @ weight, images, torch.tensor([0, 1]), ["a", "b"],
                          budgets=[budget], targets=RANDOM, random_start=random_start)[0]
    assert (result.adversarial - images).abs().max() <= budget.eps / 255 + 1e-6
    assert 0 <= result.adversarial.min() and result.adversarial.max() <= 1


@pytest.mark.parametrize("random_start", [False, True])
def test_eps_zero_changes_nothing(random_start: bool) -> None:
    images = edge_images()
    result = targeted_pgd(small_net(), images, torch.tensor([0, 1, 2, 3]), list("abcd"),
                          budgets=[Budget(0, 2, 2)], targets=RANDOM, random_start=random_start)[0]
    assert torch.equal(result.adversarial, images)
    assert torch.equal(result.linf, torch.zeros(4))


@pytest.mark.parametrize("budget", TABLE10, ids=str)
def test_eight_bit_images_stay_exactly_eight_bit(budget: Budget) -> None:
    images, labels, ids = batch(8)
    result = targeted_pgd(small_net(), images, labels, ids, budgets=[budget], targets=RANDOM)[0]
    levels = (result.adversarial * 255).round()
    assert torch.equal(levels.to(torch.uint8).float() / 255, result.adversarial)
    assert torch.equal(result.linf, (levels - images * 255).abs().flatten(1).amax(1).round())
    assert (result.linf == 8).all()


def test_an_image_is_snapped_or_not_whatever_its_neighbours_are() -> None:
    images, labels, ids = batch(2)
    images[1] += (0.3 / 255) * (images[1] < 0.5)
    net = small_net()
    both = targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)[0]
    for place in (0, 1):
        alone = targeted_pgd(net, images[place:place + 1], labels[place:place + 1],
                             ids[place:place + 1], budgets=TABLE10, targets=RANDOM)[0]
        torch.testing.assert_close(alone.adversarial[0], both.adversarial[place])
    assert (both.adversarial[1] * 255 % 1 > 0.2).any()


@pytest.mark.parametrize("size", [1, 7, 32])
def test_targets_and_random_starts_do_not_depend_on_the_batch(size: int) -> None:
    images, labels, ids = batch(32, side=6)
    start_alone = [Budget(8, 4, 0)]

    def attack(part: slice) -> BudgetResult:
        return targeted_pgd(small_net(), images[part], labels[part], ids[part], seed=3,
                            budgets=start_alone, targets=RANDOM, random_start=True)[0]

    whole = attack(slice(None))
    parts = [attack(slice(i, i + size)) for i in range(0, 32, size)]
    assert torch.equal(torch.cat([some(part.targets) for part in parts]), some(whole.targets))
    assert torch.equal(torch.cat([part.adversarial for part in parts]), whole.adversarial)


@pytest.mark.parametrize("size", [1, 7])
def test_adversarials_do_not_depend_on_the_batch(size: int) -> None:
    images, labels, ids = batch(32)
    net = small_net()
    whole = targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)[1]
    parts = [targeted_pgd(net, images[i:i + size], labels[i:i + size], ids[i:i + size],
                          budgets=TABLE10, targets=RANDOM)[1] for i in range(0, 32, size)]
    differing = torch.cat([part.adversarial for part in parts]) != whole.adversarial
    # A convolution may sum in another order for another batch size, which turns the sign of a
    # gradient that is nearly zero.
    assert differing.float().mean() <= 1e-4


def test_random_starts_are_uniform_in_the_ball_and_differ_by_seed_image_and_restart() -> None:
    noise = symmetric_noise((3, 64, 64), 0, "a", 0)
    assert noise.dtype == "float32" and -1 <= noise.min() < -0.99 and 0.99 < noise.max() < 1
    # Standard error of the mean of 12,288 draws of variance 1/3: 0.0052; five of them.
    assert abs(noise.mean()) < 0.026 and abs((noise ** 2).mean() - 1 / 3) < 0.014
    others = [symmetric_noise((3, 64, 64), *key) for key in ((1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert all((noise != other).mean() > 0.99 for other in others)
    assert (symmetric_noise((3, 64, 64), 0, "a", 0) == noise).all()
    assert symmetric_noise((1, 3, 3), 0, "a", 0).shape == (1, 3, 3)


@pytest.mark.parametrize("loss", LOSSES.names())
def test_restarts_never_do_worse_than_the_first_start(loss: str) -> None:
    net, (images, labels, ids) = small_net(), batch(32)

    def attack(restarts: int) -> BudgetResult:
        return targeted_pgd(net, images, labels, ids, budgets=[Budget(6, 3, 2)], targets=RANDOM,
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
        return targeted_pgd(forked, images, zeros, ids, targets=zeros + 1, random_start=True,
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
    result = targeted_pgd(zigzag, images, torch.tensor([0]), ["a"], targets=torch.tensor([1]),
                          budgets=[Budget(8, 4, 1), Budget(20, 10, 2), Budget(20, 4, 3)])
    assert [bool(some(one.hit)) for one in result] == [True, False, False]
    assert [bool(some(one.hit_any)) for one in result] == [True, False, True]


def test_a_hit_at_the_start_that_a_step_loses_is_no_hit() -> None:
    images = torch.full((1, 3, 4, 4), 103 / 255)
    still, moved = targeted_pgd(zigzag, images, torch.tensor([0]), ["a"],
                                targets=torch.tensor([1]),
                                budgets=[Budget(20, 10, 0), Budget(20, 10, 2)])
    assert some(still.hit).all() and not some(moved.hit_any).any()


def test_hit_any_counts_the_iterates_of_every_restart() -> None:
    images = torch.full((64, 3, 2, 2), 95 / 255)
    ids = [str(number) for number in range(64)]

    def attack(restarts: int) -> Tensor:
        return some(targeted_pgd(zigzag, images, torch.zeros(64, dtype=torch.int64), ids,
                                 targets=torch.ones(64, dtype=torch.int64), random_start=True,
                                 budgets=[Budget(20, 10, 2)], restarts=restarts)[0].hit_any)

    counts = [int(attack(restarts).sum()) for restarts in (1, 2, 8)]
    assert 0 < counts[0] < counts[1] < counts[2]


def test_with_no_step_the_start_is_scored() -> None:
    net, (images, _, ids) = small_net(), batch(16)
    targets = net(images).argmax(1)
    wrong = (targets + 1) % CLASSES
    result = targeted_pgd(net, images, wrong, ids, budgets=[Budget(8, 4, 0)], targets=targets)[0]
    assert some(result.hit).all() and some(result.hit_any).all()
    assert some(result.zero_gradient).shape == (16, 0)


@pytest.mark.parametrize("loss", LOSSES.names())
def test_the_attack_brings_every_image_closer_to_its_target(loss: str) -> None:
    images, labels, ids = batch(32)
    result = targeted_pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM,
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
    ce, other = (targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM, loss=name)
                 for name in ("ce", loss))
    assert not torch.equal(ce[1].adversarial, other[1].adversarial)


def test_a_large_budget_reaches_nearly_every_target() -> None:
    images, labels, ids = batch(32)
    result = targeted_pgd(small_net(), images, labels, ids, budgets=[Budget(128, 8, 30)],
                          targets=RANDOM)[0]
    assert some(result.hit).float().mean() > 0.9


def test_the_part_of_the_gradient_that_is_zero_is_reported() -> None:
    images, labels, ids = batch(2, side=4)
    result = targeted_pgd(lambda x: x[:, :, :2].flatten(1)[:, :CLASSES], images, labels, ids,
                          budgets=[Budget(8, 4, 2)], targets=RANDOM)[0]
    # 10 of the 48 pixels reach the logits.
    torch.testing.assert_close(some(result.zero_gradient), torch.full((2, 2), 38 / 48))


def failing(times: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    calls = iter(range(times))

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if next(calls, None) is None:
            raise RuntimeError("the model broke")

    return hook


@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_is_left_as_it_was_also_after_an_exception(breaks: bool) -> None:
    net, (images, labels, ids) = small_net(), batch(4)
    for place, weight in enumerate(net.parameters()):
        weight.requires_grad_(place % 2 == 0)
    flags = [weight.requires_grad for weight in net.parameters()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    if breaks:
        net.register_forward_hook(failing(3))
        with pytest.raises(RuntimeError, match="the model broke"):
            targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    else:
        targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert [weight.requires_grad for weight in net.parameters()] == flags
    assert all(weight.grad is None for weight in net.parameters())
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_no_parameter_asks_for_a_gradient_during_the_attack() -> None:
    net, (images, labels, ids) = small_net(), batch(2)
    asked: list[bool] = []
    net.register_forward_pre_hook(
        lambda module, inputs: asked.append(any(w.requires_grad for w in module.parameters())))
    targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert asked == [False] * 7 and all(weight.requires_grad for weight in net.parameters())


def test_a_model_in_train_mode_is_refused() -> None:
    images, labels, ids = batch(2)
    with pytest.raises(ProtocolError, match="every part of the model must be in eval mode"):
        targeted_pgd(small_net().train(), images, labels, ids, budgets=TABLE10, targets=RANDOM)


def test_a_walk_that_left_its_ball_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, ids = batch(2)
    monkeypatch.setattr(pgd._Ball, "project", lambda self, pixels: pixels.clamp(0, 1))
    with pytest.raises(ProtocolError, match="must stay within 3/255 of the clean ones"):
        targeted_pgd(small_net(), images, labels, ids, budgets=[Budget(3, 2, 2)], targets=RANDOM)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_logits_of_another_precision_are_scored_as_float32(dtype: torch.dtype) -> None:
    net, (images, labels, ids) = small_net(), batch(2)
    result = targeted_pgd(lambda x: net(x).to(dtype), images, labels, ids, budgets=TABLE10,
                          targets=RANDOM)[0]
    assert result.clean_logits.dtype == result.adv_logits.dtype == torch.float32
    assert torch.equal(result.clean_pred, net(images).to(dtype).argmax(1))


def test_a_gradient_that_the_caller_holds_is_kept() -> None:
    net, (images, labels, ids) = small_net(), batch(2)
    net(images).sum().backward()
    held = [weight.grad for weight in net.parameters()]
    targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert all(weight.grad is grad for weight, grad in zip(net.parameters(), held, strict=True))


def test_the_images_of_the_caller_are_left_as_they_were() -> None:
    images, labels, ids = batch(4)
    before = images.clone()
    targeted_pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert torch.equal(images, before) and not images.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_attack_works_inside_a_block_without_gradients(mode: type) -> None:
    net, (images, labels, ids) = small_net(), batch(4)
    expected = targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)[0]
    with mode():
        result = targeted_pgd(net, images * 1, labels, ids, budgets=TABLE10, targets=RANDOM)[0]
    assert torch.equal(result.adversarial, expected.adversarial)


def test_the_attack_draws_from_no_global_generator() -> None:
    net, (images, labels, ids) = small_net(), batch(4)
    before = torch.get_rng_state()
    targeted_pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM, random_start=True)
    assert torch.equal(torch.get_rng_state(), before)


def changes_its_input(pixels: Tensor) -> Tensor:
    return pixels.detach().mul_(0.5).flatten(1)[:, :CLASSES]


def returns_a_nan_gradient(pixels: Tensor) -> Tensor:
    return torch.where(pixels > 2, pixels.sub(2).sqrt(), pixels).flatten(1)[:, :CLASSES]


@pytest.mark.parametrize(("model", "kind", "message"), [
    (changes_its_input, ModelError, "the model must leave its input as it is"),
    (returns_a_nan_gradient, NonFiniteError, "the gradient must be a number everywhere"),
    (lambda x: x.detach().flatten(1)[:, :CLASSES], ModelError, "must be differentiable"),
    (lambda x: x.flatten(1)[:, :CLASSES] / 0, ModelError, "the model's logits must be finite"),
    (lambda x: x, ModelError, r"must return logits of shape \(2, K\), but it returned \(2, 3, 4"),
    (lambda x: {"logits": x}, ModelError, "but it returned dict"),
    (lambda x: x.flatten(1)[:, :1], ModelError, "must return logits"),
    (lambda x: x.flatten(1)[:, :5], ProtocolError, "labels must be classes of the model, 0 to 4"),
])
def test_a_model_that_is_no_classifier_is_refused(model: Callable[[Tensor], Tensor],
                                                  kind: type[Exception], message: str) -> None:
    images, _, ids = batch(2, side=4)
    with pytest.raises(kind, match=message):
        targeted_pgd(model, images, torch.tensor([9, 8]), ids, budgets=TABLE10, targets=RANDOM)


@pytest.mark.parametrize(("targets", "message"), [
    (torch.tensor([1, 0]), "a target must differ from the image's label, but image 0"),
    (torch.tensor([2, 10]), "targets must be classes of the model, 0 to 9, but they span 2 to 10"),
    (torch.tensor([2]), "each image must have one int64 target"),
    (torch.tensor([2.0, 3.0]), "each image must have one int64 target"),
])
def test_targets_that_cannot_be_aimed_at_are_refused(targets: Tensor, message: str) -> None:
    images, _, ids = batch(2)
    with pytest.raises(ProtocolError, match=message):
        targeted_pgd(small_net(), images, torch.tensor([1, 1]), ids, budgets=TABLE10,
                     targets=targets)


def test_an_image_that_its_rule_excludes_is_refused_not_attacked() -> None:
    images, _, ids = batch(2)
    with pytest.raises(ProtocolError, match="leave out the images that TargetRule.split excludes"):
        targeted_pgd(small_net(), images, torch.tensor([1, 3]), ids, budgets=TABLE10,
                     targets=parse_rule("fixed:3"))


def test_a_mistyped_loss_is_refused_with_the_closest_one() -> None:
    images, labels, ids = batch(2)
    with pytest.raises(UnknownNameError, match="did you mean margin"):
        targeted_pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM,
                     loss="margins")


@pytest.mark.parametrize(("restarts", "random_start"), [(2, False), (0, True), (0, False)])
def test_restarts_without_a_random_start_are_refused(restarts: int, random_start: bool) -> None:
    images, labels, ids = batch(2)
    with pytest.raises(UsageError, match="restarts must be 1, or more with a random start"):
        targeted_pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM,
                     restarts=restarts, random_start=random_start)
