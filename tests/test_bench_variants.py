"""The benchmark of every design of the paper against ResNet50 as it is evaluated."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from conftest import Command

from sanrobust.bench import models
from sanrobust.bench.settings import CONTENDERS, Settings, Shape
from sanrobust.cli.bench import _settings, bench

TINY = Shape(batch_size=2, img_size=32)
MODEL = "san10-pair.untrained-small"


def test_the_folded_resnet_is_what_an_evaluation_computes() -> None:
    made = models.contender("resnet50-folded", models.load(MODEL, TINY), TINY)
    evaluated = models.contender("ours", models.load("resnet50", TINY), TINY)
    assert made.computed_by == evaluated.computed_by and "folded" in made.computed_by
    assert torch.equal(made.calls["forward"](), evaluated.calls["forward"]())


def test_variants_are_the_designs_of_the_paper_against_a_resnet() -> None:
    settings = _typed("variants")
    assert settings.contenders == ("ours", "resnet50-folded")
    assert settings.parts == ("models", "memory")
    assert {"san10-pair", "san10-pair(relation=dot)", "san10-pair(mapping=L)",
            "san10-patch(relation=clique)", "san10-pair(transforms=1)", "san10-sasa",
            "sasa50"} <= set(settings.models)
    assert not {"resnet50", "san19-pair"} & set(settings.models)  # Table 3 has them
    chosen = _typed("variants", "attacks", "-m", "san10-scalar")
    assert (chosen.models, chosen.parts) == (("san10-scalar",), ("attacks", "models", "memory"))


def test_a_training_step_gives_all_weights_a_gradient() -> None:
    classifier = models.load(MODEL, TINY)
    for made in models.contenders(CONTENDERS, classifier, TINY, training=True):
        model = made.calls["training"].args[0]  # type: ignore[attr-defined]
        before = [each.clone() for each in model.buffers()]
        assert made.calls["training"]().isfinite()  # type: ignore[attr-defined]
        assert all(each.grad is not None for each in model.parameters())
        assert not all(map(torch.equal, before, model.buffers()))  # statistics of the batch
    assert all(each.grad is None for each in classifier.parameters())
    assert not classifier.training


def test_the_command_measures_time_and_memory_of_training(command: Command,
                                                          tmp_path: Path) -> None:
    done = command("bench", "training", "-m", MODEL, "--img-size", "32", "-b", "2",
                   "--repeats", "1", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    found = pd.read_csv(tmp_path / "bench.csv")
    assert set(found["step"]) == {"training"}
    assert set(found["contender"]) == {"ours", "checkpointed", "plain", "resnet26"}
    assert "Memory above" in done.output and "resnet26" in done.output


def _typed(*words: str) -> Settings:
    return _settings(bench.make_context("bench", list(words)).params)
