"""Who measures which block of a run: first one's own, then what others left.

A process says in its start file which block it measures, and leaves alone a block that another
living process says so of. Where that fails, two measure the same block and write the same file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sanrobust.records.starts import Start, starts_of
from sanrobust.records.store import RunStore
from sanrobust.shards import Shard


class Share:
    """The blocks of a run that this process measures.

    Args:
        store: the run, taken up.
        start: this process.
        shard: its part.
        retry: measure images again that are recorded as failed, in its own blocks.

    Attributes:
        own: the blocks of its part that are not there, or hold images to be measured again.
        images: how many images its part has.
        words: which part it is, for people; empty where there is one.
    """

    def __init__(self, store: RunStore, start: Start, shard: Shard, *, retry: bool = False) -> None:
        self._store, self._start, self._shard = store, start, shard
        own = [block for block in range(store.plan.blocks) if shard.owns(block)]
        self._retried = frozenset(store.failing(own)) if retry else frozenset()
        self._tried: set[int] = set()
        missing = set(store.missing()) | self._retried
        self.own = [block for block in own if block in missing]
        self.images = sum(len(store.plan.positions(block)) for block in own)
        self.words = f", part {shard}" if shard.count > 1 else ""

    def todo(self, block: int) -> list[int]:
        """Return the positions of the images that are to be measured."""
        return self._store.todo(block, retry=block in self._retried)

    def count_own(self) -> int:
        """Return how many images of its part are to be measured."""
        return sum(len(self.todo(block)) for block in self.own)

    def take(self, block: int) -> bool:
        """Say that this process measures a block now; False where there is no need to."""
        if block not in self._retried:
            if self._store.is_there(block) or block in self._claimed():
                return False
        self._tried.add(block)
        self._start.claim(block)
        return True

    def left(self) -> Iterator[int]:
        """Yield blocks that others have not measured, until there is none that can be taken.

        Its own that another process had begun come first, then those of parts that were started:
        these from the last one on, where whoever owns them comes last. Blocks of a part that
        nobody started are left to it.
        """
        while (block := self._next_left()) is not None:
            yield block

    def count_left(self) -> int:
        """Return how many images the blocks have that `left` may yield now."""
        claimed = self._claimed()
        return sum(max(len(self.todo(block)), 1) for block in self._left() if block not in claimed)

    def _next_left(self) -> int | None:
        claimed = self._claimed()
        return next((block for block in self._left() if block not in claimed), None)

    def _left(self) -> list[int]:
        missing = [block for block in self._store.missing() if block not in self._tried]
        own = [block for block in missing if self._shard.owns(block)]
        started = self._started()
        return own + [block for block in reversed(missing) if not self._shard.owns(block)
                      and block % self._shard.count in started]

    def _started(self) -> set[int]:
        """Return the indices of the parts of as many as this one that were ever started."""
        parts = (each.facts.get("shard") for each in starts_of(self._store.folder))
        return {part[0] for part in parts if isinstance(part, list) and len(part) == 2
                and part[1] == self._shard.count}

    def _claimed(self) -> set[int]:
        return {each.block for each in starts_of(self._store.folder)
                if each.token != self._start.token and each.block is not None}


def others_at_work(folder: Path, token: str) -> bool:
    """Return whether another process than ``token`` measures the run now."""
    return any(each.alive and each.token != token for each in starts_of(folder))
