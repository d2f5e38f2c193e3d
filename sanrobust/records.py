"""Per-image results on disk: append-only chunks that survive a kill at any moment.

A run's folder holds ``run.json`` (what was run, where, how long; see `sanrobust.header`) and
``records/`` with chunks (see `sanrobust.chunks`). A chunk holds all rows of some images; it appears
whole or not at all, so the images of the chunks present are exactly the images done. Both hold a
hash of all that they say, and what is not as it was written is refused by its name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from sanrobust.chunks import EXCLUDED, Chunk, chunks_in, groups, read_chunk, write_chunk
from sanrobust.errors import OutputError, UnknownNameError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.files import TEMPORARY_SUFFIX, NameTaken, output_error, write_text
from sanrobust.spec import RunSpec, digest_of

if TYPE_CHECKING:
    import pyarrow as pa

RUNS_FOLDER = "runs"
RECORDS_FOLDER = "records"
HEADER_NAME = "run.json"
_SPEC_METADATA = "sanrobust.spec"
LOCK_NAME = "run.lock"
SEALED_FROM = "sealed_from"
"""Key of a header under which stands the number of the first chunk that holds its hash."""
MOST_UNMERGED = 64
_SEAL = "sha256"
_READINGS = 5
_RESTORE = ("restore the file, or delete it and run the same command again, which measures its "
            "images")

_SPEC_KEYS = frozenset(("experiment", "model", "weights", "preprocessing", "data", "data_digest",
                        "images", "settings"))


def schema(experiment: str) -> pa.Schema:
    """Return the Arrow schema of an experiment's records; every column may hold nulls."""
    import pyarrow as pa
    kinds = {"string": pa.string(), "int32": pa.int32(), "float32": pa.float32(),
             "float64": pa.float64(), "bool": pa.bool_(), "list<float>": pa.list_(pa.float32())}
    return pa.schema([(name, kinds[kind])
                      for name, kind in EXPERIMENTS.get(experiment).records.columns.items()])


