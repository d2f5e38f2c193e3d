"""The attack settings of a run: what they refuse and how they enter its specification."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attack_cases import require_torchattacks

from sanrobust.attacks.budget import TABLE10, Budget, BudgetParts
from sanrobust.attacks.settings import AttackSettings
from sanrobust.errors import DataError, SanrobustError, UnknownNameError, UsageError


def test_the_default_is_the_experiment_of_table_10() -> None:
    assert AttackSettings().as_dict() == {
        "attack": "pgd", "targets": "random", "seed": 0,
        "budgets": [{"eps": 8.0, "step": 4.0, "iters": 2}, {"eps": 8.0, "step": 2.0, "iters": 4}],
        "random_start": False, "restarts": 1, "loss": "ce",
    }


def test_no_budget_means_the_two_of_table_10() -> None:
    assert AttackSettings().budgets == TABLE10


@pytest.mark.parametrize(("given", "message"), [
    ({"attack": "pdg"}, "did you mean pgd?"),
    ({"attack": "torchattacks:"}, "an attack of torchattacks must be named"),
    ({"loss": "margn"}, "did you mean margin?"),
    ({"targets": "randm"}, "did you mean random?"),
    ({"restarts": 3}, "several restarts must start at random points"),
    ({"restarts": 0}, "restarts must be a whole number, 1 or more"),
    ({"seed": -1}, "seed must be a whole number, 0 or more"),
    ({"seed": 1.5}, "seed must be a whole number, 0 or more"),
    ({"budgets": (Budget(8, 4, 2), Budget(8, 4, 2))}, "the budgets of a run must differ"),
    ({"options": (("eps", "8/255"),)}, "attack options must belong to an attack of torchattacks"),
    ({"attack": "torchattacks:PGD", "options": (("eps", "0"), ("eps", "1"))}, "given 2 times"),
    ({"attack": "torchattacks:PGD", "budgets": TABLE10}, "budgets must come with our own"),
    ({"attack": "torchattacks:PGD", "loss": "dlr"}, "loss must come with our own attack"),
    ({"attack": "torchattacks:PGD", "random_start": True}, "random-start must come with our own"),
    ({"attack": "torchattacks:PGD", "restarts": 2}, "give that attack its own options with -A"),
    ({"attack": None}, "attack must be a name"),
    ({"targets": 3}, "targets must be a name"),
    ({"loss": 1.0}, "loss must be a name"),
    ({"seed": True}, "seed must be a whole number, 0 or more"),
    ({"random_start": 1}, "random_start must be True or False"),
    ({"budgets": 8}, "budgets must be a sequence of budgets"),
    ({"budgets": (8, 2, 4)}, "give for example budgets=[(8, 2, 4)]"),
])
def test_settings_that_cannot_be_meant_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        AttackSettings(**given)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(("given", "message"), [
    ({"attack": "autoattack", "loss": "dlr"}, "loss must come with an attack that reads it"),
    ({"attack": "autoattack", "targets": "random"}, "leave out targets"),
    ({"attack": "apgd-ce", "random_start": True}, "random-start must come with an attack that"),
    ({"attack": "apgd-ce", "version": "rand"}, "version must come with an attack that reads it"),
    ({"attack": "fgsm", "queries": 5}, "queries must come with an attack that reads it"),
    ({"attack": "fgsm", "budgets": BudgetParts("8", "2", None)}, "--step must go with an attack"),
    ({"attack": "square", "budgets": BudgetParts("8", None, 9)}, "--iters must go with an attack"),
    ({"norm": "l2"}, "--eps and --step and --iters are missing"),
    ({"budgets": BudgetParts("4,8", None, None)}, "--step and --iters are missing"),
    ({"norm": "l1"}, "there is no norm named 'l1'"),
    ({"attack": "autoattack", "version": "standart"}, "did you mean standard?"),
    ({"attack": "autoattack", "version": "square,square"}, "'square' was given 2 times"),
    ({"attack": "apgd-ce", "budgets": BudgetParts("4,,8", None, None)}, "'' was seen"),
    ({"attack": "apgd-ce", "budgets": BudgetParts("4,4.0", None, None)}, "must differ"),
    ({"attack": "apgd-ce", "budgets": BudgetParts("0.5", None, None)}, "in units of 1/255"),
    ({"attack": "fab", "norm": "l2", "budgets": BudgetParts("x", None, None)},
     "--eps must be a length in the pixel range"),
    ({"attack": "mifgsm", "momentum": -1}, "momentum must be a number from 0 to 10"),
    ({"attack": "autoattack", "options": {"eps": "1"}}, "the attack is autoattack and eps was"),
])
def test_what_an_attack_does_not_read_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(SanrobustError) as caught:
        AttackSettings(**given)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(("given", "budgets"), [
    ({"attack": "fgsm"}, [(8, 8, 1)]),
    ({"attack": "bim"}, [(8, 1, 10)]),
    ({"attack": "mifgsm", "norm": "l2"}, [(0.5, 0.05, 10)]),
    ({"attack": "autoattack"}, [(8, None, 100)]),
    ({"attack": "square", "norm": "l2"}, [(0.5, None, None)]),
    ({"attack": "apgd-t", "budgets": BudgetParts("1,2/255", None, 9)},
     [(1, None, 9), (2, None, 9)]),
    ({"attack": "fab-t", "norm": "l2", "budgets": [0.25, 1]}, [(0.25, None, 100), (1, None, 100)]),
    ({"budgets": BudgetParts("4,8", "2", 4)}, [(4, 2, 4), (8, 2, 4)]),
])
def test_an_attack_completes_its_budgets(given: dict[str, object],
                                         budgets: list[tuple[float, ...]]) -> None:
    settings = AttackSettings(**given)  # type: ignore[arg-type]
    assert settings.budgets == tuple(Budget(*each) for each in budgets)  # type: ignore[arg-type]
    assert replace(settings, seed=1).budgets == settings.budgets


def test_a_specification_says_what_an_attack_reads_and_no_more() -> None:
    assert AttackSettings(attack="autoattack", seed=3).as_dict() == {
        "attack": "autoattack", "seed": 3, "version": "standard", "queries": 5000,
        "budgets": [{"eps": 8.0, "step": None, "iters": 100}]}
    assert AttackSettings(attack="fab", norm="l2", restarts=2).as_dict() == {
        "attack": "fab", "seed": 0, "norm": "l2", "restarts": 2,
        "budgets": [{"eps": 0.5, "step": None, "iters": 100}]}
    assert AttackSettings(attack="mifgsm").as_dict() == {
        "attack": "mifgsm", "seed": 0, "targets": "none", "loss": "ce", "momentum": 1.0,
        "random_start": False, "restarts": 1,
        "budgets": [{"eps": 8.0, "step": 0.8, "iters": 10}]}


def test_budgets_are_taken_as_people_write_them() -> None:
    assert AttackSettings(budgets=[(8, 2, 4)]).budgets == (Budget(8, 2, 4),)  # type: ignore
    assert AttackSettings(budgets=Budget(8, 2, 4)).budgets == (Budget(8, 2, 4),)  # type: ignore


def test_numbers_of_numpy_make_the_same_settings() -> None:
    settings = AttackSettings(seed=np.int64(3), random_start=True,
                              restarts=np.int32(2))  # type: ignore[arg-type]
    assert json.dumps(settings.as_dict()) == json.dumps(
        AttackSettings(seed=3, random_start=True, restarts=2).as_dict())


def test_an_attack_of_torchattacks_enters_with_its_norm_radius_and_version() -> None:
    package = require_torchattacks()
    settings = AttackSettings(attack="torchattacks:APGD", options=(("eps", "0.5"), ("norm", "L2")))
    assert settings.as_dict() == {
        "attack": "torchattacks:APGD", "targets": "random", "seed": 0,
        "options": {"eps": "0.5", "norm": "L2"}, "norm": "l2", "radius": 0.5, "targeted": False,
        "version": package.__version__}


def test_a_mistyped_name_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        AttackSettings(attack="fgms")


def test_the_order_in_which_options_are_typed_does_not_matter() -> None:
    one = AttackSettings(attack="torchattacks:PGD", options=(("eps", "8/255"), ("alpha", "0.1")))
    two = AttackSettings(attack="torchattacks:PGD", options=(("alpha", "0.1"), ("eps", "8/255")))
    assert one == two
    assert one.options == (("alpha", "0.1"), ("eps", "8/255"))


def test_a_target_file_enters_the_specification_by_its_hash_not_its_path(tmp_path: Path) -> None:
    content = b"image,target\na,1\n"
    for name in ("one.csv", "two.csv"):
        (tmp_path / name).write_bytes(content)
    shown = [AttackSettings(targets=f"file:{tmp_path / name}").as_dict()
             for name in ("one.csv", "two.csv")]
    assert shown[0] == shown[1]
    assert shown[0]["targets"] == f"file:sha256:{hashlib.sha256(content).hexdigest()}"


def test_the_specification_can_use_the_rule_that_the_run_loaded(tmp_path: Path) -> None:
    path = tmp_path / "targets.csv"
    path.write_text("image,target\na,1\n")
    settings = AttackSettings(targets=f"file:{path}")
    rule = settings.rule()
    path.unlink()
    assert settings.as_dict(rule)["targets"] == rule.identity()
    with pytest.raises(DataError, match="cannot be opened"):
        settings.as_dict()


def test_every_refusal_is_a_usage_error_of_exit_code_2() -> None:
    with pytest.raises(SanrobustError) as caught:
        AttackSettings(restarts=2)
    assert caught.value.exit_code == 2
