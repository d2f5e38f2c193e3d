"""What ``sanrobust check`` leaves out: images without numbers, too few of them, lines of a stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import sanrobust
from sanrobust.choices import DataConfig
from sanrobust.validity.catalog import LINES
from small_networks import PLAIN
from test_check import QUICK, sound


class Roughly(nn.Module):
    """A network that has no numbers for an image whose neighbours differ by more than so much."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.inner, self.most = sound(), most
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        Roughly.passes += 1
        rough = (pixels[..., 1:] - pixels[..., :-1]).abs().clamp(max=0.03).mean((1, 2, 3)) \
            > self.most
        logits: Tensor = self.inner(pixels)
        return torch.where(rough.unsqueeze(1), logits * 1e38 * 1e38, logits)

    passes = 0


def test_images_that_an_attack_loses_are_told_and_cost_no_half_of_every_batch(tmp_path: Path
                                                                              ) -> None:
    """Images are lost by attacks at the radius and beyond, and the attack's own lines say so."""
    counts = {}
    for most in (1.0, 0.0231):
        Roughly.passes = 0
        made = sanrobust.check(Roughly(most), preprocessing=PLAIN, out=tmp_path, **QUICK)
        counts[most] = Roughly.passes
    lines = made.table.set_index("line")
    assert "wrong" not in {*lines["verdict"]}
    for name in ("descent", "steps", "radius", "noise", "one step", "black box", "restarts",
                 "stored images"):
        assert lines["verdict"][name] == "look", name
        assert "have no finite numbers" in lines["seen"][name]
    assert lines["numbers"]["label order"]["classes_moved"] == 0
    # Where every attack is made in halves until each lost image stands alone it is 7 times.
    assert counts[0.0231] < 3 * counts[1.0]


@pytest.mark.parametrize("images", [1, 7])
def test_of_few_images_nothing_is_called_ok_or_wrong_that_counts_them(images: int, tmp_path: Path
                                                                      ) -> None:
    made = sanrobust.check("resnet26.digits", data=DataConfig(num_samples=images), out=tmp_path,
                           **QUICK)
    lines = made.table.set_index("line")
    assert "wrong" not in {*lines["verdict"]}
    for name, numbers in lines["numbers"].items():
        if "images" in numbers:
            assert lines["verdict"][name] == "look", name


class Stops(nn.Module):
    """Stops the process politely in a later pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sound()
        self.passes = 0
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        Stops.count += 1
        if Stops.count == 60:
            os.kill(os.getpid(), signal.SIGINT)
        return self.inner(pixels)  # type: ignore[no-any-return]

    count = 0


def test_what_was_judged_before_a_stop_is_kept(tmp_path: Path) -> None:
    Stops.count = 0
    with pytest.raises(KeyboardInterrupt, match=r"after 1 of 2 models and \d+ of 20 lines of "
                       "Stops: type the same command again; what was judged is in"):
        sanrobust.check([sound(), Stops()], preprocessing=PLAIN, out=tmp_path, **QUICK)
    rows = pd.read_csv(tmp_path / "check.csv")
    left = rows["seen"] == "because the check was stopped"
    assert rows["model"].tolist() == ["Small"] * len(LINES) + ["Stops"] * len(LINES)
    assert 0 < left.sum() < len(LINES) and {*rows["verdict"][left]} == {"not judged"}
    assert {*rows["model"][left]} == {"Stops"} and left.iloc[-1]


def test_a_stop_within_the_first_model_keeps_what_it_has(tmp_path: Path) -> None:
    Stops.count = 0
    with pytest.raises(KeyboardInterrupt, match=r"after 0 of 1 models and \d+ of 20 lines"):
        sanrobust.check([Stops()], preprocessing=PLAIN, out=tmp_path, **QUICK)
    rows = pd.read_csv(tmp_path / "check.csv")
    whole = sanrobust.check([sound()], preprocessing=PLAIN, out=tmp_path, **QUICK).table
    judged = rows["verdict"] != "not judged"
    assert rows["seen"][judged].tolist()[1:] == whole["seen"][judged].tolist()[1:]


def test_a_stop_before_anything_was_judged_leaves_the_earlier_table(tmp_path: Path) -> None:
    (tmp_path / "check.csv").write_text("earlier")
    Stops.count = 59
    with pytest.raises(KeyboardInterrupt, match="after 0 of 1 models: type the same"):
        sanrobust.check([Stops()], preprocessing=PLAIN, out=tmp_path, **QUICK)
    assert (tmp_path / "check.csv").read_text() == "earlier"
