"""Attacks of torchattacks through our door: our numbers, targets, seeds and classes."""

from __future__ import annotations

import pytest
import torch
from attack_cases import (FEW, MORE, QUICK, RANDOM, few_class_net, predicted, require_torchattacks,
                          some, strong_options)
from torch import nn

from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.build import build_attack
from sanrobust.attacks.pgd import pgd
from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.targets import parse_rule
from sanrobust.attacks.torchattacks_adapter import adapt, attack_names
from sanrobust.errors import ProtocolError

require_torchattacks()


@pytest.mark.parametrize("budget", TABLE10, ids=str)
def test_pgd_through_the_adapter_is_our_pgd(budget: Budget) -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 16)
    ours = pgd(net, images, labels, ids, budgets=[budget], targets=RANDOM, seed=4)[0]
    options = {"eps": f"{budget.eps:g}/255", "alpha": f"{budget.step:g}/255",
               "steps": str(budget.iters), "random_start": "false"}
    theirs = adapt("PGD", list(options.items()))(net, images, labels, ids, targets=RANDOM, seed=4)
    assert torch.equal(some(theirs.targets), some(ours.targets))
    # Float rounding off the 8-bit grid may turn the sign of a gradient that is nearly zero.
    differing = (theirs.adversarial * 255).round() != (ours.adversarial * 255).round()
    assert differing.float().mean() <= 1e-4
    assert torch.equal(some(theirs.hit), some(ours.hit))
    assert theirs.eps == budget.eps and theirs.budget is None
    torch.testing.assert_close(theirs.linf, ours.linf, rtol=0, atol=3e-4)


@pytest.mark.parametrize("name", attack_names())
def test_every_attack_runs_and_repeats_itself_whatever_the_batch(name: str) -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 3)
    attack = adapt(name, list(QUICK.get(name, {}).items()))
    whole = attack(net, images, labels, ids, targets=RANDOM)
    last = attack(net, images[2:], labels[2:], ids[2:], targets=RANDOM)
    assert torch.equal(last.adversarial, whole.adversarial[2:])
    assert (whole.targets is None) == (whole.hit is None) == (not attack.targeted)
    assert whole.hit_any is None and whole.target_loss is None
    assert whole.zero_gradient.shape == (3, 1)
    torch.testing.assert_close(last.zero_gradient, whole.zero_gradient[2:], equal_nan=True)
    # Ball, range and finiteness are the adapter's own checks; the distance shows the unit.
    assert (whole.linf <= (255 if attack.eps is None else attack.eps) + 3e-4).all()


def test_an_untargeted_attack_reads_no_targets() -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 2)
    rule = parse_rule(f"fixed:{int(labels[0])}")
    result = adapt("TPGD")(net, images, labels, ids, targets=rule)
    assert result.targets is None and result.hit is None


def test_draws_follow_the_seed_and_the_image() -> None:
    net = few_class_net()
    images, labels, _ = predicted(net, 1)
    attack = adapt("FFGSM")
    same, again, seed, image = (
        attack(net, images, labels, [image_id], targets=(labels + 1) % FEW, seed=seed)
        .adversarial for image_id, seed in (("a", 0), ("a", 0), ("a", 1), ("b", 0)))
    assert torch.equal(same, again)
    assert not torch.equal(same, seed) and not torch.equal(same, image)


@pytest.mark.parametrize("name", [name for name in attack_names() if adapt(name).targeted])
def test_a_targeted_attack_hears_its_target(name: str) -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 3)
    targets = (labels + 1) % FEW
    attack = adapt(name, list(strong_options(name).items()))
    result = attack(net, images, labels, ids, targets=targets)
    loss = nn.functional.cross_entropy
    assert loss(result.adv_logits, targets) < loss(result.clean_logits, targets)


@pytest.mark.parametrize("name", ["FAB", "APGD", "DeepFool", "TPGD", "PIFGSM"])
def test_an_untargeted_attack_leaves_the_label(name: str) -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 3)
    radius = [(key, "96/255") for key in ("eps", "max_epsilon") if key in adapt(name).parameters]
    result = adapt(name, radius)(net, images, labels, ids, targets=RANDOM)
    assert result.hit is None and (result.adv_pred != labels).any()


@pytest.mark.parametrize("name", ["APGDT", "FAB"])
def test_the_number_of_classes_is_the_models(name: str) -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 2)
    options = [("eps", "0.01/255")] + ([("multi_targeted", "true")] if name == "FAB" else [])
    # The default of 10 classes fails on an image that is not fooled, since there are 6.
    result = adapt(name, options)(net, images, labels, ids, targets=RANDOM)
    assert torch.equal(result.adv_pred, labels)
    with pytest.raises(ProtocolError, match="IndexError"):
        adapt(name, [*options, ("n_classes", "10")])(net, images, labels, ids, targets=RANDOM)


@pytest.mark.parametrize("name", ["APGD", "Square"])
def test_an_attack_with_a_seed_of_its_own_follows_ours(name: str) -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 1)
    options = [("eps", "160/255"), *MORE.get(name, {}).items()]
    targets = (labels + 1) % FEW
    one, two = (adapt(name, options)(net, images, labels, ids, targets=targets, seed=seed)
                for seed in (0, 1))
    fixed = adapt(name, [*options, ("seed", "5")])
    three, four = (fixed(net, images, labels, ids, targets=targets, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.adversarial, two.adversarial)
    assert torch.equal(three.adversarial, four.adversarial)


@pytest.mark.parametrize(("settings", "count"), [
    (AttackSettings(seed=3, loss="margin", random_start=True, restarts=2), 2),
    (AttackSettings(attack="torchattacks:MIFGSM", options=(("steps", "2"),), seed=3), 1),
])
def test_settings_become_an_attack(settings: AttackSettings, count: int) -> None:
    net = few_class_net()
    images, labels, ids = predicted(net, 4)
    results = build_attack(settings, settings.rule())(net, images, labels, ids)
    assert len(results) == count
    expected = RANDOM.choose(ids, labels, net(images), seed=3)
    assert all(torch.equal(some(result.targets), expected) for result in results)
    if settings.adapted is None:
        direct = pgd(net, images, labels, ids, budgets=TABLE10, targets=RANDOM, seed=3,
                     loss="margin", random_start=True, restarts=2)
        assert all(torch.equal(one.adversarial, two.adversarial)
                   for one, two in zip(results, direct, strict=True))
