"""Networks and images to attack, small and seeded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanrobust.attacks.targets import parse_rule

RANDOM = parse_rule("random")
# Classes of `small_net`, and of `few_class_net`: not the 10 that torchattacks takes for granted.
CLASSES, FEW = 10, 6


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
