"""Small runs on disk that no model was needed for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sanrobust.data.views import VIEWS
from sanrobust.experiments.rotation import ROTATION
from sanrobust.header import started
from sanrobust.preprocessing import Preprocessing
from sanrobust.records import RunStore, ids_digest, write_header_file
from sanrobust.records import plan as plan_module
from sanrobust.records.reader import schema
from sanrobust.records.sealed import write_sealed
from sanrobust.runs import Run, open_run
from sanrobust.spec import RunSpec

IDS = ("a", "b", "c", "d")
SPEC = RunSpec(experiment="rotate", model="m.t", weights="00", preprocessing=Preprocessing(),
               data="d", data_digest="11", images=len(IDS), settings={"views": list(VIEWS)})
COMMAND = "sanrobust rotate -m m.t"


def rows(ids: Sequence[str], *, error: str | None = None) -> dict[str, list[object]]:
    """Records of right predictions, or of images that failed."""
    images = [image for image in ids for _ in VIEWS]
    values: dict[str, list[object]] = {name: [None] * len(images)
                                       for name in ROTATION.records.columns}
    values.update(image=images, label=[1] * len(images), view=list(VIEWS) * len(ids),
                  error=[error] * len(images))
    if error is None:
        values.update(pred=[1] * len(images), top5_hit=[True] * len(images),
                      prob_label=[0.5] * len(images))
    return values


def append(store: RunStore, columns: dict[str, list[object]]) -> None:
    """Add rows to the blocks of their images, which are neighbours."""
    images = [str(image) for image in columns["image"]]
    for block in range(store.plan.blocks):
        places = [place for place, image in enumerate(images)
                  if image in store.plan.ids_of(block)]
        if places:
            store.append(block, {name: [values[place] for place in places]
                                 for name, values in columns.items()})
            store.finish(block)


def make_run(out: Path, *parts: Sequence[str], spec: RunSpec = SPEC, fresh: bool = False,
             ids: Sequence[str] = IDS, block: int | None = None) -> Run:
    """Measure the images of each part; they must be those of the specification.

    A new run is cut into blocks of so many images, by default of as many as the first part has.
    """
    spec = replace(spec, images=len(ids))
    size = block or len(parts[0] if parts else ids)
    with RunStore(out, spec, fresh=fresh) as store, blocks_of(size):
        with started(store, ids, facts={"command": COMMAND}, remarks={"probe": ["it is odd"]}):
            for part in parts:
                append(store, rows(part))
    return open_run(store.folder)


@contextmanager
def blocks_of(images: int) -> Iterator[None]:
    """Cut runs that are begun within into blocks of so many images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_SMALLEST", images)
        yield


def make_old_run(out: Path, *chunks: Sequence[str], spec: RunSpec = SPEC, sealed: bool = True,
                 status: str = "complete", ids: Sequence[str] = IDS) -> Run:
    """Make a run as versions wrote it that kept numbered chunks and all starts in the header."""
    spec = replace(spec, images=len(ids))
    folder = out / "runs" / spec.run_id
    (folder / "records").mkdir(parents=True)
    for number, chunk in enumerate(chunks):
        write_chunk(folder / "records" / f"{number:06d}.parquet", rows(chunk), spec)
    if not sealed:
        for path in (folder / "records").iterdir():
            pq.write_table(pq.read_table(path), path)
    start = {"started": "2026-01-01T00:00:00.000+00:00", "command": COMMAND, "seconds": 5.0,
             "weights_source": "random", "batch_size": 7}
    header = {"status": status, "started": start["started"], "updated": start["started"],
              "seconds": 5.0, "ids_digest": ids_digest(ids), "command": COMMAND,
              "probe": ["it is odd"], "starts": [start], "spec": spec.as_dict(),
              "spec_digest": spec.digest}
    if sealed:
        write_header_file(folder / "run.json", {**header, "order": 1, "sealed_from": 0})
    else:
        (folder / "run.json").write_text(json.dumps(header, indent=2))
    return open_run(folder)


def write_chunk(path: Path, columns: Mapping[str, Sequence[object]], spec: RunSpec) -> None:
    """Write rows as a chunk of an earlier version, with its hash and no facts but one."""
    chunk_of(path, columns, spec.experiment, spec.digest)


def chunk_of(path: Path, columns: Mapping[str, Sequence[object]], experiment: str,
             spec_digest: str) -> None:
    """Do as `write_chunk` for a run of which the specification is on disk alone."""
    table = pa.Table.from_pydict(dict(columns), schema=schema(experiment))
    write_sealed(path, table.replace_schema_metadata({"sanrobust.spec": spec_digest}), {})


def record_files(run: Run) -> list[Path]:
    """The files of its records, in order of name."""
    return sorted((run.folder / "records").iterdir())
