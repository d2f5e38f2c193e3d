"""Which attacks AutoAttack runs, in which order; loads no torch.

Source: Croce & Hein (2020, arXiv 2003.01690) and their published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sanrobust.errors import UsageError, shown_value
from sanrobust.registry import unknown_name

MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


@dataclass(frozen=True)
class Version:
    """A choice of attacks.

    Attributes:
        members: their names, in their order.
        restarts: of each.
        looks: passes of the model at each step, of which loss and gradient are the means.
    """

    members: tuple[str, ...]
    restarts: Mapping[str, int]
    looks: int = 1


STANDARD = "standard"
VERSIONS: Mapping[str, Version] = {
    STANDARD: Version(("apgd-ce", "apgd-t", "fab-t", "square"), {}),
    "plus": Version(("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
                    {"apgd-ce": 5, "apgd-dlr": 5, "fab": 5}),
    "rand": Version(("apgd-ce", "apgd-dlr"), {}, looks=20),
}


def version_of(text: str) -> Version:
    """Return a version by its name, or one of one's own: members, separated by commas.

    Raises UsageError for a member twice, UnknownNameError for one that is none.
    """
    if text in VERSIONS:
        return VERSIONS[text]
    members = tuple(part.strip() for part in text.split(","))
    for name in members:
        if name not in MEMBERS:
            raise unknown_name("version or member of AutoAttack", name, (*VERSIONS, *MEMBERS),
                               listing=f"the legal ones: {', '.join((*VERSIONS, *MEMBERS))}")
        if members.count(name) > 1:
            raise UsageError("a member of AutoAttack must be given once",
                             seen=f"{shown_value(name)} was given {members.count(name)} times",
                             hint="keep one of them")
    return Version(members, {})
