"""Images that an experiment makes, kept in the folder of its run.

The files of a batch are on disk, and their hashes in a journal, before its records are: an image
with records has its files, whatever stopped the run. The index is made of the records when all
images have theirs, so it is the same however often that was.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.csvfiles import CsvKind, read_bytes
from sanrobust.data.pixels import encode
from sanrobust.data.saved import (FILE_NAME, FOLDER, INDEX, SOURCE, Source, read_index, read_source,
                                  stem)
from sanrobust.errors import DataError, UsageError
from sanrobust.experiments.base import Columns, Maker
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.files import atomic_write, output_error, write_text
from sanrobust.harmless import csv_text
from sanrobust.records import read_records

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sanrobust.data.imageset import ImageSet
    from sanrobust.data.loader import Batch, FailedImage
    from sanrobust.experiments.base import Model
    from sanrobust.preprocessing import Preprocessing
    from sanrobust.records import RunStore

_JOURNALS = f"{INDEX}.*.part"  # one of each process
_EARLIER_JOURNAL = f"{INDEX}.part"
_WRITERS = 8  # compressing leaves the interpreter's lock, and a disk takes many at a time
_JOURNAL_KIND = CsvKind("journal of saved images", ("", ""), "--out")
# As sha256sum writes it. What a kill has torn off does not fit; the next entries begin a new line.
_ENTRY = re.compile(rf"([0-9a-f]{{64}})  ({FILE_NAME.pattern})")


class Keeper:
    """A measurement whose images are saved before it returns their records.

    Args:
        measurement: of an experiment that makes images.
        store: the run, open.
        num_classes: of its model.
        classes: their names; None when unknown.

    Raises UsageError where images have records already but their files are not there.
    """

    def __init__(self, measurement: Maker, store: RunStore, *, num_classes: int,
                 classes: tuple[str, ...] | None) -> None:
        self._measurement, self._store = measurement, store
        self._num_classes, self._classes = num_classes, classes
        self.folder = store.folder / FOLDER
        self._known: dict[str, tuple[str, str]] = {}
        self._require_all_saved(self._records(("image", "error"))["stem"])

    @property
    def is_finished(self) -> bool:
        """Whether there is an index and nothing besides it and what it names."""
        return (self.folder / SOURCE).exists() and not _journals(self.folder)

    @property
    def gradient(self) -> bool:
        return self._measurement.gradient

    @property
    def batched(self) -> bool:
        return self._measurement.batched

    @property
    def notes(self) -> Sequence[str]:
        return self._measurement.notes

    def spec(self) -> Mapping[str, object]:
        """Return that of the measurement: what is saved changes no number."""
        return self._measurement.spec()

    def check(self, images: ImageSet, *, num_classes: int,
              preprocessing: Preprocessing) -> Sequence[str]:
        """Do what the measurement does."""
        return self._measurement.check(images, num_classes=num_classes,
                                       preprocessing=preprocessing)

    def failed(self, image: FailedImage) -> Columns:
        """Return what the measurement does; there is nothing to save."""
        return self._measurement.failed(image)

    def measure(self, model: Model, batch: Batch) -> Columns:
        """Measure a batch, save the images made of it and return the records."""
        columns, images = self._measurement.make(model, batch)
        names = _stems(columns["image"])
        self._save({name: image.cpu() for name, image in zip(names, images, strict=True)
                    if image is not None})
        return columns

    def _save(self, images: Mapping[str, Tensor]) -> None:
        """Write images under their stems, then their hashes into the journal."""
        pool = ThreadPoolExecutor(_WRITERS, "sanrobust-keep")
        try:
            files = list(pool.map(self._write, images, images.values()))
        finally:
            pool.shutdown(cancel_futures=True)
        self._known.update(zip(images, files))
        self._note([f"\n{digest}  {file}" for file, digest in files])

    def _write(self, name: str, image: Tensor) -> tuple[str, str]:
        """Write one image; return the name and the hash of its file."""
        suffix, content = encode(image)
        with atomic_write(self.folder / f"{name}.{suffix}") as stream:
            stream.write(content)
        return f"{name}.{suffix}", hashlib.sha256(content).hexdigest()

    def _note(self, entries: Sequence[str]) -> None:
        path = self.folder / f"{INDEX}.{self._store.token}.part"
        try:
            self.folder.mkdir(exist_ok=True)
            with path.open("ab") as journal:
                journal.write("".join(entries).encode())
                journal.flush()
                os.fsync(journal.fileno())
        except OSError as error:
            raise output_error(path, error) from error

    def finish(self, ids: Sequence[str]) -> None:
        """Write the index of a run that has the records of all its images, and its source.

        Args:
            ids: of its images, in their order.
        """
        kinds = EXPERIMENTS.get(self._store.spec.experiment).records.columns
        columns = [name for name, kind in kinds.items()
                   if name != "error" and not kind.startswith("list")]
        rows = self._records(columns)
        self._require_all_saved(rows["stem"])
        rows.insert(0, "file", [self._known[name][0] for name in rows["stem"]])
        rows["sha256"] = [self._known[name][1] for name in rows["stem"]]
        places = {image: place for place, image in enumerate(ids)}
        order = rows["image"].map(places).astype("int64").sort_values(kind="stable").index
        text = csv_text(rows.loc[order, ["file", *columns, "sha256"]])
        write_text(self.folder / INDEX, text)
        Source(self._store.spec.as_dict(), self._num_classes, self._classes,
               hashlib.sha256(text.encode()).hexdigest()).write(self.folder)
        self._sweep(set(rows["file"]))

    def _sweep(self, used: set[str]) -> None:
        """Remove the journals, and what was saved of images that were measured once more."""
        with suppress(OSError):
            for path in _journals(self.folder):
                path.unlink(missing_ok=True)
            for name in os.listdir(self.folder):
                if FILE_NAME.fullmatch(name) and name not in used:
                    (self.folder / name).unlink(missing_ok=True)

    def _require_all_saved(self, names: Iterable[str]) -> None:
        """Refuse records, read before, of which other processes and this one saved no images."""
        self._known.update(_saved_before(self.folder))
        there = set(os.listdir(self.folder)) if self.folder.is_dir() else set()
        lacking = [name for name in names
                   if name not in self._known or self._known[name][0] not in there]
        if lacking:
            images = len({name.partition("-")[0] for name in lacking})
            raise UsageError(
                "--save-adversarial must be given from a run's first image on",
                seen=f"{self._store.folder} holds the records of {images} image"
                     f"{'s'[:images != 1]} whose adversarial ones are not there",
                hint="add --fresh, which measures all of them again beside that run, or leave "
                     "--save-adversarial out")

    def _records(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns of the records of images that did not fail, with the stems of their files.
        """
        import pandas as pd
        import pyarrow as pa
        kinds = {pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}
        table = read_records(self._store.folder, self._store.spec.experiment,
                             self._store.spec.digest, columns=columns)
        rows: pd.DataFrame = table.to_pandas(types_mapper=kinds.get)
        rows = rows.assign(stem=_stems(rows["image"].tolist()))
        return rows[rows["error"].isna()].reset_index(drop=True)


