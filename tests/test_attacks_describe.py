"""An attack in words, from the settings in its records."""

from __future__ import annotations

import subprocess
import sys

import pytest
from attack_cases import require_torchattacks

from sanrobust.attacks.describe import attack_name, attack_strength, attack_words
from sanrobust.attacks.losses import LOSSES
from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.targets import TARGETS


def adapted(name: str, **options: str) -> dict[str, object]:
    require_torchattacks()
    return AttackSettings(attack=f"torchattacks:{name}", options=tuple(options.items())).as_dict()


def test_our_attack_is_told_with_its_targets_loss_and_start() -> None:
    settings = AttackSettings().as_dict()
    assert attack_name(settings) == "PGD" and attack_strength(settings) == ""
    assert attack_words(settings) == (
        "White-box PGD in the L-inf ball, targeted at a random wrong class of each image; descends "
        "the cross entropy toward the target from the clean image; scored on the last iterate; "
        "seed 0.")


@pytest.mark.parametrize(("given", "words"), [
    ({"targets": "fixed:7"}, "targeted at class 7;"),
    ({"loss": "dlr"}, "descends the difference-of-logits ratio"),
    ({"random_start": True}, "from a uniformly random point of the ball;"),
    ({"random_start": True, "restarts": 5}, "from 5 uniformly random points of the ball, of which"),
    ({"seed": 3}, "seed 3."),
])
def test_what_differs_from_the_default_is_in_the_words(given: dict[str, object],
                                                       words: str) -> None:
    assert words in attack_words(AttackSettings(**given).as_dict())  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", TARGETS.names())
@pytest.mark.parametrize("loss", LOSSES.names())
def test_two_settings_that_differ_are_told_apart(rule: str, loss: str) -> None:
    words = attack_words(AttackSettings(targets=rule, loss=loss).as_dict())
    others = {attack_words(AttackSettings(targets=other, loss=name).as_dict())
              for other in TARGETS.names() for name in LOSSES.names()
              if (other, name) != (rule, loss)}
    assert words not in others


def test_a_target_file_is_told_by_the_start_of_its_hash() -> None:
    settings = {"attack": "pgd", "targets": f"file:sha256:{'0123456789abcdef' * 4}", "seed": 0}
    assert "the classes of a file (SHA-256 0123456789ab);" in attack_words(settings)


@pytest.mark.parametrize(("name", "options", "strength"), [
    ("MIFGSM", {}, "linf ε = 8/255"), ("PGD", {"eps": "0.01"}, "linf ε = 2.55/255"),
    ("PGDL2", {"eps": "0.5"}, "l2 ε = 0.5"), ("APGD", {"norm": "L2", "eps": "3"}, "l2 ε = 3"),
    ("PIFGSM", {}, "linf ε = 16/255"), ("CW", {}, "no ε"), ("OnePixel", {}, "no ε"),
])
def test_the_strength_of_an_attack_of_torchattacks_is_its_norm_and_radius(
        name: str, options: dict[str, str], strength: str) -> None:
    settings = adapted(name, **options)
    assert attack_strength(settings) == strength
    assert attack_name(settings) == f"{name} (torchattacks)"


@pytest.mark.parametrize(("name", "targeted"), [
    ("MIFGSM", True), ("CW", True), ("AutoAttack", False), ("FAB", False), ("DeepFool", False)])
def test_only_an_attack_that_is_given_targets_is_called_targeted(name: str,
                                                                 targeted: bool) -> None:
    words = attack_words(adapted(name))
    assert ("targeted at a random wrong class" in words) == targeted
    assert ("; untargeted;" in words) != targeted
    assert "PGD" not in words


def test_the_words_of_an_attack_of_torchattacks_hold_version_radius_and_options() -> None:
    package = require_torchattacks()
    assert attack_words(adapted("APGD", norm="L2", eps="0.5")) == (
        f"APGD of torchattacks {package.__version__}; untargeted; l2 ε = 0.5; options eps = 0.5, "
        "norm = L2; run image by image; seed 0.")


def test_a_run_of_an_earlier_version_is_told_without_what_it_did_not_record() -> None:
    old: dict[str, object] = {"attack": "torchattacks:PGD", "targets": "random", "seed": 0,
                              "options": {"eps": "8/255"}}
    assert attack_strength(old) == ""
    assert attack_words(old) == ("PGD of torchattacks; options eps = 8/255; run image by image; "
                                 "seed 0.")


def test_an_attack_is_put_in_words_without_torch() -> None:
    check = ("import sys; from sanrobust.attacks import describe; "
             "describe.attack_words({'attack': 'pgd', 'targets': 'random'}); "
             "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'torchattacks')))")
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
