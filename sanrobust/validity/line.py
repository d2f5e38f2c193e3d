"""What a line of a check is: one value with its question, its source and what it rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sanrobust.validity.values import Finding

if TYPE_CHECKING:
    from sanrobust.validity.subject import Subject


@dataclass(frozen=True)
class Line:
    """A question to a model or to an attack on it.

    Attributes:
        name: what tables call it.
        explains: what holds where it is ok, a sentence.
        source: who asks for it.
        judge: answers it; a ModelError that it raises is a wrong verdict.
        rests_on: lines that must not be wrong for its answer to mean anything.
    """

    name: str
    explains: str
    source: str
    judge: Callable[[Subject], Finding]
    rests_on: tuple[str, ...] = ()
