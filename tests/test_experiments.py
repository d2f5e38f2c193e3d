"""The two experiments as hooks of the loop: their rows, in the order and form of the records."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from grey_models import CLASSES, Blind, Grey, level
from sanrobust.attacks.budget import Budget
from sanrobust.attacks.settings import AttackSettings
from sanrobust.data.loader import Failure
from sanrobust.data.views import VIEWS
from sanrobust.evaluate import Experiment
from sanrobust.experiments import Rotation, TargetedPgd
from sanrobust.records import column_names

IDS = ("z", "a", "m")
LABELS = torch.tensor([0, 3, 5])
PIXELS = torch.stack([torch.full((3, 8, 8), level(int(label)) / 255) for label in LABELS])
BUDGETS = (Budget(8, 4, 2), Budget(4, 1, 1))


def pgd(**settings: object) -> TargetedPgd:
    return TargetedPgd(AttackSettings(budgets=BUDGETS, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("experiment", [Rotation(), pgd()], ids=lambda each: each.name)
def test_every_column_of_the_records_is_filled_for_every_row(experiment: Experiment) -> None:
    columns = experiment.measure(Grey().eval(), PIXELS, LABELS, IDS)
    assert set(columns) == set(column_names(experiment.name))
    per_image = len(VIEWS) if experiment.name == "rotate" else len(BUDGETS)
    assert {len(values) for values in columns.values()} == {len(IDS) * per_image}
    assert columns["image"] == [image for image in IDS for _ in range(per_image)]
    assert columns["error"] == [None] * len(columns["image"])


@pytest.mark.parametrize("experiment", [Rotation(), pgd()], ids=lambda each: each.name)
def test_a_failed_image_has_all_its_rows_with_the_reason(experiment: Experiment) -> None:
    columns = experiment.failed(Failure("x", 4, "damaged"))
    measured = experiment.measure(Grey().eval(), PIXELS[:1], LABELS[:1], IDS[:1])
    assert set(columns) == set(measured)
    assert columns["error"] == ["damaged"] * len(measured["image"])
    key = "view" if experiment.name == "rotate" else "step"
    assert columns[key] == measured[key] and columns["label"] == [4] * len(columns[key])


def test_a_perfect_model_is_right_in_every_view() -> None:
    columns = Rotation().measure(Grey().eval(), PIXELS, LABELS, IDS)
    assert columns["pred"] == columns["label"] and columns["view"] == list(VIEWS) * len(IDS)
    assert all(columns["top5_hit"])


def test_the_share_of_zero_gradients_is_recorded_for_every_step() -> None:
    seeing, blind = (pgd().measure(model.eval(), PIXELS, LABELS, IDS)
                     for model in (Grey(), Blind()))
    steps = sum(budget.iters for _ in IDS for budget in BUDGETS)
    seen, unseen = (np.concatenate([np.asarray(parts) for parts in columns["zero_gradient"]])
                    for columns in (seeing, blind))
    assert len(seen) == len(unseen) == steps
    assert (unseen == 1).all() and (seen < 1).all()


def test_an_image_of_the_fixed_target_is_excluded_and_the_others_keep_their_order() -> None:
    columns = pgd(targets="fixed:3").measure(Grey().eval(), PIXELS, LABELS, IDS)
    assert columns["image"] == ["z", "z", "a", "a", "m", "m"]
    reasons = columns["error"]
    assert reasons[:2] == reasons[4:] == [None, None] and str(reasons[2]).startswith("excluded: ")
    assert columns["target"] == [3, 3, None, None, 3, 3]


def test_settings_name_what_decides_the_numbers() -> None:
    assert Rotation().settings() == {"views": list(VIEWS)}
    settings = pgd(seed=3, loss="margin").settings()
    assert settings["seed"] == 3 and settings["loss"] == "margin"
    assert settings["budgets"] == [budget.as_dict() for budget in BUDGETS]


def test_classes_are_enough_for_the_targets() -> None:
    assert CLASSES > int(LABELS.max())
