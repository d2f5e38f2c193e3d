"""The paper's training recipe, for small networks on small images.

Upright images only: no flips and no rotations, so that both stay unseen until they are measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import batches
from sanrobust.errors import DataError
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo.build import build
from sanrobust.zoo.classifier import Normalize
from sanrobust.zoo.entry import Architecture

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """SGD with cosine decay and label smoothing (Zhao et al. 2020, section 5.1).

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step; a smaller rest of an epoch is left out.
        lr: initial learning rate; it falls to zero on a cosine, stepped per epoch.
        momentum: of SGD.
        weight_decay: on all parameters.
        label_smoothing: mass taken from the true class and shared by the others.
        shift: largest random translation in pixels, the border repeated.
        seed: of initial weights, order and translations.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    shift: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained network and its accuracy on images that training never saw.

    Attributes:
        network: in eval mode, on the CPU.
        top1: held-out accuracy in percent.
        images: number of held-out images.
        seconds: wall time of training.
    """

    network: nn.Module
    top1: float
    images: int
    seconds: float


def train_network(architecture: Architecture, train: ImageSet, test: ImageSet, *, recipe: Recipe,
                  preprocessing: Preprocessing, device: torch.device, workers: int = 0,
                  say: Say) -> Trained:
    """Train a network on ``train`` and measure it on ``test``.

    Raises DataError when the two are the same or a batch is larger than the training split.
    """
    _check_splits(train, test, recipe)
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    network = build(architecture)
    model = nn.Sequential(Normalize(preprocessing.mean, preprocessing.std), network).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    loss_of = nn.CrossEntropyLoss(
        label_smoothing=_torch_smoothing(recipe.label_smoothing, architecture.num_classes))
    for epoch in range(recipe.epochs):
        model.train()
        losses = [_step(model, optimizer, loss_of, pixels, labels)
                  for pixels, labels
                  in _epoch(train, preprocessing, recipe, epoch, workers, device)]
        schedule.step()
        say(f"epoch {epoch + 1}/{recipe.epochs}: loss {sum(losses) / len(losses):.4f}")
    seconds = time.monotonic() - started
    model.eval()
    top1 = _accuracy(model, test, preprocessing, workers, device)
    return Trained(network.cpu(), top1=top1, images=len(test.refs), seconds=seconds)


def _torch_smoothing(smoothing: float, classes: int) -> float:
    """Turn the paper's smoothing (mass leaves the true class) into torch's (uniform share)."""
    return smoothing * classes / (classes - 1)


def _check_splits(train: ImageSet, test: ImageSet, recipe: Recipe) -> None:
    if train.digest == test.digest:
        raise DataError("training and held-out images must differ",
                        seen=f"{train.name} is given for both",
                        hint="give --data a set with two splits, or another --held-out folder")
    if recipe.batch_size > len(train.refs):
        raise DataError("a batch must fit into the training split",
                        seen=f"it has {len(train.refs)} images, a batch {recipe.batch_size}",
                        hint="lower --batch-size")


def _epoch(images: ImageSet, preprocessing: Preprocessing, recipe: Recipe, epoch: int,
           workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's shuffled, shifted pixels (B, 3, S, S) and labels (B,)."""
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(images.refs), generator=generator).tolist()
    size = recipe.batch_size
    plan = [order[start:start + size] for start in range(0, len(order) - size + 1, size)]
    for batch in batches(images, preprocessing, plan=plan, workers=workers):
        pixels = random_shift(batch.pixels, limit=recipe.shift, generator=generator)
        yield pixels.to(device), batch.labels.to(device)


def random_shift(pixels: Tensor, *, limit: int, generator: torch.Generator) -> Tensor:
    """Translate each image of (B, 3, S, S) by up to ``limit`` pixels, repeating its border."""
    if limit == 0:
        return pixels
    side = pixels.shape[-1]
    padded = F.pad(pixels, (limit,) * 4, mode="replicate")
    corners: Sequence[Sequence[int]] = torch.randint(
        0, 2 * limit + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([image[:, top:top + side, left:left + side]
                        for image, (top, left) in zip(padded, corners, strict=True)])


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: nn.Module,
          pixels: Tensor, labels: Tensor) -> float:
    loss: Tensor = loss_of(model(pixels), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _accuracy(model: nn.Module, images: ImageSet, preprocessing: Preprocessing, workers: int,
              device: torch.device) -> float:
    plan = [range(start, min(start + 256, len(images.refs)))
            for start in range(0, len(images.refs), 256)]
    hits = 0
    for batch in batches(images, preprocessing, plan=plan, workers=workers):
        logits = model(batch.pixels.to(device))
        hits += int((logits.argmax(dim=1).cpu() == batch.labels).sum())
    return 100.0 * hits / len(images.refs)
