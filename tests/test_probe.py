"""The passes before a run find what makes numbers meaningless, and nothing in sound models."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.layers import DropPath, drop_path
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.probe import BATCH, PROBABILITIES, RANDOM, probe
from sanrobust.zoo import catalog
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.resolve import create_model

SMALL = "resnet26.digits"
DIGITS = [f"{name}.digits" for name in catalog.PAPER_ORDER]


class Wrapped(nn.Module):
    """A sound network of the digits, used in a way of one's own."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = create_model(SMALL)
        self.calls = 0
        self.use = use
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.use(self, pixels)


class AlwaysDropPath(DropPath):  # type: ignore[misc]
    """Stochastic depth that does not stop in eval mode."""

    def forward(self, features: Tensor) -> Tensor:
        return drop_path(features, 0.1, True)  # type: ignore[no-any-return]


def images(size: int, count: int = 4) -> Tensor:
    """Smooth images, as photographs are."""
    coarse = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, size=size, mode="bilinear").expand(-1, 3, -1, -1).contiguous()


def reseeded(self: Wrapped, pixels: Tensor) -> Tensor:
    torch.manual_seed(0)
    return self.inner(pixels + 0.1 * torch.randn_like(pixels))  # type: ignore[no-any-return]


def counted(self: Wrapped, pixels: Tensor) -> Tensor:
    self.calls += 1
    logits: Tensor = self.inner(pixels)
    return logits.flip(1) if self.calls > 1000 else logits


def alternating(self: Wrapped, pixels: Tensor) -> Tensor:
    self.calls += 1
    return self.inner(pixels if self.calls % 2 else pixels.flip(-1))  # type: ignore[no-any-return]


def batch_statistics() -> nn.Module:
    model = Wrapped(lambda self, x: self.inner(x))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("folded", [False, True])
def test_the_zoo_is_sound(name: str, folded: bool) -> None:
    model = create_model(name)
    if folded:
        model = accelerate(model, torch.device("cpu")).classifier
    assert probe(model, images(32), gradient=True) == ()


@pytest.mark.parametrize("build", [
    lambda: torchvision.models.resnet18(weights=None),
    lambda: torchvision.models.vit_b_16(weights=None, image_size=64),
    lambda: torchvision.models.swin_t(weights=None),
    lambda: timm.create_model("resnet18"),
    lambda: timm.create_model("mobilenetv3_small_050"),
    lambda: timm.create_model("vit_tiny_patch16_224", img_size=64),
    lambda: timm.create_model("convnext_atto"),
    lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
], ids=["tv resnet18", "tv vit", "tv swin", "resnet18", "mobilenet", "vit", "convnext",
        "instance norm"])
def test_networks_without_a_fault_are_sound(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    assert probe(build().eval(), images(64), gradient=True) == ()


@pytest.mark.parametrize("use", [
    lambda self, x: self.inner(x) + 50, lambda self, x: self.inner(x) - 5000,
    lambda self, x: self.inner(x).log_softmax(1), lambda self, x: 1000 * self.inner(x),
    lambda self, x: 1e-6 * self.inner(x),
    lambda self, x: torch.where(torch.arange(10) < 5, self.inner(x), torch.tensor(-1e9)),
    lambda self, x: torch.autocast("cpu", torch.bfloat16)(self.inner)(x).float(),
], ids=["offset", "large offset", "log softmax", "large", "tiny", "classes off", "autocast"])
def test_other_spellings_and_precisions_of_logits_are_sound(
        use: Callable[[Any, Tensor], Tensor]) -> None:
    assert probe(Wrapped(use), images(32), gradient=True) == ()


def test_rounding_in_16_bits_is_no_dependence_on_the_batch() -> None:
    def coarse(self: Wrapped, pixels: Tensor) -> Tensor:
        # What another algorithm for another batch size does in bfloat16, at its largest.
        logits: Tensor = self.inner(pixels.bfloat16().float())
        return logits * (1 + 2 ** -8 * (len(pixels) == 1))

    def exact(self: Wrapped, pixels: Tensor) -> Tensor:
        logits: Tensor = self.inner(pixels)
        return logits * (1 + 2 ** -8 * (len(pixels) == 1))

    assert probe(Wrapped(coarse), images(32), gradient=False) == ()
    assert probe(Wrapped(exact), images(32), gradient=False) == (BATCH,)


@pytest.mark.parametrize("use", [
    lambda self, x: self.inner(F.dropout(x, 0.3)),
    lambda self, x: self.inner(x + 1e-3 * torch.rand_like(x)),
    lambda self, x: self.inner(x + 0.01 * float(np.random.rand())),
    lambda self, x: self.inner(x + 0.01 * random.random()),
    alternating,
], ids=["dropout", "noise", "numpy", "python", "alternating"])
def test_a_model_that_answers_otherwise_the_second_time_is_told(
        use: Callable[[Any, Tensor], Tensor]) -> None:
    assert RANDOM in probe(Wrapped(use), images(32), gradient=False)


def test_stochastic_depth_that_does_not_stop_is_told() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, drop_path_rate=0.1).eval()
    for block in model.blocks:
        block.drop_path1 = block.drop_path2 = AlwaysDropPath()
    assert probe(model.eval(), images(64), gradient=False) == (RANDOM,)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("use", [
    lambda self, x: self.inner((x - x.mean()) / x.std()),
    lambda self, x: self.inner(F.pad(x, (len(x),) * 4)[..., :32, :32]),
    lambda self, x: self.inner(x) + 0.01 * self.inner(x).amax(0),
    reseeded,
], ids=["normalised", "padded", "others", "noise by place"])
def test_a_model_that_looks_at_the_batch_is_told(use: Callable[[Any, Tensor], Tensor],
                                                 count: int) -> None:
    assert probe(Wrapped(use), images(32, count), gradient=False) == (BATCH,)


