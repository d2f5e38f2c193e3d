"""Normalisation by the statistics of the batch with its ReLU: one kernel against torch's two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.library import opcheck
from torch.nn import functional as F

from sanrobust.errors import BackendError, UsageError
from sanrobust.kernels import functional, reference
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.mappings import pairwise_mapping
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import NormArgs
from sanrobust.zoo.build import build
from sanrobust.zoo.forms import small_config

pytestmark = pytest.mark.skipif(library.refusal() is not None,
                                reason=f"native kernels: {library.refusal()}")

# Values below, at and above a vector and a block, one image, one channel.
SHAPES = [(3, 5, 7, 11), (1, 1, 1, 3), (2, 4, 49, 333), (4, 3, 2, 1024), (2, 3, 41, 100),
          (5, 2, 1, 1)]
Made = dict[str, Tensor]


def norm_of(channels: int, **settings: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, dtype=torch.float64, **settings)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, std=0.7)
    return norm.train()


def one_and_two(norm: nn.BatchNorm2d, features: Tensor, dtype: torch.dtype,
                pooled: bool = False) -> Iterator[Made]:
    """Yield what our kernel makes in ``dtype``, and what torch makes in float64."""
    torch.manual_seed(2)
    for kind, make in ((dtype, functional.norm_relu), (torch.float64, two_operators)):
        own, given = deepcopy(norm).to(kind), features.to(kind).requires_grad_()
        made = make(own, given, pooled=pooled)  # type: ignore[operator]
        grad = torch.randn(made.shape, generator=torch.Generator().manual_seed(2)).double()
        made.backward(grad.to(kind))
        yield {"y": made.detach(), "x.grad": given.grad, "weight.grad": own.weight.grad,
               "bias.grad": own.bias.grad, "mean": own.running_mean, "variance": own.running_var,
               "batches": own.num_batches_tracked}  # type: ignore[dict-item]


def two_operators(norm: nn.BatchNorm2d, features: Tensor, *, pooled: bool = False) -> Tensor:
    made = F.relu(norm(features))
    return F.max_pool2d(made, 2) if pooled else made


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-6)])
@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"momentum": 0.3, "eps": 0.1},
                                      {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_kernel_makes_what_two_operators_of_torch_make(
        shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype,
        tolerance: float) -> None:
    torch.manual_seed(1)
    norm = norm_of(shape[1], **settings)
    found, wanted = one_and_two(norm, torch.randn(shape).double() * 2 + 0.5, dtype)
    for name, each in wanted.items():
        if each is not None:
            assert relative(found[name], each) < tolerance, name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-6)])
@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 3, 2, 2), (2, 2, 41, 100), (4, 3, 14, 14),
                                   (1, 2, 8, 56)], ids=str)
def test_and_the_maxima_of_squares(shape: tuple[int, ...], dtype: torch.dtype,
                                   tolerance: float) -> None:
    torch.manual_seed(1)
    found, wanted = one_and_two(norm_of(shape[1]), torch.randn(shape).double() * 2 + 0.5, dtype,
                                pooled=True)
    for name, each in wanted.items():
        assert relative(found[name], each) < tolerance, name


def test_a_map_without_a_square_is_for_torch_to_refuse() -> None:
    with pytest.raises(RuntimeError, match="too small"):
        functional.norm_relu(norm_of(3), torch.randn(2, 3, 1, 4).double(), pooled=True)


def test_the_maximum_of_what_is_not_a_number_is_not_a_number() -> None:
    features = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    features[0, 1, 2, 2] = torch.nan
    made = functional.norm_relu(norm_of(3), features, pooled=True)
    assert made[:, 1].isnan().all() and made[:, ::2].isfinite().all()


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    torch.manual_seed(3)
    features = (torch.randn(4, 2, 30, 30) + 1e4).double()
    found, wanted = one_and_two(norm_of(2), features, torch.float32)
    assert relative(found["variance"], wanted["variance"]) < 1e-6
    assert relative(found["mean"], wanted["mean"]) < 1e-6


def test_a_channel_that_does_not_vary_is_its_bias() -> None:
    norm = norm_of(2)
    made = functional.norm_relu(norm, torch.full((2, 2, 3, 3), 7.0, dtype=torch.float64))
    # A scale of some hundred times 7 is added and taken away.
    assert (made[0, :, 0, 0] - F.relu(norm.bias)).abs().max() < 1e-11


@pytest.mark.parametrize("pooled", (False, True))
def test_gradients_pass_gradcheck(pooled: bool) -> None:
    torch.manual_seed(4)
    norm = norm_of(3)
    features = torch.randn(2, 3, 2, 5, dtype=torch.float64, requires_grad=True)

    def make(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        made: Tensor
        made, *_ = torch.ops.sanrobust.norm_relu(features, weight, bias, 1e-5, pooled, "native")
        return made

    assert gradcheck(make, (features, norm.weight, norm.bias))


@pytest.mark.parametrize("name", ["san10-pair", "san10-scalar"])
def test_gradients_can_be_differentiated_again(name: str) -> None:
    torch.manual_seed(7)
    network = build(small_config(name)).double().train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    images, slopes = torch.rand(2, 3, 32, 32, dtype=torch.float64), []
    for backend in ("native", "reference"):
        leaf = images.clone().requires_grad_()
        with use_backend(backend):
            gradient, = torch.autograd.grad(network(leaf).logsumexp(1).sum(), leaf,
                                            create_graph=True)
            slopes.append(torch.autograd.grad(gradient.square().sum(), leaf)[0])
    assert relative(slopes[0], slopes[1]) < 1e-7


@pytest.mark.parametrize("size", [1e3, 1e5, 1e7])
def test_channels_of_one_large_value_have_no_variance(size: float) -> None:
    values = (torch.rand(64, generator=torch.Generator().manual_seed(8)) + 1) * size
    features = values.view(1, -1, 1, 1).expand(8, -1, 14, 14)
    norm = nn.BatchNorm2d(64, momentum=1.0).train()
    made = functional.norm_relu(norm, features)
    assert made.isfinite().all() and torch.equal(norm.running_var, torch.zeros(64))


@pytest.mark.parametrize("pooled", (False, True))
def test_the_operators_pass_opcheck(pooled: bool) -> None:
    norm = norm_of(3)
    features = torch.randn(2, 3, 2, 5, dtype=torch.float64)
    tensors = (norm.weight, norm.bias)
    settings = 1e-5, pooled, "native"
    opcheck(torch.ops.sanrobust.norm_relu, (features.clone().requires_grad_(), *tensors,
                                            *settings))
    held = [each.detach() for each in tensors]
    y, *found = torch.ops.sanrobust.norm_relu(features, *held, *settings)
    opcheck(torch.ops.sanrobust.norm_relu_backward,
            (torch.randn_like(y), features, *held, *found, *settings))


@pytest.mark.parametrize("level", library.LEVELS)
def test_every_level_of_instructions_and_any_threads(level: str) -> None:
    if level not in library.levels():
        pytest.skip(f"this processor lacks {level}")
    torch.manual_seed(5)
    features, norm = torch.randn(3, 5, 30, 100), norm_of(5).float()
    made = []
    for threads in (1, 4):
        y, stats = torch.full_like(features, torch.nan), torch.full((2, 5), torch.nan).double()
        library.load_level(level).call("sanrobust_norm_forward", NormArgs(
            images=3, channels=5, pixels=3000, threads=threads, eps=norm.eps, x=features,
            weight=norm.weight.detach(), bias=norm.bias.detach(), stats=stats, y=y))
        made += [y, stats]
    assert torch.equal(made[0], made[2]) and torch.equal(made[1], made[3])
    wanted = two_operators(deepcopy(norm).double(), features.double()).detach()
    assert relative(made[0], wanted) < 3e-6


def test_what_is_not_a_number_stays_so_in_its_channel() -> None:
    features = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    features[0, 1, 2, 2] = torch.nan
    made = functional.norm_relu(norm_of(3), features)
    assert made[:, 1].isnan().all() and made[:, ::2].isfinite().all()


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the calls of our kernel from here on."""
    seen: list[str] = []
    own = reference.ops.norm_relu

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        seen.append("call")
        return own(*args, **kwargs)

    monkeypatch.setattr(reference.ops, "norm_relu", counted)
    return seen


