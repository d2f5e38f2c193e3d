"""Chunks of records: parquet files that hold their own SHA-256, so that rot is never read.

``NNNNNN.parquet`` holds rows as they were measured. ``NNNNNN-MMMMMM.parquet`` holds those of all
chunks from NNNNNN to MMMMMM and stands in their place: they are deleted when it is whole, and what
a kill leaves of them is not read. The hash, over the file's name and its bytes, lies in the
footer's metadata; a chunk without one was written by an earlier version.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.files import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

EXCLUDED = "excluded: "
"""How the reason of an image begins that the experiment itself leaves out."""
FULL_ROWS = 1 << 16
"""Rows up to which chunks are merged: as much as one flipped bit can cost."""
_NAME = re.compile(r"(\d+)(?:-(\d+))?\.parquet", re.ASCII)
_SEAL = b"sanrobust-sha256:"
_UNKNOWN = b"0" * hashlib.sha256().digest_size * 2


@dataclass(frozen=True, order=True)
class Chunk:
    """A file of records and the first and last of the numbers that it stands for."""

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
class Chunks:
    """The chunks of a folder.

    Attributes:
        standing: those to be read, in the order of their rows. Numbers may be missing: the images
            of a lost chunk count as not measured.
        replaced: those that others stand for.
    """

    standing: tuple[Chunk, ...]
    replaced: tuple[Chunk, ...]

    @property
    def next_number(self) -> int:
        """The number of the next chunk."""
        return 1 + max((chunk.last for chunk in self.standing), default=-1)


def chunks_in(folder: Path) -> Chunks:
    """Find the chunks in ``folder``, none where there is no such folder."""
    found = sorted(chunk for path in folder.glob("*.parquet") if (chunk := _named(path)))
    merged = [chunk for chunk in found if chunk.merged]
    replaced = tuple(chunk for chunk in found if any(each.covers(chunk) for each in merged))
    gone = set(replaced)
    return Chunks(tuple(chunk for chunk in found if chunk not in gone), replaced)


def write_chunk(path: Path, table: pa.Table) -> None:
    """Write a table as a chunk, whole or not at all.

    Raises NameTaken when there is a file of that name, OutputError when the disk refuses it.
    """
    import pyarrow.parquet as pq
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"sanrobust.seal": (_SEAL + _UNKNOWN).decode()})
    content = bytearray(buffer.getvalue())
    place = content.rindex(_SEAL) + len(_SEAL)
    content[place:place + len(_UNKNOWN)] = _digest(path, content)
    with atomic_write(path, replace=False) as stream:
        stream.write(content)


def read_chunk(path: Path, columns: Sequence[str]) -> tuple[pa.Table, bool]:
    """Return those of the ``columns`` that a chunk has, and whether the chunk held its hash.

    Raises ValueError when it is not as it was written, FileNotFoundError when it is gone, OSError
    or an error of pyarrow when it does not read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    content = path.read_bytes()
    is_sealed = _check(path, content)
    file = pq.ParquetFile(pa.BufferReader(content))
    there = [name for name in file.schema_arrow.names if name in columns]
    return file.read(columns=there), is_sealed


def groups(chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, ...]]:
    """Yield the neighbours that are worth merging: several, of FULL_ROWS rows together."""
    import pyarrow.parquet as pq
    group: list[Chunk] = []
    rows = 0
    for chunk in chunks:
        more = pq.read_metadata(chunk.path).num_rows
        if rows + more > FULL_ROWS:
            yield from _several(group)
            group, rows = [], 0
        group.append(chunk)
        rows += more
    yield from _several(group)


def _several(group: Sequence[Chunk]) -> Iterator[tuple[Chunk, ...]]:
    if len(group) > 1:
        yield tuple(group)


def _named(path: Path) -> Chunk | None:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return Chunk(first, last, path) if first <= last else None


def _check(path: Path, content: bytes) -> bool:
    """Return whether a chunk's content holds its hash; raises ValueError for a wrong one."""
    place = content.rfind(_SEAL)
    if place < 0:
        return False
    place += len(_SEAL)
    end = place + len(_UNKNOWN)
    blank = content[:place] + _UNKNOWN + content[end:]
    if content[place:end] != _digest(path, blank):
        raise ValueError("it is not as it was written")
    return True


def _digest(path: Path, content: bytes | bytearray) -> bytes:
    """Return the hash of a chunk whose place for the hash is blank."""
    return hashlib.sha256(path.name.encode() + b"\0" + content).hexdigest().encode()
