"""A look at a pickle's instructions before anything reads it.

`torch.load` runs nothing of a stranger's, but follows instructions that take all memory or end
the process. Those are refused here.
"""

from __future__ import annotations

import pickletools
from typing import Any, BinaryIO

_DEEPEST = 100
_PICKLES = 5  # a file of torch's older format holds so many, one behind another
_BYTEARRAYS = ("builtins bytearray", "__builtin__ bytearray")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "EMPTY_TUPLE": 0}
_GLOBALS = ("GLOBAL", "STACK_GLOBAL")


def refusal(stream: BinaryIO, *, pickles: int = _PICKLES) -> str | None:
    """Say in a clause what in the next ``pickles`` of a stream must not be read; None: nothing.

    What is no pickle has no refusal: whoever reads it will say what is wrong.
    """
    try:
        for _ in range(pickles):
            found = _refusal(stream)
            if found is not None:
                return found
    # The instructions of a damaged pickle end anywhere and hold anything.
    except (ValueError, IndexError, KeyError, OverflowError, EOFError, UnicodeDecodeError):
        pass
    return None


def _refusal(stream: BinaryIO) -> str | None:
    machine = _Machine()
    for operation, argument, _ in pickletools.genops(stream):
        machine.step(operation, argument)
        if machine.depth > _DEEPEST:
            # Comparing tuples so deep takes more stack than a process has.
            return f"it holds tuples within tuples, more than {_DEEPEST} deep"
        if operation.name in _GLOBALS and argument in _BYTEARRAYS:
            return "it asks for memory of any size (bytearray)"
    return None


class _Machine:
    """The stack of an unpickler, with the depth of tuples in place of values.

    Attributes:
        depth: of the tuple made last.
    """

    def __init__(self) -> None:
        self.depth = 0
        self._stack: list[int | None] = []  # None is a mark
        self._memo: dict[int, int] = {}

    def step(self, operation: Any, argument: Any) -> None:
        """Do what one instruction does to the stack."""
        name = operation.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[int(argument)])
        elif name in _TUPLES or name == "TUPLE":
            items = self._popped(_TUPLES[name]) if name in _TUPLES else self._marked()
            self.depth = 1 + max(items, default=0)
            self._stack.append(self.depth)
        elif name == "DUP":
            self._stack.append(self._top())
        else:
            self._other(operation)

    def _other(self, operation: Any) -> None:
        before, after = operation.stack_before, operation.stack_after
        items: list[int] = []
        if pickletools.markobject in before:
            items = self._marked()
            before = before[:before.index(pickletools.markobject)]
        items += self._popped(len(before))
        if operation.name == "POP" or not after:
            return
        if pickletools.markobject in after:
            self._stack.append(None)
        else:  # what holds a deep tuple is itself as deep for whoever compares it
            self._stack += [max(items, default=0)] * len(after)

    def _top(self) -> int:
        return self._stack[-1] or 0

    def _popped(self, count: int) -> list[int]:
        return [self._stack.pop() or 0 for _ in range(count)]

    def _marked(self) -> list[int]:
        items = []
        while (item := self._stack.pop()) is not None:
            items.append(item)
        return items
