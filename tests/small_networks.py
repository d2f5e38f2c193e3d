"""Small networks of the digits that are trained within seconds, plainly or against an attack."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.data.datasets import open_dataset
from sanrobust.data.loader import batches
from sanrobust.preprocessing import Preprocessing

PLAIN = Preprocessing(img_size=32, crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
"""Pixels in [0, 1] as they are."""


@cache
def digits(split: str = "train") -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, 32, 32) and labels (N,) of the embedded digits."""
    images = open_dataset("digits", root=None, split=split)
    (batch,) = batches(images, PLAIN, plan=[range(len(images.refs))], workers=0)
    return batch.pixels, batch.labels


class Small(nn.Module):
    """Three convolutions with batch norm, and dropout before the last layer; 0.1 ms a digit."""

    def __init__(self, width: int = 12, norm: type[nn.Module] = nn.BatchNorm2d,
                 act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.body = nn.Sequential(*(
            layer for before, after in zip(widths, widths[1:]) for layer in (
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), norm(after), act())))
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(16 * widths[-1], 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.drop(self.body(pixels).flatten(1)))  # type: ignore[no-any-return]


def pushed(network: nn.Module, pixels: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """Return pixels after steps of projected gradient descent within ``eps`` / 255."""
    radius = eps / 255
    moved = (pixels + radius * (2 * torch.rand_like(pixels) - 1)).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_()
        loss = F.cross_entropy(network(moved), labels)
        (slope,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + 2.5 * radius / steps * slope.sign()
        moved = (pixels + (moved - pixels).clamp(-radius, radius)).clamp(0, 1)
    return moved.detach()


def trained(network: nn.Module, *, seed: int = 0, epochs: int = 8, eps: float = 0.0,
            steps: int = 4, lr: float = 2e-3) -> nn.Module:
    """Train a network of pixels in [0, 1] on the digits; with ``eps`` as Madry et al. (2018) do."""
    pixels, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        best = torch.optim.Adam(network.parameters(), lr=lr)
        for _ in range(epochs):
            for part in torch.randperm(len(pixels)).split(64):
                network.train()
                x, y = pixels[part], labels[part]
                if eps:
                    x = pushed(network, x, y, eps, steps)
                best.zero_grad()
                F.cross_entropy(network(x), y).backward()
                best.step()
    return network.eval()
