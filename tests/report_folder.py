"""A folder with every experiment on a few digits, as the tests of pages take it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from click.testing import CliRunner

from sanrobust.paper import DISPLAY_NAMES

NINE = [f"{name}.digits" for name in DISPLAY_NAMES]
"""The paper's networks."""


def typed(*words: object) -> None:
    """Run a command, which must end well."""
    from sanrobust.cli import main
    result = CliRunner().invoke(main, [*map(str, words)])
    assert result.exit_code == 0, result.output


def measure(out: Path, models: Sequence[str], images: int) -> Path:
    """Measure models under every experiment and a part of AutoAttack, on so many digits."""
    few = ("--num-samples", images, "--out", out)
    few = (*(word for model in models for word in ("-m", model)), *few)
    typed("rotate", *few)
    typed("pgd", *few, "--save-adversarial")
    typed("spatial", *few, "--grid", "3x3x3", "--angles", "-90,0,90")
    typed("accuracy", *few)
    typed("corrupt", *few, "--corruptions", "contrast,brightness", "--severities", "1,3,5")
    typed("pgd", *few, "--attack", "autoattack", "--version", "apgd-ce", "--iters", 3,
          "--eps", "2,4,8", "--save-adversarial")
    return out