def left_off(store: RunStore) -> str | None:
    """Say that a run goes on without saving, where it began to save; None where it did not."""
    folder = store.folder / FOLDER
    if not _journals(folder) or (folder / SOURCE).exists():
        return None
    return (f"{store.folder} began with --save-adversarial; without it the rest is not saved, and "
            "there will be no index of what is")


def _stems(images: Sequence[object]) -> list[str]:
    """Return the names without suffix of the files of rows, given the image of each."""
    counts: dict[object, int] = {}
    names = []
    for image in images:
        counts[image] = counts.get(image, 0) + 1
        names.append(stem(str(image), counts[image]))
    return names


def _journals(folder: Path) -> list[Path]:
    """Return the journals in a folder."""
    return sorted([*folder.glob(_JOURNALS), *folder.glob(_EARLIER_JOURNAL)])


def _saved_before(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the stem, name and hash of each file of a finished index and of the journals.

    The journals are read first: whoever removes them has written the index.
    """
    entries = [entry for path in _journals(folder) for entry in _entries(path)]
    with suppress(DataError):  # of another version, or damaged: as if nothing were saved
        for rows in read_index(folder, read_source(folder)) if (folder / SOURCE).exists() else ():
            yield from ((row.file.partition(".")[0], (row.file, row.sha256)) for row in rows)
    yield from entries


def _entries(journal: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    try:
        content = read_bytes(journal, _JOURNAL_KIND).decode("utf-8", "replace")
    except DataError:
        if journal.exists():
            raise
        return  # another process has written the index and removed it
    for match in filter(None, map(_ENTRY.fullmatch, content.split("\n"))):
        yield match[3], (match[2], match[1])
