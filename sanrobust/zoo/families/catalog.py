"""Every family of models: ours, and those that installed packages add.

A package adds one by an entry point of the group ``sanrobust.models`` that names a `Family`.
"""

from __future__ import annotations

from typing import Any

from sanrobust.registry import Registry
from sanrobust.zoo.families.base import Architecture, Family
from sanrobust.zoo.families.resnet import RESNET
from sanrobust.zoo.families.san import SAN
from sanrobust.zoo.families.sasa import SASA_RESNET

ENTRIES: tuple[Family[Any], ...] = (
    RESNET,
    SAN,
    SASA_RESNET,
)

FAMILIES: Registry[Family[Any]] = Registry(
    "family of models", listing="sanrobust zoo list", group="sanrobust.models", of=Family,
    names=lambda family: (family.name, *family.networks), check=Family.require_sound)
for _entry in ENTRIES:
    FAMILIES.add(_entry.name, _entry)


def families() -> tuple[Family[Any], ...]:
    """Return all families, ours first."""
    return tuple(FAMILIES)


def networks() -> dict[str, Family[Any]]:
    """Return the family of every network that can be named, by its name."""
    return {network: family for family in families() for network in family.networks}


def family_of(config: Architecture) -> Family[Any]:
    """Return the family of a configuration."""
    return next(each for each in families() if each.config is type(config))
