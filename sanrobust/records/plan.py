"""The plan of a run: its images in their order, cut once into blocks of neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_BLOCKS = 64
_SMALLEST, _LARGEST = 16, 2048
"""Images of a block: few enough that parts of a run are alike, many enough that files are few."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Which images are in which block.

    Attributes:
        ids: of all images, in the order of the dataset.
        size: images of a block; the last one may have fewer.
    """

    ids: Sequence[str]
    size: int

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-len(self.ids) // self.size)

    def positions(self, block: int) -> range:
        """Return the positions in the dataset of a block's images."""
        return range(block * self.size, min((block + 1) * self.size, len(self.ids)))

    def ids_of(self, block: int) -> Sequence[str]:
        """Return the ids of a block's images in their order."""
        return self.ids[block * self.size:(block + 1) * self.size]


def block_size(images: int, batch_size: int) -> int:
    """Return how many images a block of a new run has: whole batches of its first start.

    Only the arguments decide it, so processes that start a run at the same moment agree.
    """
    wanted = min(max(images // _BLOCKS, _SMALLEST), _LARGEST)
    return batch_size * max(1, -(-wanted // batch_size))


def batches_of(positions: Iterable[int], within: range, batch_size: int) -> Iterator[list[int]]:
    """Yield positions of a block in batches, cut at the same places whichever are left out.

    So a run that goes on repeats the arithmetic of one that was never stopped.
    """
    groups: dict[int, list[int]] = {}
    for position in positions:
        groups.setdefault((position - within.start) // batch_size, []).append(position)
    yield from groups.values()


def ids_digest(ids: Iterable[str]) -> str:
    """Return the SHA-256 of a set of image ids in hexadecimal, whatever their order."""
    return hashlib.sha256("\0".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()
