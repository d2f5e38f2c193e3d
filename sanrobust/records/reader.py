"""Records read back: every row of a run once, and nothing that is not as it was written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from sanrobust.errors import OutputError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.reasons import EXCLUDED
from sanrobust.records.headers import BLOCK_SIZE, HEADER_NAME, SEALED_FROM, read_header
from sanrobust.records.names import Chunk, Listing, files_in
from sanrobust.records.sealed import facts_of, read_sealed

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

RUNS_FOLDER = "runs"
RECORDS_FOLDER = "records"
_SPEC_METADATA = b"sanrobust.spec"  # where earlier versions wrote it
_READINGS = 5
RESTORE = ("restore the file, or delete it and type the command that measured it again, which "
           "measures its images")


def schema(experiment: str) -> pa.Schema:
    """Return the Arrow schema of an experiment's records; every column may hold nulls."""
    import pyarrow as pa
    kinds = {"string": pa.string(), "int32": pa.int32(), "float32": pa.float32(),
             "float64": pa.float64(), "bool": pa.bool_(), "list<float>": pa.list_(pa.float32())}
    return pa.schema([(name, kinds[kind])
                      for name, kind in EXPERIMENTS.get(experiment).records.columns.items()])


def unreadable(path: Path, error: Exception) -> OutputError:
    """Return the sentence for a file that is not as it was written."""
    said = " ".join(str(error).split())[:100] or type(error).__name__
    return OutputError("a file of records must read back", seen=f"{path} does not ({said})",
                       hint=RESTORE)


def foreign(path: Path) -> OutputError:
    """Return the sentence for a file of another run."""
    return OutputError("a run must hold records of its own specification alone",
                       seen=f"{path} was measured for another one",
                       hint="put the file back where it was, or start anew with --fresh")


