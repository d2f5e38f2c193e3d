"""``sanrobust check``: whether the numbers of an attack on a model can be believed."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from typing import Any

import click

from sanrobust.choices import RunConfig
from sanrobust.cli.group import Command, typed
from sanrobust.cli.options import (compute_options, data_options, model_options, take_data,
                                   take_models)
from sanrobust.options import settings_options, take_settings
from sanrobust.validity.settings import CheckSettings


@click.command(cls=Command)
@model_options
@data_options
@compute_options
@click.option("-v", "--verbose", is_flag=True, help="Print the lines that are ok too.")
@click.option("--list", "listed", is_flag=True, help="Say what each line asks, and check nothing.")
def check(verbose: bool, listed: bool, **values: Any) -> None:
    """Judge whether an attack's numbers on models can be believed: a verdict per line.

    ok, look (think about it), wrong (do not believe the numbers) or not judged (it rests on a line
    that is wrong), each with the numbers behind it and what to do next. Lines that are ok are
    printed with --verbose alone; the files have every line. The exit code is 1 where a line is
    wrong. 64 images are attacked, and the accuracy counted on 512, unless --num-samples
    says how many. Writes OUT/check.csv, .md and .json, which replace those of an earlier check.
    """
    if listed:
        _say_lines()
        return
    settings = CheckSettings(**take_settings(CheckSettings, values))
    models, data = take_models(values), take_data(values)
    how = RunConfig(**values, command=typed())
    from sanrobust import allocator
    from sanrobust.cli.progress import progress
    from sanrobust.cli.report import print_summary, say
    from sanrobust.progress import Reporter
    from sanrobust.validity.run import check_models
    allocator.tune()
    made = check_models(settings, models, data, how, Reporter(say=say, progress=progress()))
    print_summary(replace(made, whole=verbose))


def _say_lines() -> None:
    from sanrobust.validity.catalog import LINES
    for line in LINES:
        click.echo(f"{line.name} ({line.source})")
        click.echo(textwrap.fill(line.explains, 96, initial_indent="    ",
                                 subsequent_indent="    "))
        if line.rests_on:
            click.echo(textwrap.fill(f"rests on {', '.join(line.rests_on)}", 96,
                                     initial_indent="    ", subsequent_indent="    "))


check.params = [*settings_options(CheckSettings), *check.params]
