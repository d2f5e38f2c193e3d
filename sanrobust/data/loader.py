"""Batches of pixels in a given order, decoded here or by worker processes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sanrobust.data.decode import ImageError, ImageTrouble
from sanrobust.data.fit import fitted
from sanrobust.data.imageset import ImageRef, ImageSet
from sanrobust.errors import DataError, UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.processes import become_worker, stops_held, workers_ended_on_error
from sanrobust.trouble import lacking


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be decoded, and the short reason.

    Attributes:
        passing: whether the reason is trouble with reading or the machine, which may pass, and no
            property of the image.
    """

    id: str
    label: int
    reason: str
    passing: bool = False


@dataclass(frozen=True, eq=False)
class Batch:
    """The decoded images of one batch, in the order of its plan; failed ones stand apart.

    ``labels`` is int64 (B,), ``pixels`` float32 (B, 3, S, S) in [0, 1]; B may be 0.
    """

    ids: tuple[str, ...]
    labels: Tensor
    pixels: Tensor
    failures: tuple[FailedImage, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """Return the same batch with its tensors on a device.

        Pinned ones are copied while the CPU goes on; what the device computes with them waits.
        """
        on_its_way = device.type == "cuda"
        return replace(self, labels=self.labels.to(device, non_blocking=on_its_way),
                       pixels=self.pixels.to(device, non_blocking=on_its_way))

    def pin_memory(self) -> Batch:
        """Return the same batch in memory that a GPU reads by itself; torch's loader calls it."""
        return replace(self, labels=self.labels.pin_memory(), pixels=self.pixels.pin_memory())

    def part(self, positions: Sequence[int]) -> Batch:
        """Return the decoded images at ``positions``, none of the failed ones."""
        chosen = list(positions)
        return Batch(tuple(self.ids[place] for place in chosen), self.labels[chosen],
                     self.pixels[chosen])

    def failed(self, position: int, reason: str) -> FailedImage:
        """Return image ``position`` as one that has no measurements."""
        return FailedImage(self.ids[position], int(self.labels[position]), reason)


def batches(images: ImageSet, preprocessing: Preprocessing, *, plan: Sequence[Sequence[int]],
            workers: int, pinned: bool = False) -> Generator[Batch, None, None]:
    """Yield one `Batch` for each list of indices in ``plan``, in that order.

    The batches do not depend on ``workers``, the number of processes that decode (0: this one), nor
    on whether they lie in ``pinned`` memory, from which a GPU copies without the CPU.
    Closing the generator ends the processes. Raises UsageError for a negative number of workers,
    and DataError when a worker process dies or has no memory to hand its images over.
    """
    if workers < 0:
        raise UsageError("--workers must be 0 or more", seen=f"it is {workers}",
                         hint="give 0 to decode in the main process")
    return _batches(_Pixels(images, preprocessing), plan=plan, workers=min(workers, len(plan)),
                    pinned=pinned)


_Item = tuple[ImageRef, Tensor | ImageError]


class _Pixels(Dataset[_Item]):
    """Image ``index`` as its reference and either its pixels or the reason why not."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images = images
        self.preprocessing = preprocessing

    def __getitem__(self, index: int) -> _Item:
        ref = self.images.refs[index]
        try:
            return ref, fitted(self.images.load(index), self.preprocessing)
        except ImageError as error:
            return ref, error
        except (MemoryError, RuntimeError) as error:  # the transform's
            lacks = lacking(error)
            if lacks is None:
                raise
            return ref, ImageTrouble(f"the machine has not enough {lacks} to prepare it")

    def collate(self, items: Sequence[_Item]) -> Batch:
        """Join the items of one batch."""
        good = [(ref, pixels) for ref, pixels in items if isinstance(pixels, Tensor)]
        side = self.preprocessing.img_size
        stacked = torch.empty(len(good), 3, side, side)
        if get_worker_info() is not None:
            # Asked for here, a lack of shared memory is an error with its reason; asked for later,
            # while the batch is sent, it would cost the worker.
            stacked.untyped_storage().share_memory_()
        for row, (_, pixels) in zip(stacked, good, strict=True):
            row.copy_(pixels)
        return Batch(
            ids=tuple(ref.id for ref, _ in good),
            labels=torch.tensor([ref.label for ref, _ in good], dtype=torch.int64),
            pixels=stacked,
            failures=tuple(FailedImage(ref.id, ref.label, str(error),
                                       isinstance(error, ImageTrouble))
                           for ref, error in items if isinstance(error, ImageError)),
        )


def _batches(pixels: _Pixels, *, plan: Sequence[Sequence[int]], workers: int, pinned: bool
             ) -> Generator[Batch, None, None]:
    loader = DataLoader(
        pixels,
        batch_sampler=[list(indices) for indices in plan],
        collate_fn=pixels.collate,
        num_workers=workers,
        pin_memory=pinned,
        worker_init_fn=_start_worker,
        # Its own generator, because a loader without one draws from torch's global one.
        generator=torch.Generator().manual_seed(0),
    )
    iterator = _started(loader, workers)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError, MemoryError) as error:
                reason = _lost_worker(error) if workers else None
                if reason is None:
                    raise
                raise _worker_error(reason, workers=workers) from error
            yield batch
    finally:
        _end_workers(iterator)


def _started(loader: DataLoader[_Item], workers: int) -> Iterator[Batch]:
    """Start the processes; where the machine refuses one, the others end."""
    if not workers:
        return iter(loader)
    try:
        with workers_ended_on_error(), stops_held(), _child_signal_kept():
            return iter(loader)
    except (RuntimeError, OSError, MemoryError) as error:
        raise _worker_error(_last_line(error), workers=workers) from error


@contextmanager
def _child_signal_kept() -> Iterator[None]:
    """Keep torch from telling of a dead worker by an exception wherever Python happens to be.

    Without its handler the death is seen in `next`, within five seconds, where it can be told.
    """
    is_main = threading.current_thread() is threading.main_thread()
    number = getattr(signal, "SIGCHLD", None) if is_main else None  # Windows has none
    before = None if number is None else signal.getsignal(number)
    try:
        yield
    finally:
        if number is not None:
            signal.signal(number, before or signal.SIG_DFL)


def _end_workers(iterator: object) -> None:
    """End the processes of a loader's iterator before anything else goes on.

    Torch ends them when the last reference is gone, but an exception's frames may hold one for
    long. When the garbage collector ends them, the queues are gone before the processes, and torch
    waits until its time is up for each of them.
    """
    end = getattr(iterator, "_shutdown_workers", None)
    if end is not None:
        with suppress(RuntimeError):  # torch's word of a dead worker, which is told already
            end()


def _lost_worker(error: Exception) -> str | None:
    """Say what took a worker away; None when the error is of another kind."""
    # What a worker raises comes back as its own type, but with a text that begins like this.
    is_pipe_broken = (isinstance(error, OSError | EOFError)
                      and not str(error).startswith("Caught "))
    if is_pipe_broken or "DataLoader worker (pid" in str(error) or lacking(error):
        return _last_line(error) or "it ended while its images were fetched"
    return None


def _last_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[-1]


def _worker_error(reason: str, *, workers: int) -> DataError:
    return DataError("the processes that decode images must start, stay alive and have memory to "
                     "share", seen=f"one of {workers} failed ({reason})",
                     hint="use fewer workers, a smaller --batch-size, or --workers 0")


def _start_worker(_: int) -> None:
    become_worker()
    torch.set_num_threads(1)
    # A batch that could not be sent is lost, and the main process would wait for it for ever; that
    # a worker is lost it sees.
    Queue._on_queue_feeder_error = staticmethod(_end_unheard)  # type: ignore[attr-defined]


def _end_unheard(error: Exception, batch: object) -> None:
    os._exit(1)
