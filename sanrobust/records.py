"""Per-image results on disk: append-only chunks that survive a kill at any moment.

A run's folder holds ``run.json`` (what was run, where, how long) and ``records/NNNNNN.parquet``.
A chunk holds all rows of some images; it appears whole or not at all, so the images of the
chunks present are exactly the images done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sanrobust.errors import OutputError
from sanrobust.files import TEMPORARY_SUFFIX, atomic_write, output_error, write_text
from sanrobust.spec import RunSpec

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

RUNS_FOLDER = "runs"
HEADER_NAME = "run.json"

_COLUMNS: dict[str, dict[str, str]] = {
    "rotate": {"image": "string", "label": "int32", "view": "string", "pred": "int32",
               "top5_hit": "bool", "prob_label": "float32", "error": "string"},
    "pgd": {"image": "string", "label": "int32", "target": "int32", "eps": "float64",
            "step": "float64", "iters": "int32", "clean_pred": "int32", "adv_pred": "int32",
            "hit": "bool", "hit_any": "bool", "linf": "float32", "target_loss": "list<float>",
            "error": "string"},
}
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


@dataclass(frozen=True)
class Run:
    """One run found on disk.

    Attributes:
        folder: where it lives.
        header: content of ``run.json``.
    """

    folder: Path
    header: Mapping[str, object]

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str(self.spec["experiment"])

    @property
    def spec(self) -> Mapping[str, object]:
        """The specification as written."""
        value = self.header["spec"]
        assert isinstance(value, dict)
        return value

    @property
    def complete(self) -> bool:
        """Whether every image has its records."""
        return self.header.get("status") == "complete"

    def records(self) -> pd.DataFrame:
        """Return all rows in the order of the dataset; raises OutputError on damage."""
        frame: pd.DataFrame = _read_chunks(self.folder, self.experiment).to_pandas()
        return frame


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
        self.folder = _attempt_folder(out / RUNS_FOLDER, spec, fresh=fresh)
        self._records = self.folder / "records"
        self._lock = FileLock(self.folder / "run.lock", timeout=0)
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
        self._next_chunk = len(_chunk_paths(self.folder))
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
        return _read_header(path) if path.exists() else {}

    def write_header(self, facts: Mapping[str, object]) -> None:
        """Write ``run.json``: the specification, its digest, and ``facts``."""
        header = {"spec": self.spec.as_dict(), "spec_digest": self.spec.digest, **facts}
        write_text(self.folder / HEADER_NAME, json.dumps(header, indent=2) + "\n")

    def append(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Add rows as one chunk; raises OutputError when the disk refuses it.

        Args:
            columns: values per column; all rows of an image must be in the same call.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq
        table = pa.Table.from_pydict(dict(columns), schema=schema(self.spec.experiment))
        with atomic_write(self._records / f"{self._next_chunk:06d}.parquet") as stream:
            pq.write_table(table, stream, compression="zstd")
        self._next_chunk += 1

    def recorded(self) -> set[str]:
        """Return the ids of the images that have their records; raises OutputError on damage."""
        images = _read_chunks(self.folder, self.spec.experiment).column("image")
        return set(images.to_pylist())


def find_runs(out: Path, experiment: str) -> list[Run]:
    """Return the runs of ``experiment`` under ``out``, oldest first by their start."""
    paths = sorted((out / RUNS_FOLDER).glob(f"{experiment}-*/{HEADER_NAME}"))
    runs = [Run(path.parent, _read_header(path)) for path in paths]
    return sorted((run for run in runs if run.experiment == experiment),
                  key=lambda run: (str(run.header.get("started", "")), run.folder.name))


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
    """Return the chunks in order; a hole in their numbers means that a file was lost."""
    paths = sorted((folder / "records").glob("*.parquet"))
    if [path.stem for path in paths] != [f"{number:06d}" for number in range(len(paths))]:
        raise OutputError("a run's chunks must be numbered without holes",
                          seen=f"{folder / 'records'} lacks some of its {len(paths)}",
                          hint="restore the missing file, or start anew with --fresh")
    return paths


def _read_chunks(folder: Path, experiment: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq
    wanted = schema(experiment)
    tables = [wanted.empty_table()]
    for path in _chunk_paths(folder):
        try:
            tables.append(pq.read_table(path).cast(wanted))
        except (OSError, pa.ArrowInvalid, ValueError) as error:
            raise OutputError("a chunk of records must read back", seen=f"{path} does not",
                              hint="restore the file, or start anew with --fresh") from error
    table = pa.concat_tables(tables)
    _check_counted_once(table, experiment, folder)
    return table


def _check_counted_once(table: pa.Table, experiment: str, folder: Path) -> None:
    keys = table.select(list(KEYS[experiment])).to_pandas()
    twice = keys[keys.duplicated()]
    if len(twice):
        raise OutputError("every image must be counted once",
                          seen=f"{twice.iloc[0]['image']} stands twice in {folder}",
                          hint="start anew with --fresh")


def _read_header(path: Path) -> dict[str, object]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(header, dict) or not isinstance(header.get("spec"), dict):
            raise ValueError("no specification in it")
    except (OSError, ValueError) as error:
        raise OutputError("a run's header must read back", seen=f"{path} does not ({error})",
                          hint="delete that run's folder, or start anew with --fresh") from error
    return header


def chunked(images: int, batch_size: int) -> Iterator[range]:
    """Yield the dataset's positions in blocks of ``batch_size``, always cut at the same places."""
    for start in range(0, images, batch_size):
        yield range(start, min(start + batch_size, images))
