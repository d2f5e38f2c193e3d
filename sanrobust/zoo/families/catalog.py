"""Every family of models: ours, and those that installed packages add.

A package adds one by an entry point of the group ``sanrobust.models`` that names a `Family`. One
that cannot be had is left out, and `left_out` says why.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sanrobust.plugins import Plugins
from sanrobust.zoo.families.base import Architecture, Family
from sanrobust.zoo.families.resnet import RESNET
from sanrobust.zoo.families.san import SAN
from sanrobust.zoo.families.sasa import SASA_RESNET

ENTRIES: tuple[Family[Any], ...] = (
    RESNET,
    SAN,
    SASA_RESNET,
)
GROUP = "sanrobust.models"


@cache
def _plugins() -> Plugins[Family[Any]]:
    return Plugins.load(GROUP, Family, check=Family.require_sound, taken=[
        name for each in ENTRIES for name in (each.name, *each.networks)])


def families() -> tuple[Family[Any], ...]:
    """Return all families, ours first."""
    return (*ENTRIES, *_plugins().values)


def networks() -> dict[str, Family[Any]]:
    """Return the family of every network that can be named, by its name."""
    return {network: family for family in families() for network in family.networks}


def family_of(config: Architecture) -> Family[Any]:
    """Return the family of a configuration."""
    return next(each for each in families() if each.config is type(config))


def left_out() -> tuple[str, ...]:
    """Say of each family of another package that cannot be had why not."""
    return _plugins().problems
