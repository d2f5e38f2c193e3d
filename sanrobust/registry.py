"""A table of names that answers a mistyped one with the closest match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from sanrobust.errors import UnknownNameError, shown_value

T = TypeVar("T")


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the entry of ``names`` most like ``name``, or None when nothing is near.

    Never ``name`` itself: it is asked about because it was refused.
    """
    by_folded = {known.casefold(): known for known in names if known != name}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def unknown_name(kind: str, name: str, names: Iterable[str], *, listing: str) -> UnknownNameError:
    """Build the error for a name that is not in ``names``.

    Args:
        kind: what is named, for example ``model``.
        name: the name as typed.
        names: the legal names.
        listing: what the user types to see the legal names.
    """
    match = closest(name, names)
    suggestion = f"did you mean {match}? " if match else ""
    return UnknownNameError(
        f"the {kind} must be a known name",
        seen=f"there is no {kind} named {shown_value(name)}",
        hint=f"{suggestion}see {listing}",
    )


class Registry(Generic[T]):
    """Named values in insertion order; a duplicate name fails when it is added.

    Args:
        kind: what the names stand for, used in messages.
        listing: what the user types to see the legal names.
    """

    def __init__(self, kind: str, *, listing: str) -> None:
        self._kind = kind
        self._listing = listing
        self._values: dict[str, T] = {}

    def add(self, name: str, value: T) -> None:
        """Add ``value`` under ``name``; raises ValueError when the name is taken."""
        if name in self._values:
            raise ValueError(f"two {self._kind}s are named {shown_value(name)}")
        self._values[name] = value

    def get(self, name: str) -> T:
        """Return the value named ``name``; raises UnknownNameError with the closest match."""
        try:
            return self._values[name]
        except KeyError:
            raise unknown_name(self._kind, name, self._values, listing=self._listing) from None

    def names(self) -> tuple[str, ...]:
        """Return all names in the order in which they were added."""
        return tuple(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[T]:
        return iter(self._values.values())

    def __len__(self) -> int:
        return len(self._values)
