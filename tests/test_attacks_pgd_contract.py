"""The contract of targeted PGD: what it leaves as it was, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_cases import CLASSES, RANDOM, batch, small_net
from torch import Tensor, nn

from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.pgd import _Ball, pgd
from sanrobust.attacks.targets import parse_rule
from sanrobust.errors import (ModelError, NonFiniteError, ProtocolError, UnknownNameError,
                              UsageError)


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
            pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    else:
        pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert [weight.requires_grad for weight in net.parameters()] == flags
    assert all(weight.grad is None for weight in net.parameters())
    assert not any(module.training for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_no_parameter_asks_for_a_gradient_during_the_attack() -> None:
    net, (images, labels, ids) = small_net(), batch(2)
    asked: list[bool] = []
    net.register_forward_pre_hook(
        lambda module, inputs: asked.append(any(w.requires_grad for w in module.parameters())))
    pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert asked == [False] * 7 and all(weight.requires_grad for weight in net.parameters())


def test_a_model_in_train_mode_is_refused() -> None:
    images, labels, ids = batch(2)
    with pytest.raises(ProtocolError, match="every part of the model must be in eval mode"):
        pgd(small_net().train(), images, labels, ids, budgets=TABLE10, targets=RANDOM)


def test_a_walk_that_left_its_ball_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, ids = batch(2)
    monkeypatch.setattr(_Ball, "project", lambda self, pixels: pixels.clamp(0, 1))
    with pytest.raises(ProtocolError, match="must stay within 3/255 of the clean ones"):
        pgd(small_net(), images, labels, ids, budgets=[Budget(3, 2, 2)], targets=RANDOM)


def test_a_gradient_that_the_caller_holds_is_kept() -> None:
    net, (images, labels, ids) = small_net(), batch(2)
    net(images).sum().backward()
    held = [weight.grad for weight in net.parameters()]
    pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert all(weight.grad is grad for weight, grad in zip(net.parameters(), held, strict=True))


def test_the_images_of_the_caller_are_left_as_they_were() -> None:
    images, labels, ids = batch(4)
    before = images.clone()
    pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM)
    assert torch.equal(images, before) and not images.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_attack_works_inside_a_block_without_gradients(mode: type) -> None:
    net, (images, labels, ids) = small_net(), batch(4)
    expected = pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM)[0]
    with mode():
        result = pgd(net, images * 1, labels, ids, budgets=TABLE10, targets=RANDOM)[0]
    assert torch.equal(result.adversarial, expected.adversarial)


def test_the_attack_draws_from_no_global_generator() -> None:
    net, (images, labels, ids) = small_net(), batch(4)
    before = torch.get_rng_state()
    pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM, random_start=True)
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
        pgd(model, images, torch.tensor([9, 8]), ids, budgets=TABLE10, targets=RANDOM)


@pytest.mark.parametrize(("targets", "message"), [
    (torch.tensor([1, 0]), "a target must differ from the image's label, but image 0"),
    (torch.tensor([2, 10]), "targets must be classes of the model, 0 to 9, but they span 2 to 10"),
    (torch.tensor([2]), "each image must have one int64 target"),
    (torch.tensor([2.0, 3.0]), "each image must have one int64 target"),
])
def test_targets_that_cannot_be_aimed_at_are_refused(targets: Tensor, message: str) -> None:
    images, _, ids = batch(2)
    with pytest.raises(ProtocolError, match=message):
        pgd(small_net(), images, torch.tensor([1, 1]), ids, budgets=TABLE10,
            targets=targets)


def test_an_image_that_its_rule_excludes_is_refused_not_attacked() -> None:
    images, _, ids = batch(2)
    with pytest.raises(ProtocolError, match="leave out the images that TargetRule.split excludes"):
        pgd(small_net(), images, torch.tensor([1, 3]), ids, budgets=TABLE10,
            targets=parse_rule("fixed:3"))


def test_a_mistyped_loss_is_refused_with_the_closest_one() -> None:
    images, labels, ids = batch(2)
    with pytest.raises(UnknownNameError, match="did you mean margin"):
        pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM,
            loss="margins")


@pytest.mark.parametrize(("restarts", "random_start"), [(2, False), (0, True), (0, False)])
def test_restarts_without_a_random_start_are_refused(restarts: int, random_start: bool) -> None:
    images, labels, ids = batch(2)
    with pytest.raises(UsageError, match="restarts must be 1, or more with a random start"):
        pgd(small_net(), images, labels, ids, budgets=TABLE10, targets=RANDOM,
            restarts=restarts, random_start=random_start)