@dataclass(frozen=True)
class Reader:
    """Reads the files of one run and refuses what does not belong to it."""

    folder: Path
    experiment: str
    spec_digest: str
    header: Mapping[str, object]

    def rows(self, listing: Listing, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of the files of a listing; see `read_records`."""
        import pyarrow as pa
        wanted = self._wanted(columns)
        blocks = [self._sealed(path, wanted) for path in listing.blocks.values()]
        others = self.others(listing, columns)
        # In one piece: many pieces of one large dictionary each are unified one by one below.
        whole = pa.concat_tables([wanted.empty_table(), *blocks]
                                 ).unify_dictionaries().combine_chunks()
        self._require_each_once(whole, blocks)
        if len(others) and len(whole):
            others = others.filter(_not_among(others, whole))
        return pa.concat_tables([others, whole]).unify_dictionaries()

    def others(self, listing: Listing, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of the chunks and parts of a listing, those of an image from one of them.
        """
        wanted = self._wanted(columns)
        chunks = self._chunks(listing.chunks, wanted)
        return chosen([chunks, *(self._sealed(part.path, wanted) for part in listing.parts)])

    def rows_of(self, paths: Sequence[Path]) -> list[pa.Table]:
        """Return all columns of each of these blocks or parts; raises FileNotFoundError."""
        return [self._sealed(path, self._wanted(None)) for path in paths]

    def _wanted(self, columns: Sequence[str] | None) -> pa.Schema:
        key = EXPERIMENTS.get(self.experiment).records.key
        return _with_dictionaries(schema(self.experiment), None if columns is None else
                                  {*columns, *key, "error"})

    def _chunks(self, chunks: Sequence[Chunk], wanted: pa.Schema) -> pa.Table:
        """Return the rows of chunks; those of a failed image count until it was measured again."""
        import pyarrow as pa
        tables = [wanted.empty_table(), *(self._chunk(chunk, wanted) for chunk in chunks)]
        table = pa.concat_tables(tables).unify_dictionaries()
        table = _without_replaced(table, [len(each) for each in tables])
        self._require_once(table)
        return table

    def _chunk(self, chunk: Chunk, wanted: pa.Schema) -> pa.Table:
        table, is_sealed = self._read(chunk.path, wanted)
        sealed_from = self.header.get(SEALED_FROM, chunk.last + 1)
        assert isinstance(sealed_from, int)
        if self.header and not is_sealed and (chunk.merged or chunk.last >= sealed_from):
            # Versions that wrote none wrote no such header.
            raise unreadable(chunk.path, ValueError("it has lost its hash"))
        return table

    def _sealed(self, path: Path, wanted: pa.Schema) -> pa.Table:
        table, is_sealed = self._read(path, wanted)
        if not is_sealed:
            raise unreadable(path, ValueError("it has lost its hash"))
        self._require_once(table)
        return table

    def _read(self, path: Path, wanted: pa.Schema) -> tuple[pa.Table, bool]:
        import pyarrow as pa
        try:
            table, is_sealed = read_sealed(path, wanted.names)
            metadata = table.schema.metadata or {}
            facts = facts_of(metadata)
            self._require_sealed_header(is_sealed)
            self._require_same_cut(facts)
            table = _with_all_columns(table, wanted).cast(wanted)
        except FileNotFoundError:
            raise  # another process may have put a block in its place
        except (OSError, pa.ArrowException, ValueError, KeyError, OverflowError) as error:
            raise unreadable(path, error) from error
        # The first version did not say to which specification a chunk belongs.
        if facts.get("spec", metadata.get(_SPEC_METADATA, b"").decode()) not in (
                "", self.spec_digest):
            raise foreign(path)
        return table, is_sealed

    def _require_sealed_header(self, is_sealed: bool) -> None:
        if self.header and is_sealed and SEALED_FROM not in self.header:
            raise ValueError(f"it holds its hash but {HEADER_NAME} beside it has lost its own")

    def _require_same_cut(self, facts: Mapping[str, object]) -> None:
        size = self.header.get(BLOCK_SIZE)
        if size is not None and facts.get("size", size) != size:
            raise ValueError(f"it is of blocks of {facts['size']} images, and the run is cut into "
                             f"blocks of {size}")

    def _require_once(self, table: pa.Table) -> None:
        keys = table.select(list(EXPERIMENTS.get(self.experiment).records.key)).to_pandas()
        twice = keys[keys.duplicated()]
        if len(twice):
            raise self._twice(str(twice.iloc[0]["image"]))

    def _require_each_once(self, whole: pa.Table, blocks: Sequence[pa.Table]) -> None:
        """Refuse an image of two blocks."""
        seen: set[str] = set()
        images = [block.column("image").unique() for block in blocks]
        if sum(map(len, images)) == len(whole.column("image").unique()):
            return
        for each in images:
            again = seen.intersection(each.to_pylist())
            if again:
                raise self._twice(min(again))
            seen.update(each.to_pylist())

    def _twice(self, image: str) -> OutputError:
        return OutputError("every image must be counted once",
                           seen=f"{image} stands twice in {self.folder}",
                           hint="start anew with --fresh")


def read_records(folder: Path, experiment: str, spec_digest: str, *,
                 columns: Sequence[str] | None = None) -> pa.Table:
    """Return all rows of a run: those of whole blocks in the order of the dataset.

    Text is held as dictionaries. Of the columns only those named are read beside ``error`` and
    those by which rows are known; None reads all. A column that an older version did not write is
    null. Rows of an image that failed count until it was measured again. Raises OutputError for a
    file that is not as it was written, for one of another run, and for an image that stands twice.
    """
    path = folder / HEADER_NAME
    reader = Reader(folder, experiment, spec_digest, read_header(path) if path.exists() else {})
    return patiently(folder, lambda listing: reader.rows(listing, columns))


def patiently(folder: Path, read: Callable[[Listing], T]) -> T:
    """Read of the files of a run, anew where another process put a block in the place of its parts.
    """
    for _ in range(_READINGS):
        with suppress(FileNotFoundError):
            return read(files_in(folder / RECORDS_FOLDER))
    raise OutputError("a run's records must stay where they are while they are read",
                      seen=f"some of {folder} vanished {_READINGS} times",
                      hint="wait for the process that writes them, and run the same command again")


def failed(table: pa.Table) -> pa.ChunkedArray:
    """Return which rows are of an image that failed; those that are excluded did not."""
    import pyarrow as pa
    import pyarrow.compute as pc
    reasons = table.column("error").cast(pa.string())
    return pc.and_(pc.is_valid(reasons), pc.fill_null(
        pc.invert(pc.starts_with(reasons, EXCLUDED)), False))


def chosen(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several tables, all those of an image from one of them.

    That is the last one in which it did not fail, else the last one. What two processes measured
    twice is the same.
    """
    import pyarrow as pa
    filled = [table for table in tables if len(table)]
    if len(filled) < 2:
        return filled[0] if filled else tables[0]
    table = pa.concat_tables(filled).unify_dictionaries()
    source = np.repeat(np.arange(len(filled)), [len(each) for each in filled])
    rank = source + len(filled) * ~failed(table).to_numpy()
    images = _indices(table)
    best = np.zeros(images.max() + 1, dtype=np.int64)
    np.maximum.at(best, images, rank)
    return table.filter(pa.array(best[images] % len(filled) == source))


def _not_among(table: pa.Table, whole: pa.Table) -> pa.ChunkedArray:
    """Return which rows are of an image that is not in ``whole``."""
    import pyarrow as pa
    import pyarrow.compute as pc
    there = whole.column("image").unique().cast(pa.string())
    return pc.invert(pc.is_in(table.column("image").cast(pa.string()), value_set=there))


def _indices(table: pa.Table) -> npt.NDArray[np.int32]:
    """Return a number for the image of each row."""
    return np.concatenate([part.indices.to_numpy() for part in table.column("image").chunks])


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


def _without_replaced(table: pa.Table, lengths: Sequence[int]) -> pa.Table:
    """Drop the rows of failed images that a later chunk measured again.

    Args:
        lengths: of the chunks that make up the table.
    """
    if not len(table) or not (rows := failed(table).to_numpy()).any():
        return table
    chunks = np.repeat(np.arange(len(lengths)), lengths)
    images = _indices(table)
    newest = np.zeros(images.max() + 1, dtype=np.int64)
    np.maximum.at(newest, images, chunks)
    again = rows & (chunks < newest[images])
    return table.filter(~again) if again.any() else table


def coded(columns: Mapping[str, Sequence[object]], experiment: str) -> pa.Table:
    """Return values by column as a table like those that are read."""
    import pyarrow as pa
    table = pa.Table.from_pydict(dict(columns), schema=schema(experiment))
    return pa.table([column.dictionary_encode() if column.type == pa.string() else column
                     for column in table.columns], names=table.column_names)


def outcomes(table: pa.Table) -> dict[str, bool]:
    """Return of each image in a table whether it failed."""
    images = table.column("image")
    bad = set(images.filter(failed(table)).unique().to_pylist())
    return {image: image in bad for image in images.unique().to_pylist()}
