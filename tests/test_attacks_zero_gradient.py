"""Which part of a gradient is exactly zero: recorded on every path, whole parts exactly 1."""

from __future__ import annotations

import pytest
import torch
from attack_cases import FEW, RANDOM, batch, few_class_net, predicted, require_torchattacks, some
from torch import Tensor

from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.pgd import pgd
from sanrobust.attacks.randomness import symmetric_noise
from sanrobust.attacks.result import zero_share
from sanrobust.attacks.torchattacks_adapter import adapt


@pytest.mark.parametrize("shape", [(2, 3, 7, 11), (2, 3, 224, 224), (2, 1, 1, 3)])
def test_a_gradient_is_zero_everywhere_or_nowhere_exactly(shape: tuple[int, ...]) -> None:
    share = zero_share(torch.stack([torch.zeros(shape[1:]), torch.ones(shape[1:])]))
    assert share.tolist() == [1, 0]
    nearly = torch.zeros(shape)
    nearly[:, 0, 0, 0] = 1e-30
    assert (zero_share(nearly) < 1).all()


@pytest.mark.parametrize("random_start", [False, True])
def test_a_rounded_input_has_no_gradient_at_any_step(random_start: bool) -> None:
    net, (images, labels, ids) = few_class_net(), batch(3)
    labels %= FEW
    results = pgd(lambda x: net((x * 8).round() / 8), images, labels, ids,
                  budgets=TABLE10, targets=RANDOM, random_start=random_start,
                  restarts=2 if random_start else 1)
    for result, budget in zip(results, TABLE10, strict=True):
        assert torch.equal(result.zero_gradient, torch.ones(3, budget.iters))


def test_of_several_restarts_the_one_that_counts_is_reported() -> None:
    images, ids = torch.full((8, 3, 2, 2), 0.5), [f"image-{number}" for number in range(8)]
    labels = torch.zeros(8, dtype=torch.int64)

    def above(pixels: Tensor) -> Tensor:
        # Only the pixels that lie above the clean grey move the second logit.
        bright = (pixels - 0.5).relu().flatten(1).sum(1)
        return torch.stack([torch.full_like(bright, 100.0), bright], 1)

    result = pgd(above, images, labels, ids, budgets=[Budget(32, 1, 1)],
                 targets=torch.ones_like(labels), random_start=True, restarts=2)[0]
    noise = torch.stack([torch.stack([torch.from_numpy(symmetric_noise((3, 2, 2), 0, image, index))
                                      for image in ids]) for index in range(2)])
    starts = 0.5 + noise * 32 / 255
    losses = torch.stack([-above(start).log_softmax(1)[:, 1] for start in starts])
    kept = (losses - some(result.target_loss)[:, 0]).abs().argmin(0)
    assert 0 < kept.sum() < 8
    shares = (noise <= 0).flatten(2).float().mean(2)
    torch.testing.assert_close(result.zero_gradient[:, 0], shares[kept, torch.arange(8)])


@pytest.mark.parametrize("name", ["PGD", "CW", "EADL1", "DeepFool", "JSMA", "PGDRS"])
def test_an_attack_of_torchattacks_shows_whether_it_ever_had_a_gradient(name: str) -> None:
    require_torchattacks()
    net = few_class_net()
    images, labels, ids = predicted(net, 2)
    known = {"JSMA": {"gamma": "0.02"}, "EADL1": {"max_iterations": "10"}}
    attack = adapt(name, list(known.get(name, {}).items()))
    sound = attack(net, images, labels, ids, targets=RANDOM)
    assert (sound.zero_gradient < 0.5).all()
    if name != "DeepFool":  # Without a gradient it divides by its norm.
        rounded = attack(lambda x: net((x * 255).round() / 255), images, labels, ids,
                         targets=RANDOM)
        assert torch.equal(rounded.zero_gradient, torch.ones(2, 1))


def test_an_attack_without_gradients_has_no_part_of_zeros() -> None:
    require_torchattacks()
    net = few_class_net()
    images, labels, ids = predicted(net, 2)
    result = adapt("GN")(net, images, labels, ids, targets=RANDOM)
    assert result.zero_gradient.isnan().all()
