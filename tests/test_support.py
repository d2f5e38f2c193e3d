"""What computes each operator is what is called, whatever is told of it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from conftest import Command
from sanrobust import support
from sanrobust.kernels.backends import use_backend
from sanrobust.zoo.build import build
from sanrobust.zoo.folded import refusal
from sanrobust.zoo.forms import small_config

CPU = torch.device("cpu")
BOTH = (torch.float32, torch.float64)


def words(*models: str) -> dict[tuple[str, str, str], str]:
    return {(row.model, row.dtype, row.step): row.by
            for row in support.supported(models, [CPU], BOTH)}


def test_each_way_of_computing_is_seen() -> None:
    found = words("san10-pair", "san10-pair(relation=dot)", "san10-patch(mapping=L)",
                  "san10-patch(relation=star)", "san10-patch(transforms=2)")
    assert found["san10-pair", "float32", "attack"] == support.NETWORK
    assert found["san10-pair", "float64", "attack"] == support.FUSED
    assert found["san10-pair(relation=dot)", "float64", "attack"] == support.FUSED
    assert found["san10-patch(mapping=L)", "float32", "attack"] == support.ELEMENTARY
    assert {by for (model, _, step), by in found.items()
            if step == support.TRAINING and model != "san10-pair"} == {support.ELEMENTARY}
    (half,) = support.supported(["san10-pair"], [CPU], [torch.float16], [support.ATTACK])
    assert half.by == support.TORCH


def test_a_backend_that_is_asked_for_is_seen() -> None:
    with use_backend("reference"):
        assert set(words("san10-pair", "san10-sasa").values()) == {support.TORCH}


def test_every_operator_has_one_network() -> None:
    designs = Counter(str(getattr(small_config(name), "design")) for name in support.networks())
    twice = [design for design, count in designs.items() if count > 1]
    assert len(designs) > 15
    assert all("attention='sasa'" in design for design in twice)  # of networks of two papers
    whole = {name for name in support.networks()
             if refusal(build(small_config(name)).eval(), CPU) is None}
    assert whole >= {"san10-pair", "san10-patch", "san10-pair(mapping=LRLRL)", "san10-scalar",
                     "san10-patch(mapping=LRLRL)"}


def test_attention_is_fused_in_training() -> None:
    found = words("san10-scalar", "san10-sasa(content=no)", "sasa26", "san10-pair", "san10-patch",
                  "san10-pair(transforms=1)")
    assert {by for (*_, step), by in found.items() if step == support.TRAINING} == {support.FUSED}


@pytest.mark.parametrize("device", ["cpu"])
def test_the_command_prints_them_all(command: Command, monkeypatch: pytest.MonkeyPatch,
                                     device: str) -> None:
    monkeypatch.setattr(support, "networks", lambda: ("san10-pair", "sasa26"))
    done = command("info", "--operators")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.output.splitlines() if line.strip()]
    assert lines[0] == ["attack", "step,", device, "float32", "float64", "float16", "bfloat16"]
    assert lines[1][:3] == ["san10-pair", "network", "fused"]
    assert lines[2] == ["sasa26", "fused", "fused", "torch", "torch"]
    assert {line[0] for line in lines[-len(support.MEANINGS):]} == set(support.MEANINGS)