def hooked(norm: nn.BatchNorm2d) -> nn.Module:
    norm.register_forward_hook(lambda *_: None)
    return norm


LEFT: dict[str, Callable[[nn.BatchNorm2d], nn.Module]] = {
    "eval": lambda norm: norm.eval(), "hooked": hooked,
    "eps of zero": lambda norm: vars(norm).update(eps=0.0) or norm,
    "without a count": lambda norm: setattr(norm, "num_batches_tracked", None) or norm,
    "without weights": lambda norm: nn.BatchNorm2d(3, affine=False).double(),
    "a class of its own": lambda norm: type("Own", (nn.BatchNorm2d,), {})(3).double()}


@pytest.mark.parametrize("name", LEFT)
def test_norms_of_another_kind_are_torchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features, seen = torch.randn(2, 3, 4, 4, dtype=torch.float64), calls(monkeypatch)
    norm = LEFT[name](norm_of(3))
    try:
        wanted = F.relu(deepcopy(norm)(features))
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            functional.norm_relu(norm, features)
    else:
        assert torch.equal(functional.norm_relu(norm, features), wanted) and not seen
    functional.norm_relu(norm_of(3), features)
    assert len(seen) == 1
    with use_backend("reference"):
        functional.norm_relu(norm_of(3), features)
    assert len(seen) == 1


