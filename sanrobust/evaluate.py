"""The loop of every experiment: batch, view or attack, model, records."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import Batch, FailedImage, batches
from sanrobust.errors import DataError, NonFiniteError
from sanrobust.experiments.base import Columns, Measurement, stacked
from sanrobust.preprocessing import Preprocessing
from sanrobust.processes import end_if_stopped, uninterrupted
from sanrobust.progress import Progress
from sanrobust.records import RunStore, Share, Start, batches_of
from sanrobust.trouble import out_of_memory

if TYPE_CHECKING:
    from sanrobust.experiments.base import Model

FLUSH_SECONDS = 2.0
FLUSH_IMAGES = 4096
UNREADABLE_IN_A_ROW = 64
"""So many images without one that can be read mean that their folder is gone."""


class _Buffer:
    """Rows of whole batches of one block on their way to the store, every few seconds.

    Rows that the store refuses are dropped: their images count as not measured.
    """

    def __init__(self, store: RunStore, block: int) -> None:
        self._store, self._block = store, block
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
                self._store.append(self._block, stacked(tables))
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


@dataclass(frozen=True, eq=False)
class Loop:
    """Measures blocks of a run.

    Attributes:
        model, images, measurement: what is measured.
        store: takes the records.
        start: this process, which says how far it is.
        preprocessing: how images become pixels.
        batch_size, workers, device: how it is computed.
        progress: is told of every image.
    """

    model: Model
    images: ImageSet
    measurement: Measurement
    store: RunStore
    start: Start
    preprocessing: Preprocessing
    batch_size: int
    workers: int
    device: torch.device
    progress: Progress

    def measure(self, share: Share) -> None:
        """Measure every image of a share that has no records yet, and append the records.

        Batches are cut at the same places of each block however often the run was stopped, so a
        resumed run repeats the arithmetic of an uninterrupted one. Rows computed before an
        exception, Ctrl-C included, are saved before it goes on.

        Raises DataError when images could not be read or decoded for a reason that may pass: at
        the end, or at once when nothing can be read any more.
        """
        unread, spec = _Unread(), self.store.spec
        title = f"{spec.experiment} {spec.model}{share.words}"
        # Processes that decode are worth their start for many blocks at once.
        groups = [share.own] if self.workers else [[block] for block in share.own]
        with self._shown(title, total=share.images, done=share.images - share.count_own()):
            for blocks in groups:
                self._measure_blocks(blocks, share, unread)
        if left := share.count_left():
            with self._shown(f"{title}, what others left", total=left, done=0):
                for block in share.left():
                    self._measure_blocks([block], share, unread)
        unread.require_none()

    @contextmanager
    def _shown(self, title: str, *, total: int, done: int) -> Iterator[None]:
        self.progress.begin(title, total=total, done=done)
        try:
            yield
        finally:
            self.progress.end()

    def _measure_blocks(self, blocks: Sequence[int], share: Share, unread: _Unread) -> None:
        cut = {block: [*batches_of(share.todo(block), self.store.plan.positions(block),
                                   self.batch_size)] for block in blocks}
        plan = [indices for several in cut.values() for indices in several]
        with closing(batches(self.images, self.preprocessing, plan=plan, workers=self.workers,
                             pinned=self.device.type == "cuda")) as loaded:
            for block, several in cut.items():
                if share.take(block):
                    self._measure_block(block, several, loaded, unread)
                else:
                    self._pass_over(several, loaded)

    def _pass_over(self, several: Sequence[Sequence[int]], loaded: Iterator[Batch]) -> None:
        """Leave a block that another process has measured or is measuring."""
        for indices in several:
            if self.workers:  # which decode its batches before those of the next block
                next(loaded)
            self.progress.advance(len(indices))

    def _measure_block(self, block: int, several: Sequence[Sequence[int]],
                       loaded: Iterator[Batch], unread: _Unread) -> None:
        with _Buffer(self.store, block) as buffer:
            try:
                for indices in several:
                    batch = next(loaded)
                    tables = _measure_batch(self.model, batch, self.measurement, self.device)
                    if tables:
                        ids = [self.images.refs[index].id for index in indices]
                        buffer.add([in_order(stacked(tables), ids)], len(indices))
                    self.progress.advance(len(indices))
                    self.start.count(len(indices))
                    unread.note(batch)
                    end_if_stopped()
            finally:
                buffer.flush()  # again on leaving, in case that a signal came right before this
        with uninterrupted():
            self.store.finish(block)


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
