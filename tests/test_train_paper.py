"""The recipe ``paper`` against the same training in plain torch and torchvision.

``PYTHONPATH=tests python tests/test_train_paper.py FOLDER`` compares an epoch on your own
photographs, an ImageFolder, and prints the largest difference of the weights.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from sanrobust.data.datasets import open_dataset
from sanrobust.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from sanrobust.training.crops import seed_of
from sanrobust.training.loop import Sets, Training
from sanrobust.training.recipes import RECIPES, Recipe
from sanrobust.zoo.build import build
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.families.resnet import ResNetConfig
from sanrobust.zoo.forms import imagenet_config

TINY = ResNetConfig(layers=(1, 1, 1, 1), width=4, num_classes=3)
CPU = torch.device("cpu")


def _plainly(folder: Path, network: nn.Module, recipe: Recipe, classes: int) -> None:
    """Train for the recipe's epochs as a script of one's own would."""
    images = ImageFolder(str(folder), transform=T.Compose([
        T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.ToTensor(),
        T.Normalize(IMAGENET_MEAN, IMAGENET_STD)]))
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=0.9,
                                weight_decay=1e-4)
    steps = len(images) // recipe.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * steps)
    # Torch gives the mass to all classes, the paper to the others.
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1 * classes / (classes - 1))
    network.train()
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator).tolist()
        for step in range(steps):
            drawn = []
            for index in order[step * recipe.batch_size:(step + 1) * recipe.batch_size]:
                torch.manual_seed(seed_of(recipe.seed, epoch, index))
                drawn.append(images[index])
            pixels = torch.stack([image for image, _ in drawn])
            loss = loss_of(network(pixels), torch.tensor([label for _, label in drawn]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _difference(folder: Path, architecture: Architecture, recipe: Recipe) -> float:
    """Return the largest difference of any weight or statistic, relative to its tensor's largest.
    """
    images = open_dataset(str(folder), root=None, split="train")
    torch.manual_seed(recipe.seed)
    ours = build(architecture)
    theirs = build(architecture)
    theirs.load_state_dict(ours.state_dict())
    Training(ours, Sets(images, images), recipe, device=CPU,
             classes=architecture.num_classes).run(lambda _: None)
    _plainly(folder, theirs, recipe, architecture.num_classes)
    other = theirs.state_dict()
    return max(_relative(value, other[name]) for name, value in ours.state_dict().items())


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-3))


def test_an_epoch_equals_a_loop_in_plain_torch(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in "abc":
        (tmp_path / label).mkdir()
        for number in range(4):
            height, width = random.integers(60, 300, 2)
            levels = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(levels).resize((width, height)).save(tmp_path / label / f"{number}.png")
    recipe = replace(RECIPES.get("paper"), epochs=2, batch_size=4)
    assert _difference(tmp_path, TINY, recipe) < 1e-6


if __name__ == "__main__":
    torch.set_num_threads(1)
    of = Path(sys.argv[1])
    paper = replace(RECIPES.get("paper"), epochs=1, batch_size=20)
    print(_difference(of, imagenet_config("resnet26", len(list(of.iterdir()))), paper))
