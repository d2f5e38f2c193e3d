"""The names and options of torchattacks' attacks, as users type them."""

from __future__ import annotations

import pytest
from attack_cases import RANDOM, require_torchattacks
from conftest import Command

from sanrobust.attacks.build import build_attack
from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.torchattacks_adapter import adapt, attack_names
from sanrobust.errors import ProtocolError, UnknownNameError, UsageError

require_torchattacks()


def test_the_wrappers_of_torchattacks_are_no_attacks() -> None:
    assert {"PGD", "FGSM", "AutoAttack"} <= set(attack_names())
    assert {"LGV", "MultiAttack"}.isdisjoint(attack_names())
    with pytest.raises(UnknownNameError):
        adapt("MultiAttack")


def test_a_mistyped_attack_is_refused_with_the_closest_one_and_the_legal_ones() -> None:
    with pytest.raises(UnknownNameError) as caught:
        adapt("MIFGMS")
    assert "did you mean MIFGSM?" in str(caught.value) and "APGD, " in str(caught.value)


@pytest.mark.parametrize(("words", "sentence"), [
    (("--attack", "torchattacks:PDG"), "did you mean PGD?"),
    (("--attack", "torchattacks:PGD", "-A", "epz=1"), "did you mean eps?"),
    (("--attack", "torchattacks:PGD", "-A", "eps=8"), "type -A eps=8/255"),
    (("--attack", "torchattacks:"), "type for example --attack torchattacks:MIFGSM"),
    (("--attack", "torchattacks:PGD", "--loss", "dlr"), "give that attack its own options with -A"),
])
def test_the_command_line_refuses_in_a_sentence(command: Command, words: tuple[str, ...],
                                                sentence: str) -> None:
    done = command("pgd", *words)
    assert done.exit_code == 2 and sentence in done.output


def test_an_unknown_attack_of_torchattacks_fails_before_any_image() -> None:
    settings = AttackSettings(attack="torchattacks:PGDD")
    with pytest.raises(UnknownNameError, match="did you mean PGD"):
        build_attack(settings, RANDOM)


def test_a_mistyped_option_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(UsageError) as caught:
        adapt("PGD", [("step", "3")])
    assert str(caught.value) == (
        "an option of PGD must be one that it takes, but it has no option 'step': "
        "did you mean steps? it takes eps, alpha, steps, random_start")


def test_an_attack_without_options_says_so() -> None:
    with pytest.raises(UsageError, match="it takes no options"):
        adapt("VANILA", [("eps", "0.1")])


@pytest.mark.parametrize(("name", "key", "text", "value"), [
    ("PGD", "eps", "8/255", 8 / 255), ("PGD", "eps", "0.25", 0.25), ("PGD", "eps", "1", 1),
    ("PGD", "steps", "7", 7), ("PGD", "random_start", "False", False), ("CW", "lr", "1e-3", 0.001),
    ("PGD", "random_start", "true", True), ("APGD", "norm", "L2", "L2"), ("CW", "kappa", "-1", -1),
    ("AutoAttack", "seed", "3", 3), ("Pixle", "x_dimensions", "1, 4", (1, 4)),
])
def test_an_option_is_read_as_the_kind_of_its_default(name: str, key: str, text: str,
                                                      value: object) -> None:
    read = adapt(name, [(key, text)]).options[key]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(("name", "key", "text"), [
    ("PGD", "steps", "many"), ("PGD", "steps", ""), ("PGD", "eps", "8/0"), ("PGD", "eps", "nan"),
    ("PGD", "eps", "1.2.3"), ("PGD", "eps", "8/255/2"), ("PGD", "random_start", "1"),
    ("APGD", "norm", ""), ("Pixle", "x_dimensions", "2,x"), ("PGD", "eps", "1e999"),
])
def test_an_option_of_another_kind_is_refused(name: str, key: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{key} of {name} must be of the kind of its default"):
        adapt(name, [(key, text)])


@pytest.mark.parametrize(("name", "key"), [("PGD", "eps"), ("PGD", "alpha"), ("APGD", "eps"),
                                           ("PIFGSM", "max_epsilon")])
def test_a_radius_in_units_of_one_255th_is_refused(name: str, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        adapt(name, [(key, "8")])
    assert f"type -A {key}=8/255 if you mean units of 1/255" in str(caught.value)


def test_a_radius_of_another_norm_may_exceed_one() -> None:
    assert adapt("PGDL2", [("eps", "8")]).eps is None
    assert adapt("APGD", [("eps", "8"), ("norm", "L2")]).eps is None


@pytest.mark.parametrize(("name", "options", "eps"), [
    ("PGD", {}, 8.0), ("PGD", {"eps": "7/255"}, 7.0), ("PIFGSM", {}, 16.0), ("CW", {}, None),
    ("APGD", {"eps": "4/255"}, 4.0), ("SPSA", {}, 76.5), ("PGD", {"eps": "0"}, 0.0)])
def test_the_radius_is_reported_in_units_of_one_255th(name: str, options: dict[str, str],
                                                      eps: float | None) -> None:
    assert adapt(name, list(options.items())).eps == eps


@pytest.mark.parametrize(("name", "key"), [("PGD", "steps"), ("Square", "n_queries"),
                                           ("Pixle", "restarts"), ("PIFGSM", "num_iter_set")])
def test_a_negative_count_is_refused(name: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"{key} of {name} must not be negative, but it is -1"):
        adapt(name, [(key, "-1")])


def test_a_value_that_the_constructor_refuses_becomes_a_sentence() -> None:
    with pytest.raises(ProtocolError, match=r"torchattacks:Pixle must come to an end, but it "
                                            r"raised ValueError"):
        adapt("Pixle", [("pixel_mapping", "sideways")])
