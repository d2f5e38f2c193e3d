"""``sanrobust rotate``: the paper's Table 9."""

from __future__ import annotations

from typing import Any

import click

from sanrobust.cli.group import Command
from sanrobust.cli.options import (data_options, model_options, run_options, take_data, take_how,
                                   take_models)


@click.command(cls=Command)
@model_options
@data_options
@run_options
def rotate(**values: Any) -> None:
    """Zero-shot rotation and flip (the paper's Table 9).

    Measures top-1 and top-5 on upright images, on the three rotations by 90 degrees and on
    images flipped upside down, and writes OUT/rotation.csv, .tex and .md.
    """
    models, data, how = take_models(values), take_data(values), take_how(values)
    from sanrobust.cli.report import show
    from sanrobust.run import run_rotation
    show(run_rotation, models, data, how)
