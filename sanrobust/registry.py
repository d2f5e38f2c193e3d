"""Tables of names, to which other packages add by entry points.

A mistyped name is answered with the closest match.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from typing import Any, Generic, TypeVar

from sanrobust.errors import UnknownNameError, first_line, shown_value

T = TypeVar("T")


def closest(name: str, names: Iterable[str]) -> str | None:
    """Return the entry of ``names`` most like ``name``, or None when nothing is near.

    Never ``name`` itself: it is asked about because it was refused.
    """
    by_folded = {known.casefold(): known for known in names if known != name}
    matches = get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return the beginning of a hint: which name is like ``name``, or nothing."""
    match = closest(name, names)
    return f"did you mean {match}? " if match else ""


def unknown_name(kind: str, name: str, names: Iterable[str], *, listing: str) -> UnknownNameError:
    """Build the error for a name that is not in ``names``.

    Args:
        kind: what is named, for example ``model``.
        name: the name as typed.
        names: the legal names.
        listing: what the user types to see the legal names.
    """
    return UnknownNameError(
        f"the {kind} must be a known name",
        seen=f"there is no {kind} named {shown_value(name)}",
        hint=f"{did_you_mean(name, names)}see {listing}",
    )


class Registry(Generic[T]):
    """Named values in insertion order; a duplicate name fails when it is added.

    Behind our own stand those of installed packages, when the registry has a group of entry points.
    They are loaded when they are first asked for; one that cannot be had is left out.

    Args:
        kind: what the names stand for, used in messages.
        listing: what the user types to see the legal names.
        group: of entry points, each of which names a value; empty for none.
        of: what such a value must be an instance of.
        names: the names that a value takes, its own first; None for ``value.name``.
        check: raises what is wrong with a value of another package.
        taken: names that no value of another package may have.
    """

    def __init__(self, kind: str, *, listing: str, group: str = "", of: type = object,
                 names: Callable[[T], Sequence[str]] | None = None,
                 check: Callable[[T], object] = repr,
                 taken: Collection[str] = ()) -> None:
        self._kind = kind
        self._listing = listing
        self._plugins = Plugins(group, of, check)
        self._names_of = names or _its_name
        self._taken = taken
        self._values: dict[str, T] = {}

    def add(self, name: str, value: T) -> None:
        """Add ``value`` under ``name``; raises ValueError when the name is taken."""
        if name in self._values:
            raise ValueError(f"two {self._kind}s are named {shown_value(name)}")
        self._values[name] = value

    def get(self, name: object) -> T:
        """Return the value named ``name``; raises UnknownNameError with the closest match."""
        if not isinstance(name, str):
            raise UnknownNameError(f"the {self._kind} must be a name", seen=f"it is "
                                   f"{shown_value(name)}", hint=f"see {self._listing}")
        if name in self._values:
            return self._values[name]
        try:
            return self._all[name]
        except KeyError:
            raise unknown_name(self._kind, name, self._all, listing=self._listing) from None

    def names(self) -> tuple[str, ...]:
        """Return all names in the order in which they were added."""
        return tuple(self._all)

    def own_names(self) -> tuple[str, ...]:
        """Return the names that are no other package's."""
        return tuple(self._values)

    def left_out(self) -> tuple[str, ...]:
        """Say of each value of another package that cannot be had why not."""
        return self._loaded[1]

    @property
    def _all(self) -> Mapping[str, T]:
        return {**self._values, **self._loaded[0]} if self._plugins.group else self._values

    @cached_property
    def _loaded(self) -> tuple[Mapping[str, T], tuple[str, ...]]:
        taken = {*self._taken, *(name for value in self._values.values()
                                 for name in self._names_of(value))}
        found, problems = self._plugins.load(self._names_of, taken=taken)
        return {self._names_of(value)[0]: value for value in found}, problems

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._values or name in self._all)

    def __iter__(self) -> Iterator[T]:
        return iter(self._all.values())

    def __len__(self) -> int:
        return len(self._all)


def _its_name(value: Any) -> tuple[str, ...]:
    return (str(value.name),)


@dataclass(frozen=True)
class Plugins:
    """A group of entry points.

    Attributes:
        group: its name; empty for one that nobody adds to.
        of: what each of its values must be an instance of.
        check: raises what is wrong with one.
    """

    group: str
    of: type
    check: Callable[[Any], object]

    def load(self, names_of: Callable[[Any], Sequence[str]], *, taken: Collection[str]
             ) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """Return the values in the order of their packages, and a sentence for each that fails.

        Args:
            names_of: the names that a value takes.
            taken: names that none may have.
        """
        values: list[Any] = []
        problems: list[str] = []
        names = set(taken)
        for point in sorted(_points(self.group), key=lambda each: (_package(each), each.name)):
            try:
                value = point.load()
                names |= self._names(value, names_of, names)
            # A package of other people may fail in every way there is; ours must go on.
            except (Exception, SystemExit) as error:
                problems.append(f"{point.name} of the package {_package(point)} is left out: "
                                f"{point.value}, an entry point of {self.group}, cannot be had "
                                f"({type(error).__name__}: {first_line(error)})")
            else:
                values.append(value)
        return tuple(values), tuple(problems)

    def _names(self, value: object, names_of: Callable[[Any], Sequence[str]],
               taken: Collection[str]) -> set[str]:
        """Return the names of a value; raises TypeError or ValueError when it cannot be used."""
        if not isinstance(value, self.of):
            raise TypeError(f"it must be of the kind {self.of.__name__}, but is "
                            f"{shown_value(value)}")
        own = set(names_of(value))
        twice = sorted(own.intersection(taken))
        if twice:
            raise ValueError(f"the name {shown_value(twice[0])} is taken")
        self.check(value)
        return own


def _points(group: str) -> Iterable[metadata.EntryPoint]:
    found: Iterable[metadata.EntryPoint] = _all_points().select(group=group)
    return found


@cache
def _all_points() -> Any:  # whose type is another one in each version of Python
    return metadata.entry_points()


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"
