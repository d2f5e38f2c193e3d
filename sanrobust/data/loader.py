"""Batches of pixels in a given order, decoded here or by worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sanrobust.data.decode import ImageError, ImageTrouble
from sanrobust.data.imageset import ImageRef, ImageSet
from sanrobust.data.transforms import to_pixels
from sanrobust.errors import DataError, UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.trouble import lacking


@dataclass(frozen=True)
class Failure:
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
    failures: tuple[Failure, ...]


def batches(images: ImageSet, preprocessing: Preprocessing, *, plan: Sequence[Sequence[int]],
            workers: int) -> Iterator[Batch]:
    """Yield one `Batch` for each list of indices in ``plan``, in that order.

    The batches do not depend on ``workers``, the number of processes that decode (0: this one).
    Closing the generator ends the processes. Raises UsageError for a negative number of workers,
    and DataError when a worker process dies or has no memory to hand its images over.
    """
    if workers < 0:
        raise UsageError("--workers must be 0 or more", seen=f"it is {workers}",
                         hint="give 0 to decode in the main process")
    return _batches(_Pixels(images, preprocessing), plan=plan, workers=workers)


_Item = tuple[ImageRef, Tensor | ImageError]


class _Pixels(Dataset[_Item]):
    """Image ``index`` as its reference and either its pixels or the reason why not."""

    def __init__(self, images: ImageSet, preprocessing: Preprocessing) -> None:
        self.images = images
        self.preprocessing = preprocessing

    def __getitem__(self, index: int) -> _Item:
        ref = self.images.refs[index]
        try:
            return ref, to_pixels(self.images.load(index), self.preprocessing)
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
            # Asked for here, a lack of shared memory is an error; asked for later, while the
            # batch is sent, it would lose the batch and leave the main process waiting.
            stacked.untyped_storage().share_memory_()
        for row, (_, pixels) in zip(stacked, good, strict=True):
            row.copy_(pixels)
        return Batch(
            ids=tuple(ref.id for ref, _ in good),
            labels=torch.tensor([ref.label for ref, _ in good], dtype=torch.int64),
            pixels=stacked,
            failures=tuple(Failure(ref.id, ref.label, str(error), isinstance(error, ImageTrouble))
                           for ref, error in items if isinstance(error, ImageError)),
        )


def _batches(pixels: _Pixels, *, plan: Sequence[Sequence[int]], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        pixels,
        batch_sampler=[list(indices) for indices in plan],
        collate_fn=pixels.collate,
        num_workers=workers,
        worker_init_fn=_start_worker,
        # Its own generator, because a loader without one draws from torch's global one.
        generator=torch.Generator().manual_seed(0),
    )
    with _sigint_held():
        iterator = iter(loader)
    try:
        while True:
            try:
                batch: Batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                reason = _lost_worker(error) if workers else None
                if reason is None:
                    raise
                raise _worker_error(reason, workers=workers) from error
            yield batch
    finally:
        _end_workers(iterator)


def _end_workers(iterator: object) -> None:
    """End the processes of a loader's iterator before anything else goes on.

    Torch ends them when the last reference is gone, but an exception's frames may hold one for
    long, and collected as garbage the queues go first and each process is waited for in vain.
    """
    end = getattr(iterator, "_shutdown_workers", None)
    if end is not None:
        with suppress(RuntimeError):  # torch's word of a dead worker, which is told already
            end()


def _lost_worker(error: Exception) -> str | None:
    """Say what took a worker away; None when the error is of another kind."""
    text = str(error)
    # What a worker raises comes back as its own type, but with a text that begins like this.
    is_pipe_broken = isinstance(error, OSError | EOFError) and not text.startswith("Caught ")
    if is_pipe_broken or "DataLoader worker (pid" in text or "shared memory" in text:
        return text.splitlines()[-1] if text else "it ended while its images were fetched"
    return None


def _worker_error(reason: str, *, workers: int) -> DataError:
    return DataError("the processes that decode images must stay alive and have shared memory",
                     seen=f"with --workers {workers} one failed ({reason})",
                     hint="use fewer workers, a smaller --batch-size, or --workers 0")


@contextmanager
def _sigint_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers start: until they can ignore it, it would kill them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)
