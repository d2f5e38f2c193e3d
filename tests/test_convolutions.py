"""Batch norms folded into convolutions, channels last: numbers move by rounding alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust import steady
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.native import library
from sanrobust.preprocessing import Preprocessing
from sanrobust.steady import FixedSizeBatches
from sanrobust.zoo import accelerate as accelerating
from sanrobust.zoo import convolutions
from sanrobust.zoo.accelerate import SWITCHED_OFF, accelerate
from sanrobust.zoo.build import build as build_network
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.convolutions import ChannelsLast, FilledLinear, Rewritten, refusal, rewrite
from sanrobust.zoo.forms import imagenet_config
from sanrobust.zoo.resolve import create_model

CPU = torch.device("cpu")
# Measured 1e-7 to 1.2e-6 of the logits' norm; see `sanrobust.zoo.convolutions.ROUNDING`.
MOVED = 3e-6
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ours": (lambda: create_model("resnet26.untrained-small").network, 29),
    "torchvision": (lambda: torchvision.models.resnet18(weights=None), 20),
    "depthwise": (lambda: torchvision.models.mobilenet_v3_small(weights=None), 34),
    "shuffled": (lambda: torchvision.models.shufflenet_v2_x0_5(weights=None), 56),
    "dense": (lambda: torchvision.models.densenet121(weights=None), 59),
    "padded as in TensorFlow": (lambda: timm.create_model("tf_mobilenetv3_small_075"), 34),
    "norms with activations": (lambda: timm.create_model("regnetx_002"), 44),
    "norms first": (lambda: timm.create_model("resnetv2_50"), 32),
}


def randomised(network: nn.Module) -> nn.Module:
    """Make normalisations far from the identity."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.2)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            assert module.running_var is not None
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval().requires_grad_(False)