def test_a_hook_on_all_modules_sees_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        functional.norm_relu(norm_of(3), torch.randn(2, 3, 4, 4, dtype=torch.float64))
    finally:
        hook.remove()
    assert not seen


def test_one_value_has_no_variance() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        functional.norm_relu(norm_of(3), torch.randn(1, 3, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize("changed", [{"grad": torch.zeros(2, 3, 4)}, {"weight": torch.zeros(4)},
                                     {"stats": torch.zeros(2, 3)}], ids=str)
def test_what_does_not_fit_is_refused(changed: dict[str, Tensor]) -> None:
    given = {"grad": torch.zeros(2, 3, 5), "x": torch.zeros(2, 3, 5), "weight": torch.zeros(3),
             "bias": torch.zeros(3), "stats": torch.zeros(2, 3).double(),
             "codes": torch.zeros(0, dtype=torch.uint8)} | changed
    with pytest.raises(UsageError):
        torch.ops.sanrobust.norm_relu_backward(*given.values(), 1e-5, False, "native")
    with pytest.raises(BackendError, match="fused"):
        torch.ops.sanrobust.norm_relu_backward(*given.values(), 1e-5, False, "reference")


def test_a_mapping_joins_each_norm_with_its_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping, seen = pairwise_mapping("LRLRL", 3, 4, 2).double().train(), calls(monkeypatch)
    relation = torch.randn(2, 3, 9, 5, dtype=torch.float64)
    wanted = deepcopy(mapping)(relation.clone())
    assert relative(functional.mapped(mapping, relation).detach(), wanted.detach()) < 1e-12
    assert len(seen) == 3
    mapping[1].register_forward_hook(lambda *_: None)
    functional.mapped(mapping, relation)
    assert len(seen) == 5
    mapping.register_forward_hook(lambda *_: None)
    functional.mapped(mapping, relation)
    assert len(seen) == 5


@pytest.mark.parametrize("name", ["san10-pair", "san10-patch", "san10-pair(relation=dot)",
                                  "san10-patch(relation=star)"])
def test_a_training_step_is_torchs(name: str) -> None:
    torch.manual_seed(6)
    network = build(small_config(name)).double().train()
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):  # or the pixel itself, at no distance, is in the ReLU's kink
            nn.init.normal_(parameter, std=0.3)
    other, images = deepcopy(network), torch.rand(3, 3, 32, 32, dtype=torch.float64)
    steps = []
    for each, backend in ((network, "native"), (other, "reference")):
        with use_backend(backend):
            each(images).logsumexp(1).sum().backward()
        steps.append({**{key: value.grad for key, value in each.named_parameters()},
                      **dict(each.named_buffers())})
    # Gradients of biases in front of a norm are 0 but for rounding.
    largest = max(float(each.abs().max()) for key, each in steps[1].items() if "running" not in key)
    for key, each in steps[1].items():
        error = float((steps[0][key] - each).abs().max())
        assert error < 1e-8 * max(1.0, largest), key
