"""What every attack of the registry must hold to, whatever it does: one tester for all of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from attack_cases import CLASSES, batch, small_net
from torch import Tensor, nn

from sanrobust.attacks.budget import Budget
from sanrobust.attacks.build import build_attack
from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.result import BudgetResult
from sanrobust.attacks.settings import AttackSettings

COUNT = 9


class OneByOne(nn.Module):
    """A network whose logits of an image cannot depend on its batch: it is given one at a time.

    ``passes`` counts images.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.passes = 0
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, K)."""
        self.passes += len(pixels)
        return torch.cat([self.network(pixels[place:place + 1]) for place in range(len(pixels))])


@dataclass(frozen=True)
class AttackTester:
    """An attack with few steps, on a small network and few images."""

    settings: AttackSettings

    @classmethod
    def of(cls, name: str, norm: str, **more: object) -> AttackTester:
        """Return the tester of an attack of the registry."""
        given: dict[str, object] = {"attack": name, "norm": norm, **more}
        if name in ("square", "autoattack"):
            given.setdefault("queries", 6)
        radii = (1.5, 6.0) if norm == "linf" else (0.2, 0.9)
        if name in ("square", "fgsm"):
            given["budgets"] = radii
        else:
            steps = name in ("pgd", "bim", "mifgsm")
            given["budgets"] = [Budget(eps, eps / 4 if steps else None, 4) for eps in radii]
        return cls(AttackSettings(**given))  # type: ignore[arg-type]

    def attack(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Sequence[str]
               ) -> list[BudgetResult]:
        """Attack a batch."""
        rule = self.settings.rule()
        return build_attack(self.settings, rule)(model, images, labels, ids)

    def check_product(self) -> None:
        """The product is legal, in the ball, and scored as it is."""
        model, images, labels, ids = mostly_right(COUNT)
        results = self.attack(model, images, labels, ids)
        norm = NORMS.get(self.settings.norm)
        assert len(results) == len(self.settings.strengths)
        for result, budget in zip(results, self.settings.strengths):
            made = result.adversarial
            radius = budget.eps / 255 if norm.levels else budget.eps
            assert torch.isfinite(made).all() and made.min() >= 0 and made.max() <= 1
            assert norm.size(made - images).max() <= radius * (1 + 1e-5) + 1e-6
            assert torch.equal(model(made), result.adv_logits)
            assert torch.equal(model(images), result.clean_logits)
            assert result.budget == budget

    def check_state(self) -> None:
        """Model, images, labels and every random generator are left as they were."""
        model, images, labels, ids = mostly_right(COUNT)
        before = copy.deepcopy(model.state_dict())
        kept = images.clone(), labels.clone()
        generator = torch.random.get_rng_state()
        self.attack(model, images, labels, ids)
        assert torch.equal(generator, torch.random.get_rng_state())
        assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module.training for module in model.modules())
        assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())

    def check_independence(self) -> None:
        """No number depends on the batch, on the order or on the images beside."""
        model, images, labels, ids = mostly_right(COUNT)
        whole = self.attack(model, images, labels, ids)
        backward = list(range(COUNT))[::-1]
        plans = [[[place] for place in range(0, COUNT, 2)], [list(range(7)), list(range(7, COUNT))],
                 [backward[::2], backward[1::2]]]
        for plan in plans:
            for part in plan:
                alone = self.attack(model, images[part], labels[part], [ids[at] for at in part])
                for result, expected in zip(alone, whole):
                    assert_rows_equal(result, expected, part)

    def check_success(self) -> None:
        """What was wrong stays wrong, and a larger ball breaks no fewer than nothing at all."""
        model, images, labels, ids = mostly_right(COUNT)
        for result in self.attack(model, images, labels, ids):
            wrong = result.clean_pred != labels
            broken = result.adv_pred != labels
            if self.settings.targets == "none":
                assert (broken | ~wrong).all() and not wrong.all()
            if result.broken_by is not None:
                told = [name is not None for name in result.broken_by]
                assert told == broken.tolist()
                assert [name == "clean" for name in result.broken_by] == wrong.tolist()
                assert result.broken_at is not None
                assert [at is not None for at in result.broken_at] == told

    def check_other_seed(self) -> None:
        """Another seed is another draw, where something is drawn."""
        model, images, labels, ids = mostly_right(COUNT)
        other = AttackTester(replace(self.settings, seed=1))
        first, second = (each.attack(model, images, labels, ids)[-1] for each in (self, other))
        draws = self.settings.attack not in ("fgsm", "bim", "mifgsm", "fab", "fab-t")
        assert torch.equal(first.adversarial, second.adversarial) != draws

    def check_right_answers(self, model: nn.Module, images: Tensor, labels: Tensor,
                            ids: Sequence[str]) -> BudgetResult:
        """Attack an awkward batch and return the last result, which is legal."""
        result = self.attack(model, images, labels, ids)[-1]
        assert torch.isfinite(result.adversarial).all()
        assert torch.equal(model(result.adversarial), result.adv_logits)
        return result


def assert_rows_equal(result: BudgetResult, expected: BudgetResult, part: Sequence[int]) -> None:
    """Every number of the images in ``part`` is the same bit for bit."""
    for name in ("adversarial", "clean_logits", "adv_logits", "targets", "hit", "hit_any", "linf",
                 "target_loss", "zero_gradient"):
        value, whole = getattr(result, name), getattr(expected, name)
        assert (value is None) == (whole is None)
        if value is not None:
            assert torch.equal(value.nan_to_num(9.), whole[list(part)].nan_to_num(9.)), name
    for name in ("broken_by", "broken_at", "losses"):
        value, whole = getattr(result, name), getattr(expected, name)
        assert value == (None if whole is None else [whole[at] for at in part]), name


def mostly_right(count: int, classes: int = CLASSES
                 ) -> tuple[OneByOne, Tensor, Tensor, list[str]]:
    """Return a network with images of which it gets all but the first and every seventh right."""
    model = OneByOne(small_net(classes))
    images, _, ids = batch(count)
    labels = model(images).argmax(1)
    labels[::7] = (labels[::7] + 1) % classes
    return model, images, labels.detach(), ids
