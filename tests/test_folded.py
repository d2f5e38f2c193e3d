"""A SAN folded into native kernels gives the plain network's numbers, whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from itertools import cycle, product

import pytest
import torch
from torch import Tensor, nn

from sanrobust.errors import ModelError
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.native import attention_rows, library
from sanrobust.zoo.build import build
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.folded import FoldedSan, UnchangingSan, refusal
from sanrobust.zoo.forms import ARCHITECTURES, imagenet_config, small_config
from sanrobust.zoo.resolve import create_model
from sanrobust.zoo.san import San

pytestmark = pytest.mark.skipif(library.load() is None,
                                reason=f"no native kernels: {library.refusal()}")

CPU = torch.device("cpu")
SANS = tuple(name for name in ARCHITECTURES if name.startswith("san"))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random_san(arch: str, *, small: bool) -> San:
    """A network whose normalisations are far from the identity, in eval mode and frozen."""
    torch.manual_seed(3)
    network = build(small_config(arch) if small else imagenet_config(arch, num_classes=17))
    assert isinstance(network, San)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.2)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval().requires_grad_(False)


def some_images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(5))


def logits_and_gradient(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    logits = network(images)
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype)
    gradient, = torch.autograd.grad((logits * weights).sum(), images)
    return logits.detach(), gradient


def relative(values: Tensor, truth: Tensor) -> float:
    return float((values.double() - truth).norm() / truth.norm())


def designs() -> Iterator[str]:
    """Each choice of pairwise attention beside the published ones, and some with one another."""
    choices = dict(relation=("subtraction", "summation", "concatenation", "hadamard", "dot"),
                   mapping=("LRL", "L", "LRLRL"), position=("relative", "none", "absolute"),
                   transforms=("3", "2", "1"))
    published = tuple(values[0] for values in choices.values())
    every = list(product(*choices.values()))
    for design in every:
        changes = [f"{name}={value}" for name, value, usual in zip(choices, design, published)
                   if value != usual]
        if len(changes) == 1 or len(changes) > 1 and every.index(design) % 9 == 4:
            yield f"san10-pair({','.join(changes)})"


SCALAR = ["san10-scalar", "san10-sasa", "san10-sasa(content=no)",
          "san10-sasa(position=none,heads=2)"]
PATCHWISE = ["san10-patch(transforms=2)", "san10-patch(transforms=1)", "san10-patch(relation=star)",
             "san10-patch(relation=star,transforms=2)", "san10-patch(relation=star,transforms=1)",
             "san10-patch(relation=clique)", "san10-patch(relation=clique,transforms=1)",
             "san10-patch(mapping=LRLRL)", "san10-patch(mapping=LRLRL,transforms=2)",
             "san10-patch(mapping=LRLRL,transforms=1)"]
DESIGNS = [*designs(), *SCALAR, *PATCHWISE]
SIZES = [("san10-pair", False, (128, 130)), ("san10-patch", False, (130, 128)),
         *((arch, True, (32, 36)) for arch in SANS), ("san10-pair", True, (37, 33)),
         ("san10-patch", True, (33, 37)), ("san10-pair(width=32)", False, (130, 128)),
         ("san10-patch(width=96)", False, (128, 130)),
         *((design, True, sides) for design, sides in zip(DESIGNS, cycle([(37, 33), (32, 36)]))),
         ("san10-pair(relation=concatenation,mapping=LRLRL,transforms=2)", False, (128, 130)),
         ("san10-pair(relation=dot,mapping=L,position=absolute)", False, (130, 128)),
         ("san10-pair(relation=hadamard,transforms=1)", False, (128, 130)),
         ("san10-patch(transforms=2)", False, (128, 130)),
         ("san10-patch(relation=star)", False, (130, 128)),
         ("san10-patch(relation=clique)", False, (130, 128)),
         ("san10-patch(mapping=LRLRL)", False, (128, 130)),
         ("san10-scalar", False, (128, 130)), ("san10-sasa", False, (128, 130))]


@pytest.mark.parametrize(("arch", "small", "sides"), SIZES)
def test_logits_are_as_exact_as_the_plain_networks(arch: str, small: bool,
                                                   sides: tuple[int, int]) -> None:
    network, images = random_san(arch, small=small), some_images(2, *sides)
    folded = FoldedSan(network)(images)
    with use_backend("reference"), torch.no_grad():
        plain = network(images)
        truth = network.double()(images.double())
    # Twice the plain network's error, and a few roundings where that one is lucky.
    assert relative(folded, truth) <= 2 * relative(plain, truth) + 1e-6


@pytest.mark.parametrize(("arch", "small", "sides"), SIZES)
def test_pixel_gradients_are_the_plain_networks(arch: str, small: bool,
                                                sides: tuple[int, int]) -> None:
    network, images = random_san(arch, small=small), some_images(2, *sides)
    _, folded = logits_and_gradient(FoldedSan(network), images)
    with use_backend("reference"):
        _, truth = logits_and_gradient(network.double(), images.double())
    # A ReLU within rounding of 0 may flip and moves the gradient by up to a percent; a wrong
    # border or mask moves it by more. The operators' own tests are exact.
    assert relative(folded, truth) < 1e-2
    assert float(((folded - truth).abs() < 1e-4 * truth.abs().max()).double().mean()) > 0.9


@pytest.mark.parametrize(("arch", "small"), [
    *product(("san10-pair", "san10-patch"), (True, False)),
    *((design, True) for design in DESIGNS[::3])])
def test_no_bit_depends_on_batch_or_threads(arch: str, small: bool) -> None:
    network = FoldedSan(random_san(arch, small=small))
    images = some_images(5, *((32, 36) if small else (128, 132)))
    torch.set_num_threads(1)
    logits, gradient = logits_and_gradient(network, images)
    for threads, batch in ((1, 1), (3, 5), (4, 2)):
        torch.set_num_threads(threads)
        parts = [logits_and_gradient(network, part) for part in images.split(batch)]
        assert torch.equal(torch.cat([part[0] for part in parts]), logits)
        assert torch.equal(torch.cat([part[1] for part in parts]), gradient)


def test_a_gradient_can_be_taken_twice_and_two_passes_do_not_disturb_each_other() -> None:
    network = FoldedSan(random_san("san10-pair", small=True))
    one, other = (image.requires_grad_() for image in some_images(2, 32, 32)[:, None].unbind())
    alone, = torch.autograd.grad(network(one)[0, 3], one)
    first = network(one)[0, 3]
    second = network(other)[0, 4]
    torch.autograd.grad(second, other)
    kept, = torch.autograd.grad(first, one, retain_graph=True)
    again, = torch.autograd.grad(first, one)
    assert torch.equal(kept, alone) and torch.equal(again, alone)


def test_a_pass_back_frees_what_it_used_and_a_second_one_must_be_announced() -> None:
    network = FoldedSan(random_san("san10-patch", small=True))
    images = some_images(2, 32, 32).requires_grad_()
    logit = network(images)[0, 3]
    torch.autograd.grad(logit, images)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(logit, images)


def test_a_pass_is_recorded_once_for_a_shape_and_then_made_again(
        monkeypatch: pytest.MonkeyPatch) -> None:
    network = FoldedSan(random_san("san10-pair", small=True))
    images = some_images(4, 32, 32)
    fresh = [logits_and_gradient(FoldedSan(random_san("san10-pair", small=True)), part)
             for part in images.split(2)]
    logits_and_gradient(network, images[:2])
    with torch.no_grad():
        network(images[:2])
    for method in ("logits", "pixel_gradient"):
        monkeypatch.setattr(network, method, None)
    for part, (logits, gradient) in zip(images.split(2), fresh):
        again = logits_and_gradient(network, part)
        with torch.no_grad():
            assert torch.equal(network(part), logits)
        assert torch.equal(again[0], logits) and torch.equal(again[1], gradient)
    with pytest.raises(TypeError):
        network(images[:3])


def test_passes_at_the_same_time_have_memory_of_their_own() -> None:
    network = FoldedSan(random_san("san10-patch", small=True))
    one, other = (image.requires_grad_() for image in some_images(2, 32, 32)[:, None].unbind())
    alone = [logits_and_gradient(network, image.detach()) for image in (one, other)]
    for _ in range(2):
        logits = network(one), network(other)
        with torch.no_grad():
            assert torch.equal(network(one), alone[0][0])
        del logits
        first, second = network(one), network(other)
        weights = torch.linspace(-1, 1, first.shape[1])
        for image, found, (expected, gradient) in zip((one, other), (first, second), alone):
            assert torch.equal(found, expected)
            assert torch.equal(torch.autograd.grad((found * weights).sum(), image)[0], gradient)


def test_threads_and_copies_do_not_share_memory() -> None:
    network = FoldedSan(random_san("san10-pair", small=True))
    parts = some_images(12, 32, 32).split(3)
    alone = [logits_and_gradient(network, part) for part in parts]
    for model in (network, deepcopy(network)):
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(partial(logits_and_gradient, model), parts * 5))
        for found, expected in zip(together, alone * 5):
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_without_a_gradient_the_logits_are_the_same_bits() -> None:
    network, images = FoldedSan(random_san("san15-patch", small=True)), some_images(3, 32, 32)
    with torch.no_grad():
        quick = network(images)
    assert torch.equal(quick, logits_and_gradient(network, images)[0])


@pytest.mark.parametrize("arch", ["san10-pair", "san10-patch"])
def test_an_image_that_is_not_a_number_stays_so_and_spoils_no_other(arch: str) -> None:
    network, images = FoldedSan(random_san(arch, small=True)), some_images(3, 32, 32)
    clean = network(images)
    images[1, 0, 7, 9] = float("nan")
    spoiled = network(images)
    assert spoiled[1].isnan().all()
    assert torch.equal(spoiled[::2], clean[::2])


def test_an_empty_batch_gives_no_logits() -> None:
    assert FoldedSan(random_san("san10-pair", small=True))(some_images(0, 32, 32)).shape == (0, 10)


def test_the_digits_are_classified_as_before() -> None:
    plain = create_model("san10-pair.digits")
    fast, words, reason, steady = accelerate(plain, CPU)
    pixels = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert reason is None and isinstance(fast.network, FoldedSan)
    assert steady and words == "folded network"
    assert fast.weights_digest == plain.weights_digest
    with use_backend("reference"):
        torch.testing.assert_close(fast(pixels), plain(pixels), rtol=1e-4, atol=1e-4)


def test_away_from_the_cpu_mappings_are_folded_once_and_the_reason_stands() -> None:
    plain = create_model("san10-pair.digits")
    quick, _, reason, steady = accelerate(plain, torch.device("cuda"))
    assert reason is not None and "not on cuda" in reason and not steady
    assert isinstance(quick.network, UnchangingSan) and quick.network is not plain.network
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for one, two in zip(logits_and_gradient(plain, pixels), logits_and_gradient(quick, pixels)):
        assert torch.equal(one, two)


def test_no_images_have_no_logits_and_no_gradient() -> None:
    network, images = FoldedSan(random_san("san10-pair", small=True)), some_images(0, 32, 32)
    logits, gradient = logits_and_gradient(network, images)
    assert logits.shape == (0, network.classes) and gradient.shape == images.shape


def test_images_too_small_for_the_footprint_are_refused() -> None:
    network = random_san("san10-pair", small=True)
    side = network.smallest_input
    assert FoldedSan(network)(some_images(1, side, side)).shape == (1, 10)
    with pytest.raises(ModelError, match=f"at least {side}x{side}"):
        FoldedSan(network)(some_images(1, side, side - 1))


def test_a_network_that_cannot_be_folded_says_why() -> None:
    san = random_san("san10-pair", small=True)
    assert refusal(san, CPU) is None
    assert refusal(nn.Linear(2, 2), CPU) == "it is no SAN"
    assert "on cuda" in str(refusal(san, torch.device("cuda")))
    with use_backend("reference"):
        assert refusal(san, CPU) == "backend reference was asked for"
    assert "float32" in str(refusal(san.double(), CPU))
    assert "train mode" in str(refusal(san.train(), CPU))


@pytest.mark.parametrize("arch", ["san10-pair", "san10-patch", *DESIGNS[::4]])
def test_weights_of_large_maps_are_computed_again_and_change_no_number(
        arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = random_san(arch, small=True), some_images(3, 48, 48)
    found = []
    for pixels, size in ((1 << 30, 1), (40 * 40, 1), (40 * 40, 1 << 30)):
        monkeypatch.setattr(attention_rows, "RECOMPUTED_PIXELS", pixels)
        monkeypatch.setattr(attention_rows, "RECOMPUTED_BYTES", size)
        found.append(logits_and_gradient(FoldedSan(network), images))
    kept, *again = found
    for each in again:
        for one, two in zip(kept, each):
            assert torch.equal(one, two)
