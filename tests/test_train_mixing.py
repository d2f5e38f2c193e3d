"""Mixed images and averaged weights in training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_sets import few

from sanrobust.errors import UsageError
from sanrobust.training.feed import Feed, Share
from sanrobust.training.loop import Training
from sanrobust.training.mixing import draw_share, mixed
from sanrobust.training.recipes import Recipe
from sanrobust.training.scoring import HeldOut
from sanrobust.zoo.classifier import Normalize

CPU = torch.device("cpu")
SMALL = Recipe(img_size=16, epochs=1, batch_size=32, label_smoothing=0.0)


class _Plain(nn.Module):
    """A network without batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(images.flatten(1))
        return logits


def _training(recipe: Recipe) -> Training:
    return Training(_Plain(), few(96), recipe, device=CPU, classes=10)


def test_neighbours_are_mixed_and_the_last_of_an_odd_number_is_itself() -> None:
    pixels = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1)
    found, others = mixed(pixels, torch.tensor([7, 8, 9]), 0.75)
    assert found.flatten().tolist() == [0.25, 0.75, 0.5]
    assert others.tolist() == [8, 7, 9]


def test_a_share_belongs_to_seed_epoch_and_step() -> None:
    draws = [draw_share(Recipe(seed=seed, mixup=0.4), epoch, step)
             for seed, epoch, step in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0))]
    assert draws[0] == draws[4] and len(set(draws)) == 4
    assert all(0 <= each <= 1 for each in draws)


def test_shares_come_from_a_symmetric_beta() -> None:
    draws = torch.tensor([draw_share(Recipe(mixup=0.5), 0, step) for step in range(4000)],
                         dtype=torch.float64)
    assert abs(float(draws.mean()) - 0.5) < 0.02
    assert abs(float(draws.var()) - 1 / 8) < 0.005  # 1 / (4 (2 alpha + 1))


def test_processes_mix_what_one_would() -> None:
    recipe = replace(SMALL, mixup=0.4)
    whole = next(Feed(few(96).train, recipe, CPU).epoch(2))
    expected = mixed(whole.pixels, whole.labels, whole.share)
    parts = [next(Feed(few(96).train, recipe, CPU, share=Share(rank, 4)).epoch(2))
             for rank in range(4)]
    found = [mixed(part.pixels, part.labels, part.share) for part in parts]
    for values, pieces in zip(expected, zip(*found)):
        assert torch.equal(torch.cat(pieces), values)


def test_a_step_on_mixed_images_is_one_on_mixed_labels() -> None:
    recipe = replace(SMALL, mixup=0.4, batch_size=96, lr=0.5, weight_decay=0.0)
    training = _training(recipe)
    plain, each = _Plain(), next(Feed(few(96).train, recipe, CPU).epoch(0))
    assert 0 < each.share < 1
    training.run(lambda _: None)
    pairs = torch.arange(96).view(-1, 2).flip(1).flatten()
    hot = F.one_hot(each.labels, 10).float()
    wanted = recipe.preprocessing
    images = Normalize(wanted.mean, wanted.std)(
        each.share * each.pixels + (1 - each.share) * each.pixels[pairs])
    soft = each.share * hot + (1 - each.share) * hot[pairs]
    loss = -(soft * plain(images).log_softmax(1)).sum(1).mean()
    gradient, = torch.autograd.grad(loss, plain.head.weight)
    torch.testing.assert_close(training.network.head.weight,
                               plain.head.weight - 0.5 * gradient, rtol=0, atol=1e-6)


def test_averaged_weights_are_measured_and_returned() -> None:
    recipe = replace(SMALL, ema=0.75)
    training = _training(recipe)
    seen: list[Tensor] = []
    keep = training.average
    assert keep is not None
    update = keep.update

    def noted(network: nn.Module, step: int) -> None:
        seen.append(next(network.parameters()).detach().clone())
        update(network, step)
    keep.update = noted  # type: ignore[method-assign, assignment]
    score = training.run(lambda _: None)
    average = seen[0]
    for weights in seen[1:]:
        average = 0.75 * average + 0.25 * weights
    assert len(seen) == 3
    torch.testing.assert_close(next(training.result.parameters()), average)
    assert not torch.equal(next(training.network.parameters()), average)
    wanted = recipe.preprocessing
    model = nn.Sequential(Normalize(wanted.mean, wanted.std), training.result)
    assert HeldOut(few(96).test, recipe, CPU).score(model) == score


def test_without_an_average_the_network_is_the_result() -> None:
    training = _training(SMALL)
    assert training.result is training.network and "average" not in training.parts()


def test_images_are_mixed_or_attacked() -> None:
    with pytest.raises(UsageError, match="must mix images or attack them.*--mixup is 0.2 and "
                                         "--eps 8.*--mixup 0 or --eps 0"):
        Recipe(mixup=0.2, eps=8)
