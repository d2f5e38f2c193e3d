"""Counting by shapes and with values gives one result, and names what has no formula."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from conftest import Command
from sanrobust.complexity.counter import count
from sanrobust.complexity.models import count_model
from sanrobust.complexity.settings import CONVENTIONS, Convention
from sanrobust.errors import ModelError
from sanrobust.zoo.external import create_external

TOKENS, WIDTH = 16, 8


class Reading(nn.Module):
    """Reads an image as 16 tokens of 8 values and gives the layer's mean to a classifier."""

    def __init__(self, layer: nn.Module, *, looks: bool = False) -> None:
        super().__init__()
        self.layer, self.fc, self.looks = layer, nn.Linear(WIDTH, 3), looks

    def forward(self, images: Tensor) -> Tensor:
        if self.looks and images.sum().item() > 0:  # shapes alone have no values
            images = images + 1
        tokens = images.mean(1)[:, :, :WIDTH]
        read = self.layer(tokens)
        logits: Tensor = self.fc((read[0] if isinstance(read, tuple) else read).mean(1))
        return logits


class Attending(nn.Module):
    """Multi-head attention of tokens to themselves."""

    def __init__(self, *, weights: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.weights = weights

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        attended: tuple[Tensor, Tensor | None] = self.inner(
            tokens, tokens, tokens, need_weights=self.weights)
        return attended


class Function(nn.Module):
    """A function of tokens."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, tokens: Tensor) -> Tensor:
        return self.function(tokens)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(WIDTH, WIDTH, 2, batch_first=True),
    "lstm both ways": lambda: nn.LSTM(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True),
    "gru": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
    "attention": lambda: Attending(weights=False),
    "attention with weights": lambda: Attending(weights=True),
    "encoder": lambda: nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True),
    "scaled dot product": lambda: Function(
        lambda each: nn.functional.scaled_dot_product_attention(each, each, each)),
    "vectors": lambda: Function(lambda each: each * torch.mv(each[0], each[0, 0]).sum()),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_network_counts_the_same_by_shapes_and_with_values(
        layer: str, convention: Convention) -> None:
    network = Reading(LAYERS[layer]())
    real = count(network, img_size=TOKENS, convention=convention)
    shapes = count(network.to("meta"), img_size=TOKENS, convention=convention)
    assert real == shapes
    alone = count(Reading(nn.Identity()), img_size=TOKENS, convention=convention)
    assert real.flops > alone.flops or convention == "paper"


def test_attention_counts_its_projections_and_its_two_products() -> None:
    cost = count(Reading(Attending(weights=False)), img_size=TOKENS, convention="mac")
    projections, products = 4 * TOKENS * WIDTH ** 2, 2 * TOKENS ** 2 * WIDTH
    assert cost.flops == projections + products + WIDTH * 3


def test_torchs_switches_are_as_before_a_count() -> None:
    before = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    count(Reading(LAYERS["attention"]()), img_size=TOKENS)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == before


@pytest.mark.parametrize(("function", "name"), [
    (lambda each: torch.fft.rfft(each).real.repeat(1, 1, 2)[..., :WIDTH], "fft_r2c"),
    (lambda each: torch.cdist(each, each)[..., :WIDTH], "cdist_forward"),
    (lambda each: each.cumsum(1), "cumsum"), (lambda each: each.softmax(1), "softmax"),
])
def test_an_operator_without_a_formula_is_named(function: Callable[[Tensor], Tensor],
                                                name: str) -> None:
    uncounted = count(Reading(Function(function)), img_size=TOKENS, convention="mac").uncounted
    assert name in uncounted and "addmm" not in uncounted
    assert not {"view", "t", "slice", "zeros"} & set(uncounted)


@pytest.fixture
def made() -> Iterator[str]:
    """A module of ours whose networks cannot be counted by shapes."""
    module = ModuleType("made_for_counting_paths")
    for place, layer in enumerate(LAYERS):
        setattr(module, f"make{place}", lambda layer=layer: Reading(LAYERS[layer](), looks=True))
    setattr(module, "wide", lambda: _described(Reading(nn.Identity()), (3, 8, 20)))
    setattr(module, "grey", lambda: _described(Reading(nn.Identity()), (1, 8, 8)))
    sys.modules[module.__name__] = module
    yield module.__name__
    del sys.modules[module.__name__]


def _described(network: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    vars(network)["default_cfg"] = {"input_size": size}
    return network


@pytest.mark.parametrize("place", range(len(LAYERS)))
def test_a_model_that_needs_values_counts_as_one_that_does_not(made: str, place: int) -> None:
    network = Reading(list(LAYERS.values())[place]())
    counted = count_model(f"{made}:make{place}", img_size=TOKENS, convention="mac").cost
    assert counted.flops == count(network, img_size=TOKENS, convention="mac").flops


def test_images_that_are_not_square_or_not_coloured_are_counted_but_not_measured(
        made: str) -> None:
    assert count_model(f"{made}:wide").img_size == (8, 20)
    assert count_model(f"{made}:grey").img_size == 8
    for name, said in (("wide", "8 x 20 pixels"), ("grey", "1 channels")):
        with pytest.raises(ModelError, match=said):
            create_external(f"{made}:{name}")


@pytest.mark.parametrize(("name", "side"), [
    ("timm/convnext_tiny.fb_in22k_ft_in1k_384", 384), ("timm/volo_d1_384", 384),
    ("torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1", 384),
])
def test_a_model_counts_whatever_its_crop_mode(name: str, side: int) -> None:
    counted = count_model(name)
    assert counted.img_size == side and counted.cost.flops > 10 ** 9


def test_the_command_names_what_was_not_counted(command: Command) -> None:
    result = command("complexity", "-m", "san10-pair", "-m", "san10-patch")
    text = " ".join(result.output.split())
    assert "count nothing: add, softmax (san10-pair); add (san10-patch)." in text


def test_an_image_of_any_size_that_a_machine_cannot_hold_is_refused(command: Command) -> None:
    result = command("complexity", "-m", "resnet26", "--img-size", "2147483648")
    assert result.exit_code == 2 and "--img-size" in result.output
