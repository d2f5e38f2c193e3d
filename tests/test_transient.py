"""Trouble with reading and trouble of the machine pass, and are no property of an image."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageFile

from conftest import Command
from grey_models import CLASSES, folders, grey
from sanrobust import evaluate
from sanrobust.data.decode import ImageError, ImageTrouble, decode
from sanrobust.data.folders import class_folders
from sanrobust.data.imageset import FileImages
from sanrobust.errors import DataError, FailedImagesError
from sanrobust.runs import find_runs

MODEL = "grey_models:right"
LABELS = [number % CLASSES for number in range(40)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folders(tmp_path / "data" / "val", LABELS)


def before_image(monkeypatch: pytest.MonkeyPatch, number: int,
                 act: Callable[[Path], object]) -> None:
    """Do something once, right before so many images were decoded."""
    seen = 0
    load = FileImages.load

    def loading(self: FileImages, index: int) -> Image.Image:
        nonlocal seen
        seen += 1
        if seen == number:
            act(self.folder / self.refs[index].id)
        return load(self, index)

    monkeypatch.setattr(FileImages, "load", loading)


def counts(out: Path) -> tuple[int, int, float]:
    row = pd.read_csv(out / "rotation.csv").iloc[0]
    return row["n"], row["failed"], row["none_top1"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_vanishes_and_comes_back_costs_no_image(
        command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        workers: int) -> None:
    arguments = ("rotate", "-m", MODEL, "--data", images, "--out", tmp_path, "-b", 4, "-j", workers)
    monkeypatch.setattr(evaluate, "UNREADABLE_IN_A_ROW", 8)
    away = images.with_name("away")
    with monkeypatch.context() as patch:
        before_image(patch, 15, lambda _: images.rename(away))
        stopped = command(*arguments)
    assert stopped.exit_code == DataError.exit_code
    assert "the last 8 could not be read" in stopped.output
    assert "the file is missing" in stopped.output and "same command again" in stopped.output
    (run,) = find_runs(tmp_path, "rotate").runs
    recorded = run.records()
    assert not run.complete and 0 < recorded["image"].nunique() < len(LABELS)
    assert recorded["error"].isna().all()
    away.rename(images)
    assert command(*arguments).exit_code == 0
    assert counts(tmp_path) == (len(LABELS), 0, 100.0)


def test_one_file_that_cannot_be_read_costs_no_other_and_is_named(
        command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("rotate", "-m", MODEL, "--data", images, "--out", tmp_path, "-b", 4)
    kept, lost = tmp_path / "kept", images / "c3" / "33.png"
    before_image(monkeypatch, 10, lambda _: lost.rename(kept))
    told = command(*arguments)
    assert told.exit_code == DataError.exit_code
    assert "1 could not be read (c3/33.png: the file is missing)" in told.output
    (run,) = find_runs(tmp_path, "rotate").runs
    assert run.records()["image"].nunique() == len(LABELS) - 1
    assert "1 could not be read" in command("table", "--out", tmp_path).output
    kept.rename(lost)
    again = command(*arguments)
    assert again.exit_code == 0 and counts(tmp_path) == (len(LABELS), 0, 100.0)


def test_a_file_that_changes_while_it_is_measured_is_not_a_failed_one(
        images: Path) -> None:
    found = class_folders(images)
    assert found.digest
    path = images / found.refs[0].id
    for content in (b"", b"no image", path.read_bytes()[:40]):
        path.write_bytes(content)
        with pytest.raises(ImageTrouble, match="not the one that it was at the start"):
            found.load(0)
    known = class_folders(images)
    assert known.digest
    with pytest.raises(ImageError) as caught:
        known.load(0)
    assert not isinstance(caught.value, ImageTrouble)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE,
                                    errno.EACCES, errno.ENOMEM, errno.ETIMEDOUT])
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_what_the_system_refuses_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            number: int, when: str) -> None:
    path = grey(tmp_path / "a.png", 0)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    if when == "opening":
        monkeypatch.setattr("sanrobust.data.decode.os.open", refuse)
    else:
        monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    with pytest.raises(ImageTrouble):
        decode(path)


def test_a_failure_of_the_decoder_is_the_images_own(tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    path = grey(tmp_path / "a.png", 0)
    for error in (OSError("image file is truncated"), ValueError("no"), MemoryError(),
                  OSError(errno.EINVAL, "Invalid argument"),
                  OSError("out of memory error when reading image file")):
        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch, pytest.raises(ImageError) as caught:
            patch.setattr(ImageFile.ImageFile, "load", refuse)
            decode(path)
        # There is memory enough for so small an image: a file that wants more is damaged.
        assert not isinstance(caught.value, ImageTrouble)


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
from sanrobust.data.decode import ImageTrouble, decode
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), -1))
try:
    decode(Path(sys.argv[1]))
except ImageTrouble as error:
    print(error)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_a_legal_image_beyond_a_memory_limit_is_not_damaged(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"big{suffix}"
    options = {"lossless": True, "method": 0} if suffix == ".webp" else {}
    options |= {"compress_level": 1} if suffix == ".png" else {}
    Image.new("RGB", (5000, 5000), (9, 9, 9)).save(path, **options)
    told = subprocess.run([sys.executable, "-c", UNDER_A_LIMIT, path], text=True,
                          capture_output=True, timeout=60)
    assert told.stdout == "the machine has not enough memory to decode it\n", told.stderr


def test_images_recorded_as_failed_are_measured_again_when_asked_for(
        command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("rotate", "-m", MODEL, "--data", images, "--out", tmp_path, "-b", 4,
                 "--max-failed", 0)

    load = FileImages.load

    def as_earlier(self: FileImages, index: int) -> Image.Image:
        if self.refs[index].id.endswith("33.png"):
            raise ImageError("damaged (MemoryError)")
        return load(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(FileImages, "load", as_earlier)
        assert command(*arguments).exit_code == FailedImagesError.exit_code
        assert command(*arguments, "--retry-failed").exit_code == FailedImagesError.exit_code
    assert counts(tmp_path)[:2] == (len(LABELS) - 1, 1)
    assert command(*arguments).exit_code == FailedImagesError.exit_code
    told = command(*arguments, "--retry-failed")
    assert told.exit_code == 0 and "measuring 1 image again that is recorded as" in told.output
    assert counts(tmp_path) == (len(LABELS), 0, 100.0)
    assert "already complete" in command(*arguments, "--retry-failed").output
