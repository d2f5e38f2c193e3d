"""Networks and images to attack, small and seeded."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sanrobust.attacks.targets import parse_rule
from sanrobust.attacks.torchattacks_adapter import adapt

RANDOM = parse_rule("random")
# Classes of `small_net`, and of `few_class_net`: not the 10 that torchattacks takes for granted.
CLASSES, FEW = 10, 6

# Options that make the slow attacks of torchattacks quick enough for a test.
QUICK = {
    "CW": {"steps": "5"}, "EADEN": {"max_iterations": "10", "binary_search_steps": "2"},
    "EADL1": {"max_iterations": "10", "binary_search_steps": "2"}, "JSMA": {"gamma": "0.02"},
    "Square": {"n_queries": "20"}, "SPSA": {"nb_sample": "4"}, "DeepFool": {"steps": "5"},
    "OnePixel": {"steps": "2", "popsize": "4"}, "Pixle": {"restarts": "2", "max_iterations": "2"},
    "SparseFool": {"steps": "2"}, "AutoAttack": {"eps": "1.0"}, "FAB": {"steps": "3"},
    "EOTPGD": {"steps": "3"}, "VMIFGSM": {"steps": "3"}, "VNIFGSM": {"steps": "3"},
}
# Options that make the weak attacks strong enough to show a direction.
MORE = {"Square": {"n_queries": "200"}, "SPSA": {"nb_iter": "10", "nb_sample": "32"},
        "JSMA": {"gamma": "0.1"}, "Jitter": {"scale": "1"}, "CW": {"c": "100", "steps": "50"},
        "EADEN": {"max_iterations": "100", "initial_const": "10"},
        "EADL1": {"max_iterations": "100", "initial_const": "10"}}


def require_torchattacks() -> ModuleType:
    """Skip the tests of a file, or one test, where the extra is not installed."""
    module = pytest.importorskip("torchattacks", reason="the extra torchattacks is not installed")
    assert isinstance(module, ModuleType)
    return module


def strong_options(name: str) -> dict[str, str]:
    """Options with which an attack of torchattacks moves a small network far."""
    strong = {"eps": "128/255", "alpha": "16/255", "steps": "10", "p_init": "0.9"}
    if name.endswith("L2"):
        strong = {"eps": "5", "alpha": "1"}
    taken = {key: value for key, value in strong.items() if key in adapt(name).parameters}
    return {**QUICK.get(name, {}), **taken, **MORE.get(name, {})}


def small_net(classes: int = CLASSES, *, channels: int = 8) -> nn.Sequential:
    """A conv net in eval mode whose logits are spread enough to be attacked."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
                        nn.Dropout(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                        nn.Linear(16 * channels, classes)).eval()
    linear = net[-1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.mul_(10)
    return net


def few_class_net() -> nn.Sequential:
    """A smaller one for the attacks of torchattacks."""
    return small_net(FEW, channels=6)


def batch(size: int, *, side: int = 12) -> tuple[Tensor, Tensor, list[str]]:
    """8-bit images, labels and ids."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (size, 3, side, side), generator=generator).float() / 255
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return pixels, labels, [f"image-{number}" for number in range(size)]


def predicted(net: nn.Module, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """The images and ids of `batch` with the classes that ``net`` gives them."""
    images, _, ids = batch(size)
    return images, net(images).argmax(1), ids


def some(tensor: Tensor | None) -> Tensor:
    """Return a tensor that must be there."""
    assert tensor is not None
    return tensor
