"""Adding one number to all logits of an image changes neither its class nor what an attack does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_cases import FEW, few_class_net, predicted, require_torchattacks, strong_options
from torch import Tensor

from sanrobust.attacks.losses import margin
from sanrobust.attacks.result import BudgetResult
from sanrobust.attacks.torchattacks_adapter import adapt, attack_names
from sanrobust.attacks.torchattacks_shell import MASKING, Shell

require_torchattacks()
Spelling = Callable[[Tensor], Tensor]

SPELLINGS: dict[str, Spelling] = {
    "plus 50": lambda logits: logits + 50,
    "minus 50": lambda logits: logits - 50,
    # An offset that follows the image, and has a gradient of its own.
    "log softmax": lambda logits: logits.log_softmax(1),
}
CASES = [(name, {}) for name in attack_names()] + [("UPGD", {"loss": "margin"}),
                                                   ("UPGD", {"loss": "dlr"})]


def attacked(name: str, options: dict[str, str], spelling: Spelling) -> BudgetResult:
    net = few_class_net()
    images, labels, ids = predicted(net, 4)
    attack = adapt(name, list({**strong_options(name), **options}.items()))
    return attack(lambda x: spelling(net(x)), images, labels, ids, targets=(labels + 1) % FEW)


@pytest.mark.parametrize(("name", "options"), CASES,
                         ids=[" ".join((name, *options.values())) for name, options in CASES])
def test_every_attack_makes_the_same_image_of_every_spelling(name: str,
                                                             options: dict[str, str]) -> None:
    plain = attacked(name, options, lambda logits: logits)
    top = plain.adv_logits.topk(2, dim=1).values
    # DeepFool stops where two classes are equal; there rounding decides.
    decided = top[:, 0] - top[:, 1] > 1e-3
    for spelling in SPELLINGS.values():
        other = attacked(name, options, spelling)
        # Rounding of the logits, which differs between spellings, is all that is left.
        far = ((other.adversarial - plain.adversarial).abs() > 1e-3).float().mean()
        assert far <= 1e-2
        assert torch.equal(other.adv_pred[decided], plain.adv_pred[decided])


@pytest.mark.parametrize("name", sorted(MASKING))
def test_a_class_switched_off_by_a_huge_logit_changes_nothing(name: str) -> None:
    options = {"loss": "margin"} if name == "UPGD" else {}
    plain = attacked(name, options, lambda logits: logits)
    other = attacked(name, options, lambda logits: torch.cat(
        [logits, torch.full((len(logits), 1), -1e9)], dim=1))
    torch.testing.assert_close(other.adversarial, plain.adversarial)


def test_the_masked_maximum_is_the_one_that_is_published() -> None:
    logits = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) - 20
    leaf, ours = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    targets = torch.arange(64) % 5
    mask = torch.eye(5)[targets]
    seen = Shell(lambda pixels: pixels.flatten(1), "CW")(leaf.view(64, 5, 1, 1))
    value = ((1 - mask) * seen).amax(1) - (mask * seen).amax(1)
    expected = margin(ours, targets, targets)
    torch.testing.assert_close(value.float(), expected)
    value.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaf.grad, ours.grad)


def test_an_attack_that_reads_differences_gets_the_logits_bit_by_bit() -> None:
    images = torch.rand(3, 3, 2, 2)
    assert torch.equal(Shell(lambda pixels: pixels.flatten(1), "PGD")(images), images.flatten(1))