class RunStore:
    """The records of one run, open for appending by one process.

    Use as a context manager: a lock keeps a second process from writing the same run, and is
    released by the system when this one dies.

    Args:
        out: folder of the results.
        spec: what the run's numbers depend on; decides the folder.
        fresh: start a new attempt beside earlier ones instead of going on with the last.
    """

    def __init__(self, out: Path, spec: RunSpec, *, fresh: bool = False) -> None:
        self.spec = spec
        try:
            self.folder = _attempt_folder(out / RUNS_FOLDER, spec, fresh=fresh)
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise output_error(out, error) from error
        self._records = self.folder / RECORDS_FOLDER
        self._lock = FileLock(self.folder / LOCK_NAME, timeout=0)
        self._next_chunk = 0
        self._unmerged = 0

    def __enter__(self) -> RunStore:
        try:
            self._records.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise OutputError("one process at a time may write a run",
                              seen=f"another one is writing {self.folder}",
                              hint="wait for it, or pass --fresh for a run of your own") from None
        except OSError as error:
            raise output_error(self.folder, error) from error
        try:
            self._take_over()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _take_over(self) -> None:
        """Check whose folder it is and sweep what a kill left there."""
        header = self.header()
        if header and header["spec_digest"] != self.spec.digest:
            raise OutputError("a run's folder must hold one specification",
                              seen=f"{self.folder} was written for another one",
                              hint="pass --fresh, or name another folder with --out")
        # Under the run's lock nobody else's can be there.
        for leftover in self.folder.rglob(f"*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        chunks = chunks_in(self._records)
        if chunks.replaced:
            self.recorded()  # what stands in their place must read back before they go
        _delete(chunks.replaced)
        self._next_chunk = chunks.next_number
        self._unmerged = sum(not chunk.merged for chunk in chunks.standing)
        if self._unmerged > MOST_UNMERGED:
            if header:
                self.write_header(header)
            self._merge()

    def header(self) -> dict[str, object]:
        """Return the content of ``run.json``, or an empty dict before the first write."""
        path = self.folder / HEADER_NAME
        return read_header(path) if path.exists() else {}

    def write_header(self, facts: Mapping[str, object]) -> None:
        """Write ``run.json``: the specification, its digest, ``facts``, and a hash of it all."""
        sealed_from = facts.get(SEALED_FROM, self.header().get(SEALED_FROM, self._next_chunk))
        header = {**facts, "spec": self.spec.as_dict(), "spec_digest": self.spec.digest,
                  SEALED_FROM: sealed_from}
        write_header_file(self.folder / HEADER_NAME, header)

    def append(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Add rows as one chunk.

        Args:
            columns: values per column; all rows of an image must be in the same call.

        Raises OutputError when the disk refuses it, or when another process has written the same
        chunk, which happens only where locks do nothing; its chunk stays as it is.
        """
        import pyarrow as pa
        table = pa.Table.from_pydict(dict(columns), schema=schema(self.spec.experiment))
        self._write(f"{self._next_chunk:06d}", table)
        self._next_chunk += 1
        self._unmerged += 1
        if self._unmerged > MOST_UNMERGED:
            self._merge()

    def _write(self, name: str, table: pa.Table) -> None:
        path = self._records / f"{name}.parquet"
        try:
            write_chunk(path, table.replace_schema_metadata({_SPEC_METADATA: self.spec.digest}))
        except NameTaken:
            raise OutputError("one process at a time may write a run",
                              seen=f"another one has written {path}",
                              hint="wait for it to end, then type the same command again") from None

    def _merge(self) -> None:
        """Put one chunk in the place of many small ones; a kill in between changes no record."""
        for group in groups(chunks_in(self._records).standing):
            table = self._rows(group).cast(schema(self.spec.experiment))
            self._write(f"{group[0].first:06d}-{group[-1].last:06d}", table)
            _delete(group)
        self._unmerged = 0

    def recorded(self, *, but_failed: bool = False) -> set[str]:
        """Return the ids of the images that have their records; raises OutputError on damage.

        Args:
            but_failed: leave out those recorded as failed.
        """
        table = self._rows(chunks_in(self._records).standing, ())
        images = table.column("image")
        recorded = set(images.unique().to_pylist())
        return recorded - set(images.filter(_failed(table)).to_pylist()) if but_failed else recorded

    def _rows(self, chunks: Sequence[Chunk], columns: Sequence[str] | None = None) -> pa.Table:
        return _Reader(self.folder, self.spec.experiment, self.spec.digest,
                       self.header()).rows(chunks, columns)


@dataclass(frozen=True)
class _Reader:
    """Reads the chunks of one run and refuses what does not belong to it."""

    folder: Path
    experiment: str
    spec_digest: str
    header: Mapping[str, object]

    def rows(self, chunks: Sequence[Chunk], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of ``chunks``, text as dictionaries; see `read_records`."""
        import pyarrow as pa
        key = EXPERIMENTS.get(self.experiment).records.key
        wanted = _with_dictionaries(schema(self.experiment), None if columns is None else
                                    {*columns, *key, "error"})
        tables = [wanted.empty_table(), *(self._chunk(chunk, wanted) for chunk in chunks)]
        lengths = [len(table) for table in tables]
        table = _without_replaced(pa.concat_tables(tables).unify_dictionaries(), lengths)
        _check_counted_once(table, self.experiment, self.folder)
        return table

    def _chunk(self, chunk: Chunk, wanted: pa.Schema) -> pa.Table:
        import pyarrow as pa
        try:
            table, is_sealed = read_chunk(chunk.path, wanted.names)
            self._check_seal(chunk, is_sealed)
            belongs = (table.schema.metadata or {}).get(_SPEC_METADATA.encode())
            table = _with_all_columns(table, wanted).cast(wanted)
        except FileNotFoundError:
            raise  # another process may have merged it
        except (OSError, pa.ArrowException, ValueError, KeyError, OverflowError) as error:
            raise OutputError("a chunk of records must read back",
                              seen=f"{chunk.path} does not ({_short(error)})",
                              hint=_RESTORE) from error
        # Chunks of earlier versions do not say to which specification they belong.
        if belongs not in (None, self.spec_digest.encode()):
            raise OutputError("a run must hold records of its own specification alone",
                              seen=f"{chunk.path} was measured for another one",
                              hint="put the file back where it was, or start anew with --fresh")
        return table

    def _check_seal(self, chunk: Chunk, is_sealed: bool) -> None:
        """Notice a hash that was taken away: versions that wrote none wrote no such header."""
        if not self.header:
            return
        if SEALED_FROM not in self.header and is_sealed:
            raise ValueError(f"it holds its hash but {HEADER_NAME} beside it has lost its own")
        sealed_from = self.header.get(SEALED_FROM, chunk.last + 1)
        assert isinstance(sealed_from, int)
        if not is_sealed and (chunk.merged or chunk.last >= sealed_from):
            raise ValueError("it has lost its hash")


def read_records(folder: Path, experiment: str, spec_digest: str, *,
                 columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of all chunks of a run in the order in which they were written.

    Text is held as dictionaries. Of the columns only those named are read beside ``error`` and
    those by which rows are known; None reads all. A column that an older version did not write is
    null. Rows of an image that failed count until it was measured again. Raises OutputError for a
    chunk that is not as it was written, for one of another run, and for an image that stands twice.
    """
    path = folder / HEADER_NAME
    reader = _Reader(folder, experiment, spec_digest, read_header(path) if path.exists() else {})
    for _ in range(_READINGS):
        with suppress(FileNotFoundError):
            return reader.rows(chunks_in(folder / RECORDS_FOLDER).standing, columns)
    raise OutputError("a run's records must stay where they are while they are read",
                      seen=f"some of {folder} vanished {_READINGS} times",
                      hint="wait for the process that writes them, and run the same command again")


def read_header(path: Path) -> dict[str, object]:
    """Return the content of a ``run.json``, without its hash.

    Raises OutputError when it is none, or is not as it was written. One of an earlier version
    holds no hash, and no number of the first chunk that does.
    """
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(header, dict) or not isinstance(header.get("spec"), dict):
            raise ValueError("no specification in it")
        lacking = _SPEC_KEYS - set(header["spec"])
        if lacking:
            raise ValueError(f"its specification lacks {', '.join(sorted(lacking))}")
        if header.setdefault("spec_digest", digest_of(header["spec"])) != digest_of(header["spec"]):
            raise ValueError("its specification was changed after it was written")
        is_sealed = SEALED_FROM in header or _SEAL in header
        if is_sealed and header.pop(_SEAL, None) != digest_of(header):
            raise ValueError("it was changed after it was written")
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError("a run's header must read back", seen=f"{path} does not ({error})",
                          hint="restore it, or delete it and run the same command again, which "
                               "goes on with the run's records") from error
    _require_known(path, header["spec"])
    return header


def _require_known(path: Path, spec: Mapping[str, object]) -> None:
    """Refuse records of an experiment that is not there, or of a later version of it."""
    try:
        known = EXPERIMENTS.get(str(spec["experiment"])).records.version
    except UnknownNameError as error:
        raise OutputError("a run must be of a known experiment", seen=f"in {path} {error.seen}",
                          hint="install the package that adds it") from error
    version = spec.get("record_schema", 1)
    if not isinstance(version, int) or not 1 <= version <= known:
        raise OutputError(f"records must be of a schema up to {known}",
                          seen=f"{path} is of another version's schema, {version}",
                          hint="install the newest sanrobust, or measure into another folder with "
                               "--out")


def write_header_file(path: Path, header: Mapping[str, object]) -> None:
    """Write ``run.json`` with a hash of all that it says."""
    sealed = {**header, _SEAL: digest_of(header)}
    write_text(path, json.dumps(sealed, indent=2) + "\n")


def ids_digest(ids: Iterable[str]) -> str:
    """Return the SHA-256 of a set of image ids in hexadecimal, whatever their order."""
    return hashlib.sha256("\0".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()


def chunked(images: int, batch_size: int) -> Iterator[range]:
    """Yield the dataset's positions in blocks of ``batch_size``, always cut at the same places."""
    for start in range(0, images, batch_size):
        yield range(start, min(start + batch_size, images))


def _attempt_folder(runs: Path, spec: RunSpec, *, fresh: bool) -> Path:
    """Return the last attempt's folder, or the next one's for a fresh start."""
    attempt = 1
    while _attempt_name(runs, spec, attempt + 1).exists():
        attempt += 1
    if fresh and _attempt_name(runs, spec, attempt).exists():
        attempt += 1
    return _attempt_name(runs, spec, attempt)


def _attempt_name(runs: Path, spec: RunSpec, attempt: int) -> Path:
    return runs / (spec.run_id if attempt == 1 else f"{spec.run_id}.{attempt}")


def _delete(chunks: Iterable[Chunk]) -> None:
    for chunk in chunks:
        chunk.path.unlink(missing_ok=True)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__


def _with_dictionaries(whole: pa.Schema, columns: Collection[str] | None) -> pa.Schema:
    """Return a schema, or its part, with text held once for each value."""
    import pyarrow as pa
    text = pa.dictionary(pa.int32(), pa.string())
    return pa.schema([(field.name, text if field.type == pa.string() else field.type)
                      for field in whole if columns is None or field.name in columns])


def _with_all_columns(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    import pyarrow as pa
    columns = [table.column(field.name) if field.name in table.column_names
               else pa.nulls(len(table), field.type) for field in wanted]
    return pa.table(columns, names=wanted.names)


def _failed(table: pa.Table) -> pa.ChunkedArray:
    """Return which rows are of an image that failed; those that are excluded did not."""
    import pyarrow as pa
    import pyarrow.compute as pc
    reasons = table.column("error").cast(pa.string())
    return pc.and_(pc.is_valid(reasons), pc.fill_null(
        pc.invert(pc.starts_with(reasons, EXCLUDED)), False))


def _without_replaced(table: pa.Table, lengths: Sequence[int]) -> pa.Table:
    """Drop the rows of failed images that a later chunk measured again.

    Args:
        lengths: of the chunks that make up the table.
    """
    if not len(table) or not (failed := _failed(table).to_numpy()).any():
        return table
    chunks = np.repeat(np.arange(len(lengths)), lengths)
    images = np.concatenate([part.indices.to_numpy() for part in table.column("image").chunks])
    newest = np.zeros(images.max() + 1, dtype=np.int64)
    np.maximum.at(newest, images, chunks)
    again = failed & (chunks < newest[images])
    return table.filter(~again) if again.any() else table


def _check_counted_once(table: pa.Table, experiment: str, folder: Path) -> None:
    keys = table.select(list(EXPERIMENTS.get(experiment).records.key)).to_pandas()
    twice = keys[keys.duplicated()]
    if len(twice):
        raise OutputError("every image must be counted once",
                          seen=f"{twice.iloc[0]['image']} stands twice in {folder}",
                          hint="start anew with --fresh")
