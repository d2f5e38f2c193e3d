"""Models compared on several sets of images: each set by itself, and who is left out is told."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import Command
from sanrobust.comparing import compare

A, B = "resnet26.digits", "san10-pair.digits"
OTHERS = "resnet38.digits", "san10-patch.digits"


def measure(command: Command, out: Path, images: int, models: tuple[str, str]) -> None:
    done = command("rotate", "-m", models[0], "-m", models[1], "--num-samples", images,
                   "--out", out)
    assert done.exit_code == 0, done.output


def test_image_sets_of_one_name_are_told_apart(command: Command, tmp_path: Path) -> None:
    measure(command, tmp_path, 10, (A, B))
    assert {row.data for row in compare(tmp_path, "rotate", [A, B]).rows} == {"digits"}
    measure(command, tmp_path, 12, (A, B))
    sets = {row.data for row in compare(tmp_path, "rotate", [A, B]).rows}
    assert len(sets) == 2 and all(re.fullmatch(r"digits \([0-9a-f]{12}\)", name) for name in sets)


def test_runs_that_were_not_measured_like_the_first_model_say_so(
        command: Command, tmp_path: Path) -> None:
    measure(command, tmp_path, 10, (A, B))
    measure(command, tmp_path, 12, OTHERS)
    told = [each for each in compare(tmp_path, "rotate").told if "takes no part" in each]
    assert len(told) == 2 and all("--all-pairs compares it" in each for each in told)
    every = compare(tmp_path, "rotate", all_pairs=True).told
    assert every and not any("takes no part" in each for each in every)
