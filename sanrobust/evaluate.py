"""The loop of every experiment: batch, view or attack, model, records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import Batch, FailedImage, batches
from sanrobust.errors import DataError, NonFiniteError
from sanrobust.experiments.base import Columns, Measurement, stacked
from sanrobust.preprocessing import Preprocessing
from sanrobust.processes import end_if_stopped, uninterrupted
from sanrobust.progress import Progress
from sanrobust.records import RunStore, chunked
from sanrobust.trouble import out_of_memory

if TYPE_CHECKING:
    from sanrobust.experiments.base import Model

FLUSH_SECONDS = 2.0
FLUSH_IMAGES = 4096
UNREADABLE_IN_A_ROW = 64
"""So many images without one that can be read mean that their folder is gone."""


class _Buffer:
    """Rows of whole batches on their way to the store, which gets them every few seconds.

    Rows that the store refuses are dropped: their images count as not measured.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._tables: list[Columns] = []
        self._images = 0
        self._since = time.monotonic()

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def add(self, tables: Sequence[Columns], images: int) -> None:
        with uninterrupted():
            self._tables += tables
            self._images += images
            if self._images >= FLUSH_IMAGES or time.monotonic() - self._since >= FLUSH_SECONDS:
                self.flush()

    def flush(self) -> None:
        with uninterrupted():
            tables, self._tables = self._tables, []
            if tables:
                self._store.append(stacked(tables))
            self._images, self._since = 0, time.monotonic()


class _Unread:
    """The images that could not be had for a reason that may pass: they get no records."""

    def __init__(self) -> None:
        self._failures: list[FailedImage] = []
        self._in_a_row = 0

    def note(self, batch: Batch) -> None:
        """Note those of a batch; raises DataError when there seems to be no other any more."""
        unread = [failure for failure in batch.failures if failure.passing]
        self._failures += unread
        is_all = len(unread) == len(batch.ids) + len(batch.failures)
        self._in_a_row = self._in_a_row + len(unread) if is_all else 0
        if self._in_a_row >= UNREADABLE_IN_A_ROW:
            self.require_none(f"the last {self._in_a_row} could not be read")

    def require_none(self, seen: str = "") -> None:
        """Raise DataError when there is one."""
        if self._failures:
            last = self._failures[-1]
            raise DataError(
                "every image must be readable while it is measured",
                seen=f"{seen or f'{len(self._failures)} could not be read'} ({last.id}: "
                     f"{last.reason})",
                hint="see to it that they can, and type the same command again, which tries them "
                     "once more; the records of all others are saved")


def evaluate(model: Model, images: ImageSet, measurement: Measurement, store: RunStore, *,
             preprocessing: Preprocessing, batch_size: int, workers: int, device: torch.device,
             progress: Progress, retry_failed: bool = False) -> None:
    """Measure every image that ``store`` does not hold yet and append the records.

    Batches are cut at the same places of the dataset however often the run was stopped, so a
    resumed run repeats the arithmetic of an uninterrupted one. Rows computed before an
    exception, Ctrl-C included, are saved before it goes on.

    Args:
        retry_failed: measure those as well that are recorded as failed.

    Raises DataError when images could not be read or decoded for a reason that may pass: at the
    end, or at once when nothing can be read any more.
    """
    done = store.recorded(but_failed=retry_failed)
    plan = [[index for index in block if images.refs[index].id not in done]
            for block in chunked(len(images.refs), batch_size)]
    plan = [indices for indices in plan if indices]
    buffer, unread = _Buffer(store), _Unread()
    progress.begin(f"{store.spec.experiment} {store.spec.model}", total=len(images.refs),
                   done=len(done))
    with buffer:
        try:
            loaded = batches(images, preprocessing, plan=plan, workers=workers,
                             pinned=device.type == "cuda")
            for indices, batch in zip(plan, loaded, strict=True):
                tables = _measure_batch(model, batch, measurement, device)
                if tables:
                    ids = [images.refs[index].id for index in indices]
                    buffer.add([in_order(stacked(tables), ids)], len(indices))
                progress.advance(len(indices))
                unread.note(batch)
                end_if_stopped()
        finally:
            buffer.flush()  # again on leaving, in case that a signal came right before this
            progress.end()
    unread.require_none()


def _measure_batch(model: Model, batch: Batch, measurement: Measurement,
                   device: torch.device) -> list[Columns]:
    tables = _measure(model, batch.to(device), measurement) if batch.ids else []
    return tables + [measurement.failed(image) for image in batch.failures if not image.passing]


def in_order(columns: Columns, ids: Sequence[str]) -> Columns:
    """Sort rows into the order of ``ids``; the rows of one image keep theirs."""
    place = {image: position for position, image in enumerate(ids)}
    images = columns["image"]
    order = sorted(range(len(images)), key=lambda row: place[str(images[row])])
    return {name: [values[row] for row in order] for name, values in columns.items()}


def _measure(model: Model, batch: Batch, measurement: Measurement) -> list[Columns]:
    """Measure a batch, its halves where it does not fit into memory or some image has no numbers.

    An image whose logits or gradients are not finite is recorded as failed, by itself.
    """
    try:
        return [measurement.measure(model, batch)]
    except NonFiniteError as error:
        if len(batch.ids) == 1:
            return [measurement.failed(batch.failed(0, f"{error.rule}, but {error.seen}"))]
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or len(batch.ids) == 1:
            raise
    if batch.pixels.is_cuda:
        torch.cuda.empty_cache()
    half = len(batch.ids) // 2
    parts = range(half), range(half, len(batch.ids))
    return [table for part in parts for table in _measure(model, batch.part(part), measurement)]
