"""Files of records: parquet that holds its own SHA-256, so that rot is never read.

The hash, over the file's name and its bytes, lies in the footer's metadata, beside the facts by
which a file is known without its rows. A file without a hash was written by an earlier version.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.files import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

Facts = Mapping[str, object]

_FACTS = b"sanrobust.facts"
_SEAL = b"sanrobust-sha256:"
_UNKNOWN = b"0" * hashlib.sha256().digest_size * 2


def write_sealed(path: Path, table: pa.Table, facts: Facts) -> None:
    """Write a table and facts of it to ``path``, whole or not at all, over what is there.

    Raises OutputError when the disk refuses it.
    """
    import pyarrow.parquet as pq
    known = {**(table.schema.metadata or {}), _FACTS: json.dumps(dict(facts)).encode()}
    table = table.replace_schema_metadata(known)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"sanrobust.seal": (_SEAL + _UNKNOWN).decode()})
    content = bytearray(buffer.getvalue())
    place = content.rindex(_SEAL) + len(_SEAL)
    content[place:place + len(_UNKNOWN)] = _digest(path, content)
    with atomic_write(path) as stream:
        stream.write(content)


def read_sealed(path: Path, columns: Sequence[str]) -> tuple[pa.Table, bool]:
    """Return those of the ``columns`` that a file has, and whether the file held its hash.

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


def read_facts(path: Path) -> dict[str, object]:
    """Return the facts of a file without reading its rows or looking at its hash; raises as above.
    """
    import pyarrow.parquet as pq
    return facts_of(pq.read_metadata(path).metadata)


def verified_facts(path: Path) -> dict[str, object]:
    """Return the facts of a file that is as it was written; raises as `read_sealed`."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    content = path.read_bytes()
    if not _check(path, content):
        raise ValueError("it has lost its hash")
    return facts_of(pq.read_metadata(pa.BufferReader(content)).metadata)


def facts_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, object]:
    """Return the facts among a file's or a table's metadata, none where there are none."""
    found = json.loads((metadata or {}).get(_FACTS, b"{}"))
    return found if isinstance(found, dict) else {}


def _check(path: Path, content: bytes) -> bool:
    """Return whether a file's content holds its hash; raises ValueError for a wrong one."""
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
    """Return the hash of a file whose place for the hash is blank."""
    return hashlib.sha256(path.name.encode() + b"\0" + content).hexdigest().encode()
