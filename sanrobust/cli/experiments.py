"""The command of each experiment, made of what the experiment says of itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import click

from sanrobust.cli.group import Command
from sanrobust.cli.options import (data_options, folder_options, model_options, run_options,
                                   save_option, take_data, take_folders, take_how, take_models)
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.options import settings_options, take_settings


def commands() -> Iterator[click.Command]:
    """Yield the commands of all experiments."""
    return (command_of(each) for each in EXPERIMENTS)


def command_of(experiment: Experiment) -> click.Command:
    """Return the command that measures an experiment and prints its table."""
    of_folders = experiment.opens is not None

    @click.command(experiment.name, cls=Command, help=inspect.cleandoc(experiment.help))
    @model_options
    @(folder_options if of_folders else data_options)
    @(save_option if experiment.makes_images else _no_more)
    @run_options
    def command(**values: Any) -> None:
        models, how, processes = take_models(values), take_how(values), values.pop("processes")
        data = take_folders(values) if of_folders else (take_data(values),)
        settings = experiment.settings(**take_settings(experiment.settings, values))
        from sanrobust.cli.report import show
        show(experiment, settings, models, data, how, processes)

    command.params = [*settings_options(experiment.settings), *command.params]
    return command


def _no_more(command: Any) -> Any:
    return command
