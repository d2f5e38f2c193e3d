"""The protocol checks that stop a run whose numbers would be wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sanrobust.attacks import guards
from sanrobust.errors import ModelError, NonFiniteError, ProtocolError

GRAY = torch.full((2, 3, 4, 4), 0.5)
LABELS = torch.tensor([0, 1])


def changed(value: float) -> Tensor:
    images = GRAY.clone()
    images[1, 2, 3, 3] = value
    return images


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), -float("inf")])
def test_a_pixel_outside_the_range_is_refused(value: float) -> None:
    with pytest.raises(ProtocolError, match=r"images must be finite and in \[0, 1\], but"):
        guards.check_batch(changed(value), LABELS, ["a", "b"])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_the_range_are_legal(value: float) -> None:
    guards.check_batch(changed(value), LABELS, ["a", "b"])


@pytest.mark.parametrize(("images", "labels", "ids", "message"), [
    (GRAY[0], LABELS, ["a", "b"], "must have the shape"),
    (GRAY[:, :1], LABELS, ["a", "b"], "must have the shape"),
    (GRAY[:0], LABELS[:0], [], "must have the shape"),
    (GRAY.double(), LABELS, ["a", "b"], "images must be float32, but they are torch.float64"),
    ((GRAY * 255).byte(), LABELS, ["a", "b"], "images must be float32"),
    (GRAY, LABELS, ["a"], "each image must have one int64 label and one id"),
    (GRAY, LABELS[:1], ["a", "b"], "each image must have one int64 label and one id"),
    (GRAY, LABELS.int(), ["a", "b"], "each image must have one int64 label and one id"),
])
def test_a_batch_of_another_form_is_refused(images: Tensor, labels: Tensor, ids: list[str],
                                            message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        guards.check_batch(images, labels, ids)


def test_one_submodule_in_train_mode_is_found_and_named() -> None:
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(norm)).eval()
    guards.check_eval(net)
    norm.train()
    with pytest.raises(ProtocolError, match=r"but 1\.0 \(BatchNorm2d\) is in train mode"):
        guards.check_eval(net)


def test_a_plain_function_has_no_mode() -> None:
    guards.check_eval(lambda pixels: pixels)


@pytest.mark.parametrize("logits", [
    torch.zeros(2), torch.zeros(3, 5), torch.zeros(2, 1), torch.zeros(2, 5, 1), torch.zeros(2, 4)])
def test_logits_of_another_shape_are_refused(logits: Tensor) -> None:
    with pytest.raises(ModelError, match=r"must return logits of shape \(2, 5\)"):
        guards.check_logits(logits, 2, 5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ModelError, match="logits must be finite"):
        guards.check_logits(torch.tensor([[0.0, value]]), 1)


@pytest.mark.parametrize("labels", [torch.tensor([-1, 0]), torch.tensor([0, 5])])
def test_labels_outside_the_models_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(ProtocolError, match="labels must be classes of the model, 0 to 4"):
        guards.check_labels(labels, 5)


def test_an_adversarial_outside_the_ball_is_refused() -> None:
    guards.check_adversarial(GRAY + 8 / 255, GRAY, 8)
    with pytest.raises(ProtocolError, match="must stay within 8/255 of the clean ones"):
        guards.check_adversarial(GRAY + 8.01 / 255, GRAY, 8)


def test_at_eps_zero_not_even_rounding_is_forgiven() -> None:
    guards.check_adversarial(GRAY.clone(), GRAY, 0)
    with pytest.raises(ProtocolError, match="must stay within 0/255"):
        guards.check_adversarial(GRAY + 1e-7, GRAY, 0)


@pytest.mark.parametrize("adversarial", [changed(1.5), changed(float("nan"))])
def test_an_adversarial_that_is_no_image_is_refused(adversarial: Tensor) -> None:
    with pytest.raises(ProtocolError, match="adversarial images must be finite and in"):
        guards.check_adversarial(adversarial, GRAY, None)


@pytest.mark.parametrize("adversarial", [GRAY[:1], GRAY.double()])
def test_an_adversarial_of_another_form_is_refused(adversarial: Tensor) -> None:
    with pytest.raises(ProtocolError, match="must have the shape and type of the clean ones"):
        guards.check_adversarial(adversarial, GRAY, None)


def test_a_nan_gradient_is_refused_and_an_infinite_one_is_not() -> None:
    logits = torch.zeros(1, 2)
    guards.check_finite(logits, torch.tensor([float("inf")]))
    with pytest.raises(NonFiniteError, match="some of it is NaN"):
        guards.check_finite(logits, torch.tensor([float("nan")]))
    with pytest.raises(NonFiniteError, match="logits must be finite"):
        guards.check_finite(logits / 0, torch.tensor([float("nan")]))


def test_sealing_gives_back_modes_flags_and_gradients() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    net[1].eval()
    net[0].bias.requires_grad_(False)
    held = torch.ones(2, 2)
    net[0].weight.grad = held
    with pytest.raises(KeyError), guards.sealed(net):
        assert not net[0].weight.requires_grad
        net.eval()
        net.zero_grad()
        raise KeyError
    assert [module.training for module in net.modules()] == [True, True, False]
    assert [weight.requires_grad for weight in net.parameters()] == [True, False]
    assert net[0].weight.grad is held
