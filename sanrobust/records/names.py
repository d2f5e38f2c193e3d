"""What the files of a run's records are called, and which of them stand for others.

``block-NNNNNN.parquet`` holds all rows of a block of images. Until it is there
``block-NNNNNN.FIRST-LAST.TOKEN.parquet`` hold parts of the block: rows of some of the images at the
dataset's positions from FIRST to LAST, measured by the process TOKEN. Earlier versions wrote chunks
with one number after the other: ``NNNNNN.parquet``, and ``NNNNNN-MMMMMM.parquet`` in the place of
all those from NNNNNN to MMMMMM.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"block-([0-9]{6}|[1-9][0-9]{6,})\.parquet")
_PART = re.compile(r"block-([0-9]{6,})\.([0-9]{6,})-([0-9]{6,})\.([0-9a-f]+)\.parquet")
_CHUNK = re.compile(r"([0-9]+)(?:-([0-9]+))?\.parquet")


@dataclass(frozen=True, order=True)
class Part:
    """A file with rows of some images of a block.

    Attributes:
        block: number of the block.
        first, last: positions in the dataset of the first and the last image in it.
        path: where it lies.
    """

    block: int
    first: int
    last: int
    path: Path


@dataclass(frozen=True, order=True)
class Chunk:
    """A file of records of an earlier version, and the numbers that it stands for."""

    first: int
    last: int
    path: Path

    @property
    def merged(self) -> bool:
        """Whether it stands in the place of others."""
        return "-" in self.path.stem

    def covers(self, other: Chunk) -> bool:
        """Return whether this chunk stands in the place of ``other``."""
        within = self.first <= other.first and other.last <= self.last
        is_same = (self.first, self.last) == (other.first, other.last)
        return self.merged and within and not (is_same and other.merged)


@dataclass(frozen=True)
class Listing:
    """The files of a folder of records.

    Attributes:
        blocks: by number, in their order.
        parts: of blocks that are not there.
        chunks: of earlier versions, in the order of their rows. Numbers may be missing: the images
            of a lost chunk count as not measured.
        superseded: parts of blocks that are there.
        merged_away: chunks in whose place another one stands.
    """

    blocks: Mapping[int, Path]
    parts: tuple[Part, ...]
    chunks: tuple[Chunk, ...]
    superseded: tuple[Part, ...]
    merged_away: tuple[Path, ...]

    @property
    def next_chunk(self) -> int:
        """A number above those of all chunks."""
        return 1 + max((chunk.last for chunk in self.chunks), default=-1)


def block_path(folder: Path, block: int) -> Path:
    """Return where the rows of a whole block are written."""
    return folder / f"block-{block:06d}.parquet"


def part_path(folder: Path, block: int, first: int, last: int, token: str) -> Path:
    """Return where a process writes rows of images from position ``first`` to ``last``."""
    return folder / f"block-{block:06d}.{first:06d}-{last:06d}.{token}.parquet"


def files_in(folder: Path) -> Listing:
    """Find the files of records in ``folder``, none where there is no such folder."""
    blocks: dict[int, Path] = {}
    parts: list[Part] = []
    chunks: list[Chunk] = []
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        names = []
    for name in names:
        if found := _BLOCK.fullmatch(name):
            blocks[int(found[1])] = folder / name
        elif found := _PART.fullmatch(name):
            parts.append(Part(int(found[1]), int(found[2]), int(found[3]), folder / name))
        elif found := _CHUNK.fullmatch(name):
            chunks.append(Chunk(int(found[1]), int(found[2] or found[1]), folder / name))
    chunks = [chunk for chunk in chunks if chunk.first <= chunk.last]
    merged = [chunk for chunk in chunks if chunk.merged]
    gone = {chunk for chunk in chunks if any(each.covers(chunk) for each in merged)}
    return Listing(dict(sorted(blocks.items())),
                   tuple(sorted(part for part in parts if part.block not in blocks)),
                   tuple(sorted(chunk for chunk in chunks if chunk not in gone)),
                   tuple(sorted(part for part in parts if part.block in blocks)),
                   tuple(sorted(chunk.path for chunk in gone)))
