"""Every family of models: ours, and those that installed packages add.

A package adds one by an entry point of the group ``sanrobust.models`` that names a `Family`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sanrobust.errors import first_line
from sanrobust.registry import Registry
from sanrobust.zoo.families.base import Architecture, Family
from sanrobust.zoo.families.resnet import RESNET
from sanrobust.zoo.families.san import SAN
from sanrobust.zoo.families.sasa import SASA_RESNET

if TYPE_CHECKING:
    from sanrobust.zoo.entry import Entry

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


def published() -> tuple[Entry, ...]:
    """Return the entries of weights that the families publish."""
    return _published()[0]


def unpublished() -> tuple[str, ...]:
    """Say of each family of another package whose entries cannot be had why not."""
    return _published()[1]


def _published() -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    entries: list[Entry] = []
    problems: list[str] = []
    for family in families():
        try:
            entries += family.published()
        # A package of other people may fail in every way there is; ours must go on.
        except (Exception, SystemExit) as error:
            if family in ENTRIES:
                raise
            problems.append(f"published weights of the family {family.name} are left out: they "
                            f"cannot be listed ({type(error).__name__}: {first_line(error)})")
    return tuple(entries), tuple(problems)


def family_of(config: Architecture) -> Family[Any]:
    """Return the family of a configuration."""
    return next(each for each in families() if each.config is type(config))
