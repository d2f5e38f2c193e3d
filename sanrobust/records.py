"""Per-image results on disk: append-only chunks that survive a kill at any moment.

A run's folder holds ``run.json`` (what was run, where, how long; see `sanrobust.runs`) and
``records/NNNNNN.parquet``. A chunk holds all rows of some images; it appears whole or not at all
and is never written again, so the images of the chunks present are exactly the images done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sanrobust.errors import OutputError
from sanrobust.files import TEMPORARY_SUFFIX, NameTaken, atomic_write, output_error, write_text
from sanrobust.spec import RunSpec, digest_of

if TYPE_CHECKING:
    import pyarrow as pa

RUNS_FOLDER = "runs"
HEADER_NAME = "run.json"
_SPEC_METADATA = "sanrobust.spec"
LOCK_NAME = "run.lock"

_COLUMNS: dict[str, dict[str, str]] = {
    "rotate": {"image": "string", "label": "int32", "view": "string", "pred": "int32",
               "top5_hit": "bool", "prob_label": "float32", "error": "string"},
    "pgd": {"image": "string", "label": "int32", "target": "int32", "eps": "float64",
            "step": "float64", "iters": "int32", "clean_pred": "int32", "adv_pred": "int32",
            "hit": "bool", "hit_any": "bool", "linf": "float32", "target_loss": "list<float>",
            "zero_gradient": "list<float>", "error": "string"},
}
_SPEC_KEYS = frozenset(("experiment", "model", "weights", "preprocessing", "data", "data_digest",
                        "images", "settings"))
KEYS: dict[str, tuple[str, ...]] = {
    "rotate": ("image", "view"),
    "pgd": ("image", "eps", "step", "iters"),
}


def column_names(experiment: str) -> tuple[str, ...]:
    """Return the names of an experiment's columns in their order."""
    return tuple(_COLUMNS[experiment])


def schema(experiment: str) -> pa.Schema:
    """Return the Arrow schema of an experiment's records; every column may hold nulls."""
    import pyarrow as pa
    kinds = {"string": pa.string(), "int32": pa.int32(), "float32": pa.float32(),
             "float64": pa.float64(), "bool": pa.bool_(), "list<float>": pa.list_(pa.float32())}
    return pa.schema([(name, kinds[kind]) for name, kind in _COLUMNS[experiment].items()])


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
        self._records = self.folder / "records"
        self._lock = FileLock(self.folder / LOCK_NAME, timeout=0)
        self._next_chunk = 0

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
        self._check_specification()
        for leftover in self.folder.rglob(f"*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)
        self._next_chunk = 1 + max(map(_chunk_number, _chunk_paths(self.folder)), default=-1)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _check_specification(self) -> None:
        header = self.header()
        if header and header.get("spec_digest") != self.spec.digest:
            raise OutputError("a run's folder must hold one specification",
                              seen=f"{self.folder} was written for another one",
                              hint="pass --fresh, or name another folder with --out")

    def header(self) -> dict[str, object]:
        """Return the content of ``run.json``, or an empty dict before the first write."""
        path = self.folder / HEADER_NAME
        return read_header(path) if path.exists() else {}

    def write_header(self, facts: Mapping[str, object]) -> None:
        """Write ``run.json``: the specification, its digest, and ``facts``."""
        header = {"spec": self.spec.as_dict(), "spec_digest": self.spec.digest, **facts}
        write_text(self.folder / HEADER_NAME, json.dumps(header, indent=2) + "\n")

    def append(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Add rows as one chunk.

        Args:
            columns: values per column; all rows of an image must be in the same call.

        Raises OutputError when the disk refuses it, or when another process has written the same
        chunk, which happens only where locks do nothing; its chunk stays as it is.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        table = pa.Table.from_pydict(dict(columns), schema=schema(self.spec.experiment))
        table = table.replace_schema_metadata({_SPEC_METADATA: self.spec.digest})
        path = self._records / f"{self._next_chunk:06d}.parquet"
        try:
            with atomic_write(path, replace=False) as stream:
                pq.write_table(table, stream, compression="zstd")
        except NameTaken:
            raise OutputError("one process at a time may write a run",
                              seen=f"another one has written {path}",
                              hint="wait for it to end, then type the same command again") from None
        self._next_chunk += 1

    def recorded(self) -> set[str]:
        """Return the ids of the images that have their records; raises OutputError on damage."""
        images = read_records(self.folder, self.spec.experiment, self.spec.digest).column("image")
        return set(images.to_pylist())


def read_records(folder: Path, experiment: str, spec_digest: str) -> pa.Table:
    """Return the rows of all chunks of a run in the order in which they were written.

    A column that an older version did not write is null. Raises OutputError for a chunk that does
    not read back, for one of another run, and for an image that stands twice.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    wanted = schema(experiment)
    tables = [wanted.empty_table()]
    for path in _chunk_paths(folder):
        try:
            chunk = pq.read_table(path)
            tables.append(_with_all_columns(chunk, wanted).cast(wanted))
        except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise OutputError("a chunk of records must read back", seen=f"{path} does not",
                              hint="restore the file, or start anew with --fresh") from error
        # Chunks of earlier versions do not say to which specification they belong.
        belongs = (chunk.schema.metadata or {}).get(_SPEC_METADATA.encode(), spec_digest.encode())
        if belongs != spec_digest.encode():
            raise OutputError("a run must hold records of its own specification alone",
                              seen=f"{path} was measured for another one",
                              hint="put the file back where it was, or start anew with --fresh")
    table = pa.concat_tables(tables)
    _check_counted_once(table, experiment, folder)
    return table


def read_header(path: Path) -> dict[str, object]:
    """Return the content of a ``run.json``.

    Raises OutputError when it is none, or when its specification is not the one it was written
    with.
    """
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(header, dict) or not isinstance(header.get("spec"), dict):
            raise ValueError("no specification in it")
        lacking = _SPEC_KEYS - set(header["spec"])
        if lacking:
            raise ValueError(f"its specification lacks {', '.join(sorted(lacking))}")
        if header.get("spec_digest", digest_of(header["spec"])) != digest_of(header["spec"]):
            raise ValueError("its specification was changed after it was written")
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError("a run's header must read back", seen=f"{path} does not ({error})",
                          hint="delete that run's folder, or start anew with --fresh") from error
    return header


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


def _chunk_paths(folder: Path) -> list[Path]:
    """Return the chunks in the order of their numbers, which may have gaps: a lost chunk's images
    count as not measured."""
    paths = [path for path in (folder / "records").glob("*.parquet") if path.stem.isdecimal()]
    return sorted(paths, key=_chunk_number)


def _chunk_number(path: Path) -> int:
    return int(path.stem)


def _with_all_columns(table: pa.Table, wanted: pa.Schema) -> pa.Table:
    import pyarrow as pa
    columns = [table.column(field.name) if field.name in table.column_names
               else pa.nulls(len(table), field.type) for field in wanted]
    return pa.table(columns, names=wanted.names)


def _check_counted_once(table: pa.Table, experiment: str, folder: Path) -> None:
    keys = table.select(list(KEYS[experiment])).to_pandas()
    twice = keys[keys.duplicated()]
    if len(twice):
        raise OutputError("every image must be counted once",
                          seen=f"{twice.iloc[0]['image']} stands twice in {folder}",
                          hint="start anew with --fresh")
