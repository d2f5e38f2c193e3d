"""Batches: the same bytes in the same order however many processes decode them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sanrobust import evaluate
from sanrobust.data import loader
from sanrobust.data.decode import ImageError
from sanrobust.data.folders import class_folders
from sanrobust.data.imageset import FileImages, ImageRef
from sanrobust.data.loader import Batch, _lost_worker, batches
from sanrobust.data.transforms import to_pixels
from sanrobust.errors import DataError, UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.progress import Silent
from image_files import class_tree, noise

SMALL = Preprocessing(img_size=16)
PLAN = [[5, 0, 3], [1, 2], [4, 7, 6, 8], [9, 10], [11]]


@pytest.fixture
def images(tmp_path: Path) -> FileImages:
    """Twelve images, of which 1, 2 and 8 are damaged: the whole second batch of PLAN fails."""
    folder = class_tree(tmp_path, {name: [f"{index}.png" for index in range(4)] for name in "abc"})
    found = class_folders(folder)
    for index in (1, 2, 8):
        (folder / found.refs[index].id).write_bytes(b"no image")
    return found


class Scripted:
    """An image set of 8 grey images that does ``act`` while it loads one."""

    name, num_classes, digest = "scripted", None, ""
    refs = tuple(ImageRef(f"{index}", index) for index in range(8))

    def act(self, index: int) -> int:
        return index

    def load(self, index: int) -> Image.Image:
        return Image.new("RGB", (16, 16), (self.act(index),) * 3)


class TellsThreads(Scripted):
    def act(self, index: int) -> int:
        return torch.get_num_threads()


class Dies(Scripted):
    def act(self, index: int) -> int:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class Breaks(Scripted):
    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind

    def act(self, index: int) -> int:
        raise self.kind("a defect, not a damaged image")


class Slow(Scripted):
    def act(self, index: int) -> int:
        time.sleep(0.05)
        return index


def _signature(batch: Batch) -> tuple[object, ...]:
    return (batch.ids, batch.labels.tolist(), batch.pixels.shape, batch.pixels.numpy().tobytes(),
            batch.failures)


def _one_each(count: int = 8) -> list[list[int]]:
    return [[index] for index in range(count)]


def test_batches_hold_the_planned_images_in_order(images: FileImages) -> None:
    first = next(iter(batches(images, SMALL, plan=PLAN, workers=0)))
    assert first.ids == ("b/1.png", "a/0.png", "a/3.png")
    assert first.labels.tolist() == [1, 0, 0] and first.labels.dtype == torch.int64
    assert torch.equal(first.pixels, torch.stack(
        [to_pixels(noise((12, 10), seed), SMALL) for seed in (1, 0, 3)]))


def test_bytes_and_order_are_identical_with_0_and_4_workers(images: FileImages) -> None:
    here = [_signature(batch) for batch in batches(images, SMALL, plan=PLAN, workers=0)]
    there = [_signature(batch) for batch in batches(images, SMALL, plan=PLAN, workers=4)]
    assert here == there and len(here) == len(PLAN)


def test_failed_images_stand_apart_with_their_reasons(images: FileImages) -> None:
    third = list(batches(images, SMALL, plan=PLAN, workers=0))[2]
    assert third.ids == ("b/0.png", "b/3.png", "b/2.png") and len(third.pixels) == 3
    (failure,) = third.failures
    assert (failure.id, failure.label) == ("c/0.png", 2)
    assert failure.reason == "not an image of a known format"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_failures_only_is_yielded_empty(images: FileImages, workers: int) -> None:
    second = list(batches(images, SMALL, plan=PLAN[:2], workers=workers))[1]
    assert second.ids == () and second.labels.shape == (0,) and len(second.failures) == 2
    assert second.pixels.shape == (0, 3, 16, 16) and second.pixels.dtype == torch.float32


def test_an_empty_plan_yields_nothing(images: FileImages) -> None:
    assert list(batches(images, SMALL, plan=[], workers=0)) == []


def test_an_image_that_the_transform_refuses_is_a_failure() -> None:
    class Long(Scripted):
        def load(self, index: int) -> Image.Image:
            return Image.new("RGB", (1, 9000))

    (batch,) = batches(Long(), Preprocessing(), plan=[[0]], workers=0)
    assert "too elongated" in batch.failures[0].reason


def test_torchs_global_random_state_is_left_alone(images: FileImages) -> None:
    before = torch.get_rng_state()
    list(batches(images, SMALL, plan=PLAN[:1], workers=0))
    list(batches(images, SMALL, plan=PLAN[:1], workers=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_compute_with_one_thread() -> None:
    (batch,) = batches(TellsThreads(), SMALL, plan=[[0]], workers=1)
    assert round(batch.pixels.max().item() * 255) == 1


def test_workers_ignore_ctrl_c() -> None:
    stream = batches(Slow(), SMALL, plan=_one_each(), workers=2)
    seen = [next(stream).ids]
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
    seen.extend(batch.ids for batch in stream)
    assert seen == [(str(index),) for index in range(8)]


def test_the_main_process_still_receives_ctrl_c() -> None:
    stream = batches(Slow(), SMALL, plan=_one_each(), workers=1)
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stream.close()  # type: ignore[attr-defined]


def test_leaving_the_loop_early_ends_the_workers() -> None:
    before = set(multiprocessing.active_children())
    for _ in batches(Slow(), SMALL, plan=_one_each(), workers=2):
        assert len(set(multiprocessing.active_children()) - before) == 2
        break
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("culprit", [Breaks(RuntimeError), Dies()], ids=["raises", "dies"])
def test_an_error_ends_the_workers_at_once(culprit: Scripted) -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises((RuntimeError, DataError)) as caught:
        list(batches(culprit, SMALL, plan=_one_each(), workers=2))
    assert caught.tb is not None  # the frames are still held, as by a caller that logs them
    assert set(multiprocessing.active_children()) == before


def test_a_worker_that_is_killed_becomes_a_sentence() -> None:
    with pytest.raises(DataError, match="one of 1 failed .*--workers 0"):
        list(batches(Dies(), SMALL, plan=_one_each(), workers=1))


def test_the_death_of_a_worker_interrupts_nothing_but_the_fetching_of_batches() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    stream = batches(Slow(), SMALL, plan=_one_each(), workers=1)
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) == before
    stream.close()  # type: ignore[attr-defined]


def test_a_process_that_cannot_start_becomes_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(loader: object) -> None:
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)).start()
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    before = set(multiprocessing.active_children())
    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", refuse)
    with pytest.raises(DataError, match="one of 2 failed .*Resource temporarily"):
        list(batches(Slow(), SMALL, plan=_one_each(), workers=2))
    assert set(multiprocessing.active_children()) == before


@pytest.mark.parametrize("error", [
    MemoryError("Caught MemoryError in DataLoader worker process 0.\nMemoryError"),
    RuntimeError("Caught RuntimeError in DataLoader worker process 0.\ncan't start new thread"),
    RuntimeError("Too many open files. Communication with the workers is no longer possible."),
    EOFError(), ConnectionResetError("reset by peer"),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."),
    RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nunable to allocate shared "
                 "memory(shm) for file </torch_1>: No space left on device (28)")])
def test_every_way_to_lose_a_worker_is_told_from_a_defect(error: Exception) -> None:
    reason = _lost_worker(error)
    assert reason and "\n" not in reason


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [RuntimeError, OSError, ValueError])
def test_a_defect_in_a_dataset_is_not_disguised(workers: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="a defect, not a damaged image"):
        list(batches(Breaks(kind), SMALL, plan=[[0]], workers=workers))


def test_an_image_error_is_told_by_its_reason() -> None:
    class Fails(Scripted):
        def load(self, index: int) -> Image.Image:
            raise ImageError("damaged (made up)")

    (batch,) = batches(Fails(), SMALL, plan=[[0]], workers=0)
    assert batch.failures[0].reason == "damaged (made up)"


def test_a_negative_number_of_workers_is_refused_at_once(images: FileImages) -> None:
    with pytest.raises(UsageError, match="--workers must be 0 or more, but it is -1"):
        batches(images, SMALL, plan=PLAN, workers=-1)


class Moved:
    """Stands for a tensor and remembers how it was moved."""

    def __init__(self) -> None:
        self.how: list[object] = []

    def to(self, device: torch.device, *, non_blocking: bool) -> Moved:
        self.how.append((device.type, non_blocking))
        return self

    def pin_memory(self) -> Moved:
        self.how.append("pinned")
        return self


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_a_gpu_fetches_a_batch_while_the_cpu_goes_on(device: str) -> None:
    labels, pixels = Moved(), Moved()
    batch = Batch(("a",), labels, pixels)  # type: ignore[arg-type]
    batch.pin_memory().to(torch.device(device))
    assert labels.how == pixels.how == ["pinned", (device, device == "cuda")]


@pytest.mark.parametrize(("pinned", "asked", "started"),
                         [(False, 3, 3), (True, 9, 5), (True, 0, 0)])
def test_no_more_processes_start_than_there_are_batches(
        images: FileImages, monkeypatch: pytest.MonkeyPatch, pinned: bool, asked: int, started: int
        ) -> None:
    found: list[tuple[object, object]] = []

    class Stopped(Exception):
        pass

    def made(*_: object, **keywords: object) -> None:
        found.append((keywords["num_workers"], keywords["pin_memory"]))
        raise Stopped

    monkeypatch.setattr(loader, "DataLoader", made)
    with pytest.raises(Stopped):
        next(batches(images, SMALL, plan=PLAN, workers=asked, pinned=pinned))
    assert found == [(started, pinned)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_pins_its_batches_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch, device: str
                                                ) -> None:
    asked: list[object] = []

    def fake(*_: object, pinned: bool, **__: object) -> Generator[Batch, None, None]:
        asked.append(pinned)
        return (batch for batch in ())

    monkeypatch.setattr(evaluate, "batches", fake)
    store = SimpleNamespace(spec=SimpleNamespace(experiment="rotate", model="m"))
    nothing = SimpleNamespace(words="", images=0, own=(), count_own=int, count_left=int)
    loop = evaluate.Loop(None, None, None, store, None, SMALL,  # type: ignore[arg-type]
                         batch_size=4, workers=1, device=torch.device(device), progress=Silent())
    loop.measure(nothing)  # type: ignore[arg-type]
    assert asked == [device == "cuda"]
