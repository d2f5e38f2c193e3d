"""The digest of files: their content, read once, remembered as long as nothing has changed."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from sanrobust.data import contents
from sanrobust.data.contents import Contents
from sanrobust.data.folders import class_folders
from sanrobust.errors import DataError
from sanrobust.files import cache_home
from image_files import class_tree

OLD_NS = 1_600_000_000_000_000_000


class _Clock:
    """Stands for the module ``time`` and says that it is later."""

    @staticmethod
    def time_ns() -> int:
        return time.time_ns() + 10_000_000_000


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files that a test has just written count as settled."""
    monkeypatch.setattr(contents, "time", _Clock)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the names of files whose content is read."""
    names: list[str] = []
    real = Contents._hashed

    def note(self: Contents, path: str) -> tuple[contents.State | None, str]:
        names.append(os.path.basename(path))
        return real(self, path)

    monkeypatch.setattr(Contents, "_hashed", note)
    yield names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "x").mkdir()
    for name in "abc":
        (tmp_path / "x" / name).write_bytes(name.encode() * 100)
    return tmp_path / "x"


def _digests(folder: Path, names: str = "abc") -> list[str]:
    return list(Contents(folder).digests(list(names)))


def _true(folder: Path, names: str = "abc") -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def _memory() -> Path:
    file, = (cache_home() / contents.FOLDER).iterdir()
    return file


def test_a_second_start_reads_no_file(folder: Path, later: None, hashed: list[str]) -> None:
    assert _digests(folder) == _true(folder)
    assert sorted(hashed) == ["a", "b", "c"]
    assert _digests(folder) == _true(folder)
    assert len(hashed) == 3


def test_only_what_has_changed_is_read_again(
        folder: Path, later: None, hashed: list[str]) -> None:
    _digests(folder, "ab")
    (folder / "b").write_bytes(b"B" * 100)
    hashed.clear()
    assert _digests(folder) == _true(folder)
    assert sorted(hashed) == ["b", "c"]
    hashed.clear()
    assert _digests(folder) == _true(folder) and not hashed


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_other_content_of_the_same_size_and_time_is_seen(
        folder: Path, later: None, how: str) -> None:
    os.utime(folder / "a", ns=(OLD_NS, OLD_NS))
    before = _digests(folder)
    target = folder / "a" if how == "written" else folder / "new"
    target.write_bytes(b"A" * 100)
    os.utime(target, ns=(OLD_NS, OLD_NS))
    os.replace(target, folder / "a")
    assert (folder / "a").stat().st_mtime_ns == OLD_NS
    assert _digests(folder) == _true(folder) != before


def test_a_file_that_changed_a_moment_ago_is_not_remembered(
        folder: Path, hashed: list[str]) -> None:
    _digests(folder)
    _digests(folder)
    assert len(hashed) == 6
    assert not (cache_home() / contents.FOLDER).exists()


def test_within_one_set_a_file_is_read_once(tmp_path: Path, hashed: list[str]) -> None:
    images = class_folders(class_tree(tmp_path, {"a": ["1.png"], "b": ["2.png"]}))
    first = images.digest
    (tmp_path / "a" / "1.png").write_bytes(b"other")
    turned = images.relabelled({0: 1, 1: 0}, num_classes=2, classes=None)
    assert turned.digest != first == images.take([0, 1]).digest
    assert sorted(hashed) == ["1.png", "2.png"]


def _cut(memory: Path) -> None:
    memory.write_bytes(memory.read_bytes()[:-20])


def _flip(memory: Path) -> None:
    content = bytearray(memory.read_bytes())
    content[-110] ^= 1
    memory.write_bytes(content)


def _empty(memory: Path) -> None:
    memory.write_bytes(b"")


def _folder(memory: Path) -> None:
    memory.unlink()
    memory.mkdir()


def _no_text(memory: Path) -> None:
    body = b"\xff\xfe no lines of ours\n"
    memory.write_bytes(contents._HEADER + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


@pytest.mark.parametrize("damage", [_cut, _flip, _empty, _folder, _no_text])
def test_a_damaged_memory_is_left_aside(folder: Path, later: None, hashed: list[str],
                                        damage: object) -> None:
    _digests(folder)
    assert callable(damage)
    damage(_memory())
    hashed.clear()
    assert _digests(folder) == _true(folder)
    assert sorted(hashed) == ["a", "b", "c"]


@pytest.mark.parametrize("home", ["{}/file/home", "~nobody-of-this-name/home"])
def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_time(
        folder: Path, later: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        home: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SANROBUST_HOME", home.format(tmp_path))
    assert _digests(folder) == _true(folder)


def test_the_memory_is_bounded(folder: Path, later: None, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST_FILES", 3)
    _digests(folder)
    (folder / "d").write_bytes(b"d")
    _digests(folder, "d")
    assert _memory().read_bytes().count(b"\n") == 2  # the first line, and one file
    monkeypatch.setattr(contents, "MOST_BYTES", 2 * _memory().stat().st_size)
    for number in range(4):
        other = tmp_path / f"y{number}"
        other.mkdir()
        (other / "d").write_bytes(b"d")
        _digests(other, "d")
    assert len(list((cache_home() / contents.FOLDER).iterdir())) == 2


def _in_a_process(folder: Path) -> list[str]:
    contents.time = _Clock  # type: ignore[assignment]
    return [digest for _ in range(20) for digest in _digests(folder)]


def test_processes_side_by_side_agree(folder: Path) -> None:
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        found = list(pool.map(_in_a_process, [folder] * 6))
    assert all(digests == _true(folder) * 20 for digests in found)


def test_what_was_read_before_an_error_is_remembered(
        folder: Path, later: None, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_FILES_PER_TASK", 1)
    with pytest.raises(DataError, match="gone is not"):
        list(Contents(folder).digests([*"abc", "gone"]))
    hashed.clear()
    assert _digests(folder) == _true(folder) and not hashed


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused_instead_of_waited_for(folder: Path, kind: str) -> None:
    (os.mkdir if kind == "folder" else os.mkfifo)(folder / "d")
    with pytest.raises(DataError, match="d is not .*mend or remove it"):
        _digests(folder, "d")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_refused(folder: Path, later: None) -> None:
    _digests(folder)
    (folder / "a").chmod(0)
    with pytest.raises(DataError, match="a is not .Permission denied."):
        _digests(folder)


@pytest.mark.parametrize("own, xdg, expected", [
    ("/a", "/b", "/a"), (None, "/b", "/b/sanrobust"), ("", "/b", "/b/sanrobust"),
    (None, "relative", "/home/u/.cache/sanrobust"), (None, None, "/home/u/.cache/sanrobust")])
def test_the_users_folder_is_the_one_named_or_the_desktops(
        monkeypatch: pytest.MonkeyPatch, own: str | None, xdg: str | None, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    for name, value in (("SANROBUST_HOME", own), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert cache_home() == Path(expected)
