"""Every attack of the registry, in both norms, through the one tester."""

from __future__ import annotations

import pytest
import torch
from attack_cases import batch, small_net
from attack_tester import AttackTester, OneByOne, mostly_right
from torch import Tensor, nn

from sanrobust.attacks.catalog import ATTACKS
from sanrobust.attacks.describe import attack_words
from sanrobust.attacks.losses import margin
from sanrobust.attacks.norms import NORMS as REGISTRY
from sanrobust.attacks.problem import Problem
from sanrobust.attacks.suite import MEMBERS, Strength, attack_until_broken
from sanrobust.attacks.versions import MEMBERS as NAMES
from sanrobust.attacks.versions import Version
from sanrobust.errors import NonFiniteError

NORMS = ("linf", "l2")
EACH = pytest.mark.parametrize(("name", "norm"), [(name, norm) for name in ATTACKS.own_names()
                                                  for norm in NORMS])
SUITES = [name for name in ATTACKS.own_names() if ATTACKS.get(name).targets == "none"]


@EACH
def test_the_product_is_legal_and_in_the_ball(name: str, norm: str) -> None:
    AttackTester.of(name, norm).check_product()


@EACH
def test_everything_is_left_as_it_was(name: str, norm: str) -> None:
    AttackTester.of(name, norm).check_state()


@EACH
def test_no_number_depends_on_the_other_images(name: str, norm: str) -> None:
    AttackTester.of(name, norm).check_independence()


@EACH
def test_it_is_never_worse_than_its_start(name: str, norm: str) -> None:
    AttackTester.of(name, norm).check_success()


@EACH
def test_draws_follow_the_seed(name: str, norm: str) -> None:
    AttackTester.of(name, norm).check_other_seed()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ATTACKS.own_names())
def test_few_classes_are_enough(name: str, classes: int) -> None:
    tester = AttackTester.of(name, NORMS[classes % 2])
    result = tester.check_right_answers(*mostly_right(5, classes))
    assert result.clean_logits.shape[1] == classes


class Constant(nn.Module):
    """A network that says the same of every image."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 3) with the first the highest, whose gradients are zero."""
        return pixels.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([1., 0., 0.])


@EACH
def test_constant_logits_cannot_be_changed(name: str, norm: str) -> None:
    images, _, ids = batch(4)
    labels = torch.tensor([0, 0, 1, 2])
    tester = AttackTester.of(name, norm)
    result = tester.check_right_answers(Constant().eval(), images, labels, ids)
    assert result.adv_pred.tolist() == [0] * 4
    if result.broken_by is not None:
        assert list(result.broken_by) == [None, None, "clean", "clean"]


@EACH
def test_images_that_are_all_wrong_and_one_alone_are_answered(name: str, norm: str) -> None:
    model, images, labels, ids = mostly_right(3, 4)
    tester = AttackTester.of(name, norm)
    wrong = (model(images).argmax(1) + 1) % 4
    result = tester.check_right_answers(model, images, wrong, ids)
    if tester.settings.targets == "none":
        assert (result.adv_pred != wrong).all()
    alone = tester.check_right_answers(model, images[:1], labels[:1], ids[:1])
    assert len(alone.adversarial) == 1


class Broken(nn.Module):
    """A network whose logits are NaN for an image whose first pixel is exactly one."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_net()
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 10)."""
        logits: Tensor = self.network(pixels)
        return torch.where(pixels[:, 0, 0, :1] == 1, float("nan"), logits)


@EACH
def test_one_image_without_numbers_is_named_and_not_attacked(name: str, norm: str) -> None:
    _, images, labels, ids = mostly_right(4)
    images[2, 0, 0, 0] = 1
    with pytest.raises(NonFiniteError):
        AttackTester.of(name, norm).attack(Broken(), images, labels, ids)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", list(MEMBERS))
def test_room_for_several_tries_changes_no_number(name: str, norm: str) -> None:
    model, images, labels, ids = mostly_right(5)
    radius = {"linf": 3 / 255, "l2": 0.5}[norm]
    strength = Strength(iters=6, queries=30, rescaled=True)
    version = Version((name,), {name: 1 if "-t" in name else 3})
    found = []
    for room, size in ((1, 1), (12, 1), (64, 1), (64, 16)):
        problem = Problem(model, images, labels, ids, model(images).detach(), REGISTRY.get(norm),
                          radius, 0, room, size)
        found.append(attack_until_broken(problem, version, strength))
    narrow, *wider = found
    assert None in narrow.by and name in narrow.by
    for wide in wider:
        assert torch.equal(wide.pixels, narrow.pixels) and torch.equal(wide.step, narrow.step)
        assert torch.equal(wide.zero.nan_to_num(9), narrow.zero.nan_to_num(9))
        assert wide.by == narrow.by and wide.paths == narrow.paths


