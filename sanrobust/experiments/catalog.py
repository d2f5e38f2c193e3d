"""Every experiment by its name: ours, and those that installed packages add.

A package adds one by an entry point of the group ``sanrobust.experiments`` that names an
`Experiment`. One that cannot be loaded is left out, and `left_out` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sanrobust.errors import UnknownNameError
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.corrupt import CORRUPT
from sanrobust.experiments.pgd import PGD
from sanrobust.experiments.rotation import ROTATION
from sanrobust.plugins import Plugins
from sanrobust.registry import unknown_name

ENTRIES: tuple[Experiment, ...] = (
    ROTATION,
    PGD,
    CORRUPT,
)
GROUP = "sanrobust.experiments"
COMMANDS = ("table", "train", "study", "bench", "complexity", "show", "zoo", "info")
"""Commands that are no experiments; no experiment may be called so."""


@cache
def _plugins() -> Plugins[Experiment]:
    return Plugins.load(GROUP, Experiment, taken=[
        *COMMANDS, *(name for each in ENTRIES for name in (each.name, each.files))])


def experiments() -> Mapping[str, Experiment]:
    """Return all experiments by name, ours first."""
    return {each.name: each for each in (*ENTRIES, *_plugins().values)}


def left_out() -> tuple[str, ...]:
    """Say of each experiment of another package that cannot be had why not."""
    return _plugins().problems


def find(name: str) -> Experiment:
    """Return the experiment of that name; raises UnknownNameError with the closest match."""
    found = experiments().get(name)
    if found is None:
        raise unknown_experiment(name)
    return found


def unknown_experiment(name: str) -> UnknownNameError:
    """Build the error for an experiment that is not there."""
    return unknown_name("experiment", name, experiments(), listing="sanrobust --help")
