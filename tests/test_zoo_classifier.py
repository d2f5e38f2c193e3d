"""The wrapper that makes a network a classifier of pixels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sanrobust.errors import ModelError
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo.digest import state_digest
from sanrobust.zoo.classifier import Classifier, Normalize

PREPROCESSING = Preprocessing(img_size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))


class Network(nn.Module):
    """A normalised, dropping-out toy whose answer can be replaced."""

    def __init__(self, answer: Callable[[Tensor], object] | None = None) -> None:
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm2d(3), nn.Dropout(), nn.Linear(3, 4)
        self.answer = answer

    def forward(self, images: Tensor) -> object:
        if self.answer is not None:
            return self.answer(images)
        return self.fc(self.drop(self.norm(images)).mean((2, 3)))


def classifier(answer: Callable[[Tensor], object] | None = None,
               num_classes: int | None = None) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(Network(answer), name="toy", preprocessing=PREPROCESSING,
                          num_classes=num_classes)


def test_normalises_each_channel() -> None:
    pixels = torch.tensor([0.6, 0.7, 0.3]).view(1, 3, 1, 1)
    normalised = Normalize(PREPROCESSING.mean, PREPROCESSING.std)(pixels)
    # float32 rounding of the decimal fractions
    torch.testing.assert_close(normalised.flatten(), torch.tensor([1.0, 2.0, 0.0]),
                               atol=1e-6, rtol=0)


def test_the_normalisation_is_no_part_of_the_weights() -> None:
    assert set(Normalize((0.5,) * 3, (0.5,) * 3).state_dict()) == set()


def test_another_computation_of_a_network_normalises_where_the_network_lies() -> None:
    moved = classifier().to("meta")
    other = moved.computed_by(nn.Flatten())
    assert other.normalize.mean.device.type == other.normalize.std.device.type == "meta"


def test_finds_the_number_of_classes_with_one_image() -> None:
    assert classifier().num_classes == 4


def test_believes_a_number_of_classes_that_is_given() -> None:
    assert classifier(num_classes=4).num_classes == 4


def test_the_probe_leaves_statistics_and_generator_alone() -> None:
    state = torch.get_rng_state()
    network = Network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    after_building = torch.get_rng_state()
    Classifier(network, name="toy", preprocessing=PREPROCESSING)
    assert torch.equal(torch.get_rng_state(), after_building)
    assert all(torch.equal(network.state_dict()[key], before[key]) for key in before)
    torch.set_rng_state(state)


def test_is_frozen_and_stays_in_eval_mode() -> None:
    model = classifier()
    model.train()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradients_reach_the_pixels() -> None:
    pixels = torch.rand(2, 3, 8, 8, requires_grad=True)
    classifier()(pixels).sum().backward()
    assert pixels.grad is not None
    assert bool(pixels.grad.abs().sum() > 0)


def test_an_images_logits_do_not_depend_on_its_batch() -> None:
    model, pixels = classifier(), torch.rand(5, 3, 8, 8)
    # the linear layer may sum in another order for another batch
    torch.testing.assert_close(model(pixels)[2:3], model(pixels[2:3]), atol=1e-6, rtol=0)


def test_an_empty_batch_gives_no_logits() -> None:
    assert classifier()(torch.zeros(0, 3, 8, 8)).shape == (0, 4)


def test_moves_as_a_whole() -> None:
    model = classifier(num_classes=4).to("meta")
    assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"meta"}


def test_runs_in_double_precision_when_asked() -> None:
    assert classifier().double()(torch.rand(1, 3, 8, 8).double()).dtype == torch.float64


def test_the_digest_is_that_of_the_networks_weights() -> None:
    model = classifier()
    assert model.weights_digest == state_digest(model.network.state_dict())


@pytest.mark.parametrize(("answer", "said"), [
    (lambda x: x, r"1 images gave \(1, 3, 8, 8\)"), (lambda x: (x, x), "it returned a tuple"),
    (lambda x: {"logits": x}, "it returned a dict"), (lambda x: x.sum(), r"1 images gave \(\)"),
    (lambda x: torch.zeros(2, 4), r"1 images gave \(2, 4\)"),
    (lambda x: torch.zeros(1, 0), r"1 images gave \(1, 0\)"),
    (lambda x: torch.zeros(1, 4, dtype=torch.int64), "of type torch.int64"),
    (lambda x: torch.full((1, 4), torch.nan), "some are NaN or infinite"),
    (lambda x: torch.full((1, 4), torch.inf), "some are NaN or infinite"),
])
def test_refuses_anything_but_finite_logits(answer: Callable[[Tensor], object],
                                            said: str) -> None:
    with pytest.raises(ModelError, match=said):
        classifier(answer)


def test_logits_that_turn_bad_later_are_refused_where_they_are_asked_for() -> None:
    model = classifier(lambda x: x.mean((2, 3)) / x.sum((1, 2, 3))[:, None].isfinite(), 3)
    bad = torch.full((1, 3, 8, 8), torch.inf)
    with pytest.raises(ModelError, match="must be finite"):
        model.checked(bad)
    assert not model(bad).isfinite().any()


def test_refuses_logits_of_another_length_than_promised() -> None:
    with pytest.raises(ModelError, match=r"2 images gave \(2, 4\)"):
        classifier(num_classes=7)(torch.rand(2, 3, 8, 8))


def test_passes_on_why_a_network_refuses_the_size() -> None:
    def refuse(images: Tensor) -> Tensor:
        raise AssertionError("needs 224\nand more words")

    with pytest.raises(ModelError, match=r"8 x 8 pixels, but it stopped with: needs 224: check "
                       r"that its forward"):
        classifier(refuse)


def test_names_a_size_that_a_network_does_take() -> None:
    def picky(images: Tensor) -> Tensor:
        if images.shape[-1] != 96:
            raise AssertionError("not 96")
        return images.mean((2, 3))

    with pytest.raises(ModelError, match="it takes 96 pixels: give --img-size 96"):
        classifier(picky)


def test_a_dtype_that_a_network_cannot_take_is_no_matter_of_size() -> None:
    with pytest.raises(ModelError, match="float32 images") as caught:
        classifier(lambda images: torch.nn.functional.linear(
            images.mean((2, 3)), torch.zeros(4, 3).half()))
    assert "--img-size" not in str(caught.value)


def test_logits_without_gradients_are_refused_where_they_are_wanted() -> None:
    model = classifier(lambda images: images.mean((2, 3)).detach(), num_classes=3)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    with pytest.raises(ModelError, match="none reach the pixels"):
        model(torch.zeros(1, 3, 8, 8, requires_grad=True))


def test_a_network_of_ones_own_that_fails_in_the_middle_is_a_sentence() -> None:
    def alone(images: Tensor) -> Tensor:
        if len(images) > 1:
            raise KeyError("batch")
        return images.mean((2, 3))

    with pytest.raises(ModelError, match="must take 2 float32 images .* 'batch'"):
        classifier(alone)(torch.zeros(2, 3, 8, 8))


class Secretive(nn.Module):
    """A network that does not give its state away."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def get_extra_state(self) -> object:
        raise RuntimeError("not yours")


def test_weights_that_cannot_be_read_are_a_sentence() -> None:
    with pytest.raises(ModelError, match="weights of toy must be readable, but .* not yours"):
        Classifier(Secretive(), name="toy", preprocessing=PREPROCESSING, num_classes=3)


@pytest.mark.parametrize("code", [None, ""])
def test_an_error_in_a_librarys_network_keeps_its_traceback(code: str | None) -> None:
    def answer(images: Tensor) -> Tensor:
        raise ZeroDivisionError("in the network")

    made = Classifier(Network(answer), name="toy", preprocessing=PREPROCESSING, num_classes=4,
                      code=code)
    expected = ZeroDivisionError if code is None else ModelError
    with pytest.raises(expected, match="in the network"):
        made(torch.rand(1, 3, 8, 8))


def test_an_interrupt_within_a_network_is_one() -> None:
    def answer(images: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classifier(answer, num_classes=4)(torch.rand(1, 3, 8, 8))