def some_images(count: int, side: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def logits_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    leaf = images.clone().requires_grad_()
    logits = network(leaf)
    gradient, = torch.autograd.grad((logits * torch.linspace(-1, 1, logits.shape[1])).sum(), leaf)
    return logits.detach(), gradient


def moved(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_move_by_rounding_alone(name: str) -> None:
    build, norms = NETWORKS[name]
    network, images = randomised(build()), some_images(3, 64)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    made = rewrite(network, 64, CPU, fold=True, channels_last=True)
    assert (made.computed_by, made.reason) == (f"{norms} batch norms folded, channels last", None)
    logits, gradient = logits_and_gradient(network, images)
    found, pixels = logits_and_gradient(made.network, images)
    assert 0 < moved(found, logits) < MOVED
    # A ReLU within rounding of 0 may flip, which moves a gradient more than rounding.
    assert moved(pixels, gradient) < 1e-2 and pixels.is_contiguous()
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) and value.is_contiguous()


ATTENTION = ("sasa26", "sasa26(content=no,heads=2)", "sasa26(position=none)",
             "sasa26(stem=attention,convolutions=1)")


def shallow(name: str) -> Any:
    """Return a network's configuration with a block in each group."""
    config: Any = imagenet_config(name, 10)
    return replace(config, layers=(1, 1, 1, 1))


@pytest.mark.skipif(library.refusal() is not None, reason=f"native: {library.refusal()}")
@pytest.mark.parametrize("name", ATTENTION)
def test_scalar_attention_goes_onto_rows(name: str) -> None:
    network = randomised(build_network(shallow(name)))
    images = some_images(3, 66)
    made = rewrite(network, 66, CPU, fold=True, channels_last=True)
    assert made.reason is None and "attention on rows, channels last" in made.computed_by
    assert not any(isinstance(module, LocalAttention) for module in made.network.modules())
    logits, gradient = logits_and_gradient(network, images)
    found, pixels = logits_and_gradient(made.network, images)
    assert 0 < moved(found, logits) < MOVED
    assert moved(pixels, gradient) < 1e-2 and pixels.is_contiguous()
    assert made.network(images[:0]).shape == (0, found.shape[1])


@pytest.mark.parametrize(("name", "backend", "device", "words"), [
    ("sasa26(position=absolute)", "auto", "cpu", "absolute positions"),
    ("sasa26", "reference", "cpu", "backend reference was asked for"),
    ("sasa26", "auto", "meta", "attention in place of convolutions")])
def test_scalar_attention_that_must_stay_says_why(name: str, backend: str, device: str,
                                                  words: str) -> None:
    network = randomised(build_network(shallow(name)))
    with use_backend(backend):
        made = rewrite(network, 64, torch.device(device), fold=True, channels_last=True)
    assert made.network is network and words in str(made.reason)


class Uses(nn.Module):
    """A convolution and a norm, used in a way of one's own."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.use = use

    def forward(self, images: Tensor) -> Tensor:
        return self.use(self, images).mean((2, 3))


def read_twice(self: Uses, images: Tensor) -> Tensor:
    maps = self.convolution(images)
    return self.norm(maps) + maps  # type: ignore[no-any-return]


USES = {
    "read twice": (read_twice, "would move"),
    "activation between": (lambda self, x: self.norm(F.relu(self.convolution(x))), "right behind"),
    "activation in place": (lambda self, x: self.norm(F.relu_(self.convolution(x))),
                            "right behind"),
    "convolution twice": (lambda self, x: self.norm(self.convolution(x)) + self.convolution(x),
                          "right behind"),
    "norm twice": (lambda self, x: self.norm(self.norm(self.convolution(x))), "right behind"),
    "a view": (lambda self, x: self.norm(self.convolution(x)[:, :, 1:]), "right behind"),
    "attributes read": (lambda self, x: self.norm(self.convolution(x)) * self.norm.eps,
                        "it stopped with"),
}


@pytest.mark.parametrize("name", USES)
def test_what_is_not_a_convolution_and_its_norm_alone_stays(
        name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use, words = USES[name]
    network = randomised(Uses(use))
    assert "Uses of test_convolutions" in str(refusal(network))
    monkeypatch.setattr(convolutions, "_foreign", lambda _: None)
    made = rewrite(network, 16, CPU, fold=True, channels_last=True)
    assert made.network is network and words in str(made.reason)


def test_norms_by_statistics_of_the_batch_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    made = rewrite(network, 16, CPU, fold=True, channels_last=True)
    assert made == (network, "", "no batch norm is right behind a convolution")


def hooked() -> nn.Module:
    network = torchvision.models.resnet18(weights=None).eval()
    network.layer1.register_forward_hook(lambda *_: None)
    return network


def patched() -> nn.Module:
    network = torchvision.models.resnet18(weights=None).eval()
    setattr(network.layer1, "forward", lambda maps: maps)  # noqa: B010
    return network


@pytest.mark.parametrize(("build", "words"), [
    (lambda: nn.Conv2d(3, 4, 3), "no batch norms"),
    (lambda: torchvision.models.resnet18(weights=None), "train mode"),
    (lambda: torchvision.models.resnet18(weights=None).eval().double(), "torch.float64"),
    (lambda: create_model("sasa26.untrained-small").network, "attention"),
    (hooked, "a hook in layer1"), (patched, "a function forward in layer1"),
])
def test_a_network_that_must_stay_says_why(build: Callable[[], nn.Module], words: str) -> None:
    assert words in str(refusal(build()))


def classifier(network: nn.Module, side: int) -> Classifier:
    return Classifier(network, name="it", preprocessing=Preprocessing(img_size=side))


def test_a_classifier_keeps_its_name_and_weights() -> None:
    plain = create_model("resnet26.digits")
    fast = accelerate(plain, CPU)
    assert isinstance(fast.classifier.network, ChannelsLast) and fast.reason is None
    assert not fast.steady and fast.pass_size(32, CPU) == 32
    assert (fast.classifier.name, fast.classifier.weights_digest) == (plain.name,
                                                                      plain.weights_digest)
    as_written = accelerate(plain, CPU, fold=False)
    assert as_written.classifier is plain and as_written.reason == SWITCHED_OFF


@pytest.mark.parametrize(("device", "precision", "fold", "last"), [
    ("cpu", "float32", True, True), ("cpu", "bfloat16", False, True),
    ("cuda", "float32", True, False), ("cuda", "tf32", True, False),
    ("cuda", "float16", False, True)])
def test_the_form_follows_from_device_and_precision(
        monkeypatch: pytest.MonkeyPatch, device: str, precision: str, fold: bool, last: bool
        ) -> None:
    asked = []

    def seen(network: nn.Module, *_: object, **asked_for: bool) -> Rewritten:
        asked.append(asked_for)
        return Rewritten(network, "words", None)

    monkeypatch.setattr(accelerating.convolutions, "rewrite", seen)
    made = accelerate(create_model("resnet26.digits"), torch.device(device), precision=precision)
    assert asked == [{"fold": fold, "channels_last": last}]
    assert (made.reason is None) == fold


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_a_linear_layer_sums_alike_in_every_pass() -> None:
    plain = nn.Linear(256, 10)
    layer, features = FilledLinear(plain, 32), torch.randn(32, 256)
    whole = layer(features)
    for count in range(1, 33):
        assert torch.equal(layer(features[:count]), whole[:count])
    torch.testing.assert_close(whole, plain(features))
    for other in (torch.randn(2, 5, 256), torch.randn(40, 256), torch.randn(256)):
        assert torch.equal(layer(other), plain(other))


@pytest.mark.parametrize("patience", [0, 8])  # smaller passes are tried out at once, or not here
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize(("side", "precision"), [(32, "float32"), (72, "float32"), (32, "bfloat16"),
                                                 (32, "float16")])
def test_no_bit_depends_on_the_batch(monkeypatch: pytest.MonkeyPatch, side: int, precision: str,
                                     threads: int, patience: int) -> None:
    network = randomised(create_model("resnet26.untrained-small").network)
    made = accelerate(classifier(network, side), CPU, precision=precision)
    model = FixedSizeBatches(made.classifier, made.pass_size(side, CPU))
    pixels = some_images(5, side).sigmoid()
    whole = logits_and_gradient(model, pixels)
    monkeypatch.setattr(steady, "_PATIENCE", patience)
    parts = [logits_and_gradient(model, part) for part in pixels.split((1, 3, 1))]
    for one, two in zip(whole, zip(*parts)):
        assert torch.equal(one, torch.cat(two)), f"{threads} threads"
