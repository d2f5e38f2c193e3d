"""An attack of torchattacks has no side effects, and what it returns is checked."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from attack_cases import FEW, RANDOM, few_class_net, predicted, require_torchattacks
from torch import Tensor, nn

from sanrobust.attacks.torchattacks_adapter import adapt
from sanrobust.errors import ModelError, NonFiniteError, ProtocolError

torchattacks = require_torchattacks()


class Rude(torchattacks.attack.Attack):  # type: ignore[misc,name-defined]
    """A fake attack that disturbs everything it can reach, then does what ``ending`` says."""

    ending: Callable[[Tensor], object]
    seen_training: list[bool] = []

    def __init__(self, model: nn.Module) -> None:
        super().__init__("Rude", model)
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> object:
        print("chatter")
        self.model.train()
        Rude.seen_training.append(any(module.training for module in self.model.modules()))
        for module in self.model.modules():
            module.training = True
        for weight in self.model.parameters():
            weight.requires_grad_(True)
        self.model.zero_grad()
        torch.manual_seed(99)
        np.random.seed(99)
        random.seed(99)
        return type(self).ending(images)


def rude(monkeypatch: pytest.MonkeyPatch, ending: Callable[[Tensor], object]) -> None:
    monkeypatch.setattr(torchattacks, "FGSM", Rude)
    monkeypatch.setattr(Rude, "ending", staticmethod(ending), raising=False)
    monkeypatch.setattr(Rude, "seen_training", [])


def numpy_state() -> list[int]:
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    return [int(word) for word in state["state"]["key"]]


def breaking(images: Tensor) -> Tensor:
    raise ValueError("no luck\nat all")


@pytest.mark.parametrize("ending", [breaking, torch.clone])
def test_everything_is_given_back_also_after_an_exception(
        monkeypatch: pytest.MonkeyPatch, ending: Callable[[Tensor], object]) -> None:
    rude(monkeypatch, ending)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    net(images).sum().backward()
    held = [weight.grad for weight in net.parameters()]
    next(net.parameters()).requires_grad_(False)
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    attack = adapt("FGSM")
    if ending is breaking:
        with pytest.raises(ProtocolError, match="torchattacks:FGSM must come to an end"):
            attack(net, images, labels, ids, targets=(labels + 1) % FEW)
    else:
        result = attack(net, images, labels, ids, targets=(labels + 1) % FEW)
        torch.testing.assert_close(result.adv_logits, net(images).detach())
    flags = [weight.requires_grad for weight in net.parameters()]
    assert flags == [False] + [True] * (len(flags) - 1)
    assert all(weight.grad is grad for weight, grad in zip(net.parameters(), held, strict=True))
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert numpy_state() == states[1] and random.getstate() == states[2]


def test_asking_for_train_mode_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rude(monkeypatch, torch.clone)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % FEW)
    assert Rude.seen_training == [False]


def test_one_image_cannot_spoil_the_mode_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []
    net = few_class_net()
    rude(monkeypatch, torch.clone)
    net.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    images, labels, ids = predicted(net, 3)
    adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % FEW)
    assert not any(modes)


def test_an_attack_that_runs_the_model_in_train_mode_is_stopped(
        monkeypatch: pytest.MonkeyPatch) -> None:
    net = few_class_net()

    class Trainer(Rude):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            net[1].train()
            self.get_logits(images)
            return images

    monkeypatch.setattr(torchattacks, "FGSM", Trainer)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images, labels, ids = predicted(net, 1)
    with pytest.raises(ProtocolError, match=r"1 \(BatchNorm2d\) is in train mode"):
        adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % FEW)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net[1].training


def test_the_attacks_chatter_is_not_printed(monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    rude(monkeypatch, torch.clone)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    adapt("FGSM")(lambda x: net(x), images, labels, ids, targets=(labels + 1) % FEW)
    assert capsys.readouterr().out == ""


def test_an_exception_inside_an_attack_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    rude(monkeypatch, breaking)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    with pytest.raises(ProtocolError) as caught:
        adapt("FGSM")(net, images, labels, ids, targets=(labels + 1) % FEW)
    assert str(caught.value) == (
        "torchattacks:FGSM must come to an end, but it raised ValueError (no luck): "
        "give it other options or use another attack")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize(("ending", "message"), [
    (lambda images: images + 2, "adversarial images must be finite and in"),
    (lambda images: images[:, :1], "must have the shape and type of the clean ones"),
    (lambda images: None, "must come to an end, but it raised AttributeError"),
])
def test_what_is_no_adversarial_image_is_refused(monkeypatch: pytest.MonkeyPatch,
                                                 ending: Callable[[Tensor], object],
                                                 message: str) -> None:
    rude(monkeypatch, ending)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    with pytest.raises(ProtocolError, match=message):
        adapt("FGSM")(net, images.clamp(0.1), labels, ids, targets=(labels + 1) % FEW)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_fails_alone_and_does_not_end_the_run(
        monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    rude(monkeypatch, lambda images: images * value)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    # The evaluation records an image with this error as failed and goes on with the others.
    with pytest.raises(NonFiniteError, match="torchattacks:FGSM put NaN or infinity into it"):
        adapt("FGSM")(net, images.clamp(0.1), labels, ids, targets=(labels + 1) % FEW)


@pytest.mark.parametrize("excess", [1e-7, 0.9 / 255])
def test_a_small_excess_over_the_range_is_clipped_before_the_scoring(
        monkeypatch: pytest.MonkeyPatch, excess: float) -> None:
    rude(monkeypatch, lambda images: images * 0 - excess)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    monkeypatch.setattr(torchattacks, "Rude", Rude, raising=False)
    monkeypatch.setattr(torchattacks, "__all__", ["Rude"])
    result = adapt("Rude")(net, images, labels, ids, targets=(labels + 1) % FEW)
    assert torch.equal(result.adversarial, torch.zeros_like(images))
    torch.testing.assert_close(result.adv_logits, net(torch.zeros_like(images)).detach())


def test_an_attack_that_leaves_its_ball_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchattacks.PGD, "forward", lambda self, images, labels: 1 - images)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    with pytest.raises(ProtocolError, match="must stay within 8/255 of the clean ones"):
        adapt("PGD")(net, images, labels, ids, targets=RANDOM)


def test_an_attack_that_leaves_its_l2_ball_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchattacks.PGDL2, "forward", lambda self, images, labels: 1 - images)
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    with pytest.raises(ProtocolError, match="must stay within an l2 radius of 0.5"):
        adapt("PGDL2", [("eps", "0.5")])(net, images, labels, ids, targets=RANDOM)


def test_a_model_that_fails_inside_keeps_its_own_error() -> None:
    calls = iter([False, True, True])

    def model(pixels: Tensor) -> Tensor:
        return pixels.flatten(1)[:, :FEW] / (0.0 if next(calls) else 1.0)

    with pytest.raises(ModelError, match="the model's logits must be finite"):
        adapt("PGD")(model, torch.rand(1, 3, 4, 4), torch.tensor([0]), ["a"], targets=RANDOM)


def test_a_model_in_train_mode_is_refused() -> None:
    with pytest.raises(ProtocolError, match="every part of the model must be in eval mode"):
        adapt("PGD")(few_class_net().train(), torch.rand(1, 3, 4, 4), torch.tensor([0]), ["a"],
                     targets=RANDOM)


@pytest.mark.parametrize("targets", [torch.tensor([0]), torch.tensor([FEW])])
def test_a_target_that_is_no_wrong_class_is_refused(targets: Tensor) -> None:
    with pytest.raises(ProtocolError, match="target"):
        adapt("PGD")(few_class_net(), torch.rand(1, 3, 4, 4), torch.tensor([0]), ["a"],
                     targets=targets)
