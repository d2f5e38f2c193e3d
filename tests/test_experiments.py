"""Every experiment as a hook of the loop: its rows, in the order and form of the records."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from grey_models import CLASSES, Blind, Grey, level
from sanrobust.attacks.budget import Budget
from sanrobust.attacks.settings import AttackSettings
from sanrobust.data.loader import Batch, FailedImage
from sanrobust.data.pixels import encode
from sanrobust.data.saved import Source, stem
from sanrobust.data.views import VIEWS
from sanrobust.evaluate import in_order
from sanrobust.experiments.base import Columns, Experiment, Measurement
from sanrobust.experiments.catalog import ENTRIES
from sanrobust.experiments.pgd import PgdMeasurement
from sanrobust.experiments.rotation import ROTATION
from sanrobust.preprocessing import Preprocessing

IDS = ("z", "a", "m")
LABELS = torch.tensor([0, 3, 5])
PIXELS = torch.stack([torch.full((3, 8, 8), level(int(label)) / 255) for label in LABELS])
BATCH = Batch(IDS, LABELS, PIXELS)
BUDGETS = (Budget(8, 4, 2), Budget(4, 1, 1))


def measurement(experiment: Experiment) -> Measurement:
    of = experiment.prepare(experiment.settings())
    if experiment.opens is not None:
        with tempfile.TemporaryDirectory() as folder:
            of.check(experiment.opens(saved(Path(folder))), num_classes=CLASSES,
                     preprocessing=Preprocessing(img_size=8))
    return of


def saved(folder: Path) -> Path:
    """Write the images of the batch as a run saves them that knew their label and no more."""
    lines = ["file,image,label,target,sha256"]
    for image, label, pixels in zip(IDS, LABELS.tolist(), PIXELS, strict=True):
        suffix, content = encode(pixels)
        name = f"{stem(image, 1)}.{suffix}"
        (folder / name).write_bytes(content)
        lines.append(f"{name},{image},{label},1,{hashlib.sha256(content).hexdigest()}")
    text = "\n".join(lines) + "\n"
    (folder / "index.csv").write_text(text)
    spec = dict.fromkeys(("experiment", "model", "weights", "data", "data_digest"), "unknown")
    Source({**spec, "preprocessing": {"img_size": 8}, "images": 3, "settings": {}}, CLASSES, None,
           hashlib.sha256(text.encode()).hexdigest()).write(folder)
    return folder


def pgd(**settings: object) -> PgdMeasurement:
    return PgdMeasurement(AttackSettings(budgets=BUDGETS, **settings))  # type: ignore[arg-type]


def measured(of: Measurement, model: Grey, batch: Batch = BATCH) -> Columns:
    return in_order(of.measure(model.eval(), batch), batch.ids)


every_experiment = pytest.mark.parametrize("experiment", ENTRIES, ids=lambda each: each.name)


@every_experiment
def test_every_column_of_the_records_is_filled_for_every_row(experiment: Experiment) -> None:
    columns = measured(measurement(experiment), Grey())
    assert set(columns) == set(experiment.records.columns)
    rows, = {len(values) for values in columns.values()}
    assert rows % len(IDS) == 0
    assert columns["image"] == [image for image in IDS for _ in range(rows // len(IDS))]
    assert columns["error"] == [None] * len(columns["image"])


@every_experiment
def test_a_failed_image_has_all_its_rows_with_the_reason(experiment: Experiment) -> None:
    of = measurement(experiment)
    failed, sound = of.failed(FailedImage("z", 0, "damaged")), measured(of, Grey(), BATCH.part([0]))
    assert set(failed) == set(sound)
    assert failed["error"] == ["damaged"] * len(sound["image"])
    for key in (*experiment.records.key, "label"):
        assert list(failed[key]) == list(sound[key])


def test_a_perfect_model_is_right_in_every_view() -> None:
    columns = measured(measurement(ROTATION), Grey())
    assert columns["pred"] == columns["label"] and columns["view"] == list(VIEWS) * len(IDS)
    assert all(columns["top5_hit"])


def test_the_share_of_zero_gradients_is_recorded_for_every_step() -> None:
    seeing, blind = (measured(pgd(), model) for model in (Grey(), Blind()))
    steps = sum(budget.iters for _ in IDS for budget in BUDGETS)
    seen, unseen = (np.concatenate([np.asarray(parts) for parts in columns["zero_gradient"]])
                    for columns in (seeing, blind))
    assert len(seen) == len(unseen) == steps
    assert (unseen == 1).all() and (seen < 1).all()


def test_an_image_of_the_fixed_target_is_excluded_and_the_others_keep_their_order() -> None:
    columns = measured(pgd(targets="fixed:3"), Grey())
    assert columns["image"] == ["z", "z", "a", "a", "m", "m"]
    reasons = columns["error"]
    assert reasons[:2] == reasons[4:] == [None, None] and str(reasons[2]).startswith("excluded: ")
    assert columns["target"] == [3, 3, None, None, 3, 3]


def test_settings_name_what_decides_the_numbers() -> None:
    assert measurement(ROTATION).spec() == {"views": list(VIEWS)}
    settings = pgd(seed=3, loss="margin").spec()
    assert settings["seed"] == 3 and settings["loss"] == "margin"
    assert settings["budgets"] == [budget.as_dict() for budget in BUDGETS]


def test_classes_are_enough_for_the_targets() -> None:
    assert CLASSES > int(LABELS.max())
