"""The attack settings of a run: what they refuse and how they enter its specification."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from attack_cases import require_torchattacks

from sanrobust.attacks.budget import TABLE10, Budget
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
        AttackSettings(attack="fgsm")


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
