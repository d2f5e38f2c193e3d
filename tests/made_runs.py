"""Small runs on disk that no model was needed for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from sanrobust.experiments.rotation import ROTATION
from sanrobust.header import started
from sanrobust.data.views import VIEWS
from sanrobust.preprocessing import Preprocessing
from sanrobust.records import RunStore
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


def make_run(out: Path, *chunks: Sequence[str], spec: RunSpec = SPEC, fresh: bool = False,
             ids: Sequence[str] = IDS) -> Run:
    """Measure the images of each chunk; they must be those of the specification."""
    spec = replace(spec, images=len(ids))
    with RunStore(out, spec, fresh=fresh) as store:
        with started(store, ids, facts={"command": COMMAND}, remarks={"probe": ["it is odd"]}):
            for chunk in chunks:
                store.append(rows(chunk))
    return open_run(store.folder)


def as_of_an_earlier_version(run: Run) -> None:
    """Take away what earlier versions did not write: all hashes, the order and the key for them."""
    for path in chunk_files(run):
        pq.write_table(pq.read_table(path), path)
    new = ("sealed_from", "order")
    header = {key: value for key, value in run.header.items() if key not in new}
    (run.folder / "run.json").write_text(json.dumps(header, indent=2))


def chunk_files(run: Run) -> list[Path]:
    """The files of its records, in order of name."""
    return sorted((run.folder / "records").iterdir())
