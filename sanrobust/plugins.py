"""What other packages add by entry points: values of a kind, each checked before it is used."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import metadata
from typing import Generic, TypeVar

from sanrobust.errors import first_line, shown_value

T = TypeVar("T")


@dataclass(frozen=True)
class Plugins(Generic[T]):
    """The values of a group of entry points.

    Attributes:
        values: those that loaded, by the names of their packages and their own.
        problems: a sentence for each of the others.
    """

    values: tuple[T, ...]
    problems: tuple[str, ...]

    @classmethod
    def load(cls, group: str, kind: type[T], *, taken: Collection[str],
             check: Callable[[T], None] = lambda value: None) -> Plugins[T]:
        """Load the entry points of a group.

        Args:
            group: its name.
            kind: what each must be; it has a ``name``, and may have ``files`` or ``networks``.
            taken: names that none may have.
            check: raises what is wrong with one.
        """
        values, problems, names = [], [], set(taken)
        found = metadata.entry_points(group=group)
        for point in sorted(found, key=lambda each: (_package(each), each.name)):
            try:
                value = point.load()
                own = _require(value, kind, names)
                check(value)
            # A package of other people may fail in every way there is; ours must go on.
            except (Exception, SystemExit) as error:
                problems.append(f"{point.name} of the package {_package(point)} is left out: "
                                f"{point.value} of the entry points {group} cannot be had "
                                f"({type(error).__name__}: {first_line(error)})")
            else:
                names |= own
                values.append(value)
        return cls(tuple(values), tuple(problems))


def _require(value: object, kind: type[T], taken: Collection[str]) -> set[str]:
    """Return the names that a value takes; raises TypeError or ValueError for one that cannot be
    used."""
    if not isinstance(value, kind):
        raise TypeError(f"it must be of the kind {kind.__name__}, but is {shown_value(value)}")
    own = {str(getattr(value, each)) for each in ("name", "files") if hasattr(value, each)}
    own |= set(getattr(value, "networks", ()))
    twice = sorted(own.intersection(taken))
    if twice:
        raise ValueError(f"the name {shown_value(twice[0])} is taken")
    return own


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"