def test_batch_norm_without_running_statistics_is_told() -> None:
    assert probe(batch_statistics(), images(32), gradient=False) == (BATCH,)


def test_a_model_that_counts_its_passes_is_told_and_finds_its_count_again() -> None:
    model = Wrapped(counted)
    (remark,) = probe(model, images(32), gradient=False)
    assert "changes its own calls with every pass" in remark
    assert model.calls == 0


def test_a_buffer_that_moves_in_eval_mode_is_told_and_given_back() -> None:
    def drifting(self: Wrapped, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        self.mean = 0.9 * self.mean + 0.1 * pixels.mean()
        return self.inner(pixels)  # type: ignore[no-any-return]

    model = Wrapped(drifting)
    model.register_buffer("seen", torch.zeros((), dtype=torch.int64))
    model.register_buffer("mean", torch.zeros(()))
    held = dict(model.named_buffers())
    (remark,) = probe(model, images(32), gradient=False)
    assert "changes its own" in remark
    assert model.seen.item() == 0 and model.mean.item() == 0
    assert model.seen is held["seen"] and model.mean is held["mean"]


def test_a_rounded_input_is_told_where_gradients_are_used() -> None:
    model = Wrapped(lambda self, x: self.inner((x * 8).round() / 8))
    (remark,) = probe(model, images(32), gradient=True)
    assert "exactly zero everywhere for 4 of 4 images" in remark
    assert probe(model, images(32), gradient=False) == ()


def test_a_gradient_that_misses_nearly_all_pixels_is_told() -> None:
    model = Wrapped(lambda self, x: self.inner(F.interpolate(x[:, :, ::16, ::16], size=32)))
    (remark,) = probe(model, images(32), gradient=True)
    assert "exactly zero for 100 % of the pixels' values" in remark


def test_probabilities_in_place_of_logits_are_told_where_gradients_are_used() -> None:
    model = Wrapped(lambda self, x: self.inner(x).softmax(1))
    assert probe(model, images(32), gradient=True) == (PROBABILITIES,)


def test_images_without_finite_logits_are_left_out() -> None:
    def fragile(self: Wrapped, pixels: Tensor) -> Tensor:
        dark = (pixels.amax((1, 2, 3)) < 0.1).unsqueeze(1)
        return self.inner(pixels).masked_fill(dark, float("nan"))  # type: ignore[no-any-return]

    pixels = images(32)
    pixels[1] = 0
    assert probe(Wrapped(fragile), pixels, gradient=True) == ()
    assert probe(Wrapped(fragile), pixels[1:2], gradient=True) == ()


@pytest.mark.parametrize("gradient", [False, True])
def test_nothing_is_left_behind(gradient: bool) -> None:
    model, pixels = create_model(SMALL), images(32)
    next(iter(model.parameters())).requires_grad_(True)
    flags = [weight.requires_grad for weight in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = pixels.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    hooks = itertools.chain(*(module._forward_hooks for module in model.modules()))
    probe(model, pixels, gradient=gradient)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1] and random.getstate() == states[2]
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(pixels, kept) and not pixels.requires_grad and not list(hooks)


def test_the_same_probe_says_the_same() -> None:
    model = Wrapped(lambda self, x: self.inner(F.dropout(x, 0.3)))
    assert probe(model, images(32), gradient=True) == probe(model, images(32), gradient=True)