class Narrow(OneByOne):
    """A network that says nothing of more than four images together."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return super().forward(pixels) + (float("nan") if len(pixels) > 4 else 0)


@pytest.mark.parametrize("name", ["apgd-t", "fab-t", "square"])
def test_what_a_needless_try_comes_to_fails_no_image(name: str) -> None:
    model, images, labels, ids = mostly_right(4)
    found = []
    for net in (model, Narrow(model.network)):
        problem = Problem(net, images, labels, ids, model(images).detach(), REGISTRY.get("linf"),
                          3 / 255, 0, 32)
        found.append(attack_until_broken(problem, Version((name,), {}), Strength(5, 30, True)))
    sound, narrow = found
    assert torch.equal(sound.pixels, narrow.pixels) and sound.paths == narrow.paths


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab", "fab-t", "square"])
def test_autoattack_is_at_least_as_strong_as_its_members(name: str, norm: str) -> None:
    model, images, labels, ids = mostly_right(24)
    whole = AttackTester.of("autoattack", norm, version=f"{name},square" if name != "square"
                            else "square,apgd-ce").attack(model, images, labels, ids)
    alone = AttackTester.of(name, norm).attack(model, images, labels, ids)
    for all_of_them, one in zip(whole, alone):
        assert ((all_of_them.adv_pred != labels) | (one.adv_pred == labels)).all()
    broken = [int((result.adv_pred != labels).sum()) for result in (*alone, *whole)]
    assert max(broken) > 4  # four are wrong as they are


def test_a_member_is_an_attack_of_its_own_and_has_words() -> None:
    assert tuple(MEMBERS) == NAMES and set(NAMES) <= set(ATTACKS.names())
    for name in NAMES:
        settings = {"attack": "autoattack", "version": name, "norm": "linf", "seed": 0}
        assert "Auto-PGD" in attack_words(settings) or name[:3] in attack_words(settings).lower()


def test_a_broken_image_takes_no_more_passes() -> None:
    model, (images, _, ids) = OneByOne(small_net()), batch(8)
    wrong = (model(images).argmax(1) + 1) % 10
    model.passes = 0
    AttackTester.of("autoattack", "linf").attack(model, images, wrong, ids)
    assert model.passes == len(images)  # each looked at once, and in no attack


class Wavering(nn.Module):
    """A network whose logits grow from pass to pass, as those of a random one vary."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_net()
        self.passes = 0
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 10), in pass k those of the network times k."""
        self.passes += 1
        logits: Tensor = self.network(pixels) * self.passes
        return logits


def test_several_looks_give_the_means_of_loss_and_gradient() -> None:
    images, labels, ids = batch(3)
    model = Wavering()
    problem = Problem(model, images, labels, ids, model(images).detach(), REGISTRY.get("linf"),
                      8 / 255, 0)
    model.passes = 0
    mean = problem.look(images, margin, looks=3)
    model.passes = 0
    each = [problem.look(images, margin) for _ in range(3)]
    torch.testing.assert_close(mean.loss, sum(point.loss for point in each) / 3)
    torch.testing.assert_close(mean.gradient, sum(point.gradient for point in each) / 3)
    assert torch.equal(mean.logits, each[-1].logits)


def test_the_version_for_random_models_looks_twenty_times_a_step() -> None:
    model, images, labels, ids = mostly_right(4)
    counted = OneByOne(model.network)
    found = {}
    for version in ("apgd-ce,apgd-dlr", "rand"):
        counted.passes = 0
        result = AttackTester.of("autoattack", "linf", version=version).attack(
            counted, images, labels, ids)[0]
        found[version] = counted.passes, result
    (once, alone), (often, mean) = found.values()
    assert set(mean.broken_by) <= {None, "clean", "apgd-ce", "apgd-dlr"}
    assert (mean.adv_pred != labels).sum() >= (alone.adv_pred != labels).sum()
    assert often > 5 * once
    settings = {"attack": "autoattack", "version": "rand", "norm": "linf", "seed": 0}
    assert "means of 20 passes" in attack_words(settings)
    assert "from 3 starts" in attack_words({**settings, "attack": "apgd-ce", "restarts": 3})
