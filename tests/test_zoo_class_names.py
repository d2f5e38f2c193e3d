"""Class names travel with weights, and are held to what training could have written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sanrobust.errors import CheckpointError, UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo.catalog import SMALL_PREPROCESSING, find
from sanrobust.zoo.checkpoint import save_safetensors
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.entry import Entry, Stored
from sanrobust.zoo.facts import entry_from_facts, facts
from sanrobust.zoo.forms import small_config
from sanrobust.zoo.resolve import create_model

NOWHERE = Stored("", "")
ENTRY = Entry("resnet26", "t", small_config("resnet26", 3), NOWHERE,
              preprocessing=SMALL_PREPROCESSING, data="x", classes=("caf\u00e9", "b c", "7"))


def _written(entry: Entry) -> dict[str, object]:
    values: dict[str, object] = json.loads(json.dumps(facts(entry)))
    return values


def test_class_names_survive_being_written() -> None:
    assert entry_from_facts(_written(ENTRY), tag="t", weights=NOWHERE) == ENTRY


def test_unknown_class_names_are_not_written() -> None:
    nameless = replace(ENTRY, classes=None)
    assert "classes" not in _written(nameless)
    assert entry_from_facts(_written(nameless), tag="t", weights=NOWHERE).classes is None


@pytest.mark.parametrize("classes", [
    [], ["a", "b"], ["a", "b", "c", "d"], ["a", "b", "b"], ["a", "b", ""], ["a", "b", 3],
    ["a", "b", None], "abc", {"a": 0, "b": 1, "c": 2}, 3, ["a", "b", "\x1b[2J"], ["a", "b", "c\n"],
    ["a", "b", "\x9b2J"], ["a", "b", "\ud800"], ["a", "b", "c" * 300], [["a"], "b", "c"]])
def test_names_that_training_would_not_write_are_refused(classes: object) -> None:
    with pytest.raises(CheckpointError, match="facts stored with weights") as caught:
        entry_from_facts({**_written(ENTRY), "classes": classes}, tag="t", weights=NOWHERE)
    assert str(caught.value).isprintable()


def test_the_digits_models_know_their_classes_and_untrained_ones_none() -> None:
    assert find("san10-pair.digits").classes == tuple("0123456789")
    assert find("san10-pair.untrained-small").classes is None
    assert create_model("resnet26.digits").classes == tuple("0123456789")


def test_other_weights_under_a_digits_name_have_no_names_of_digits(tmp_path: Path) -> None:
    state = create_model("resnet26.untrained-small").network.state_dict()
    save_safetensors(state, tmp_path / "w.safetensors")
    assert create_model("resnet26.digits", checkpoint=tmp_path / "w.safetensors").classes is None
    ten = tuple("abcdefghij")
    other = replace(ENTRY, architecture=small_config("resnet26", 10), classes=ten)
    save_safetensors(state, tmp_path / "w.safetensors", {"sanrobust": json.dumps(facts(other))})
    assert create_model("resnet26.digits", checkpoint=tmp_path / "w.safetensors").classes == ten


class _Flat(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))


def test_a_classifier_takes_one_different_name_for_each_logit() -> None:
    def made(classes: list[str] | None) -> Classifier:
        return Classifier(_Flat(), name="m", preprocessing=Preprocessing(img_size=8),
                          classes=classes)

    assert made(["a", "b", "c"]).classes == ("a", "b", "c") and made(None).classes is None
    assert made(["a", "b", "c"]).computed_by(_Flat()).classes == ("a", "b", "c")
    for names in (["a", "b"], ["a", "b", "b"], []):
        with pytest.raises(UsageError, match="must be 3 different names"):
            made(names)
