"""The benchmark of every design of the paper against ResNet50 as it is evaluated."""

from __future__ import annotations

import torch

from sanrobust.bench import models
from sanrobust.bench.settings import Settings, Shape
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


def _typed(*words: str) -> Settings:
    return _settings(bench.make_context("bench", list(words)).params)
