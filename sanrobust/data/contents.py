"""The files of a set of images, and the SHA-256 of each, computed once and remembered.

What is remembered is only a speed-up: it lies in the user's cache folder, one file for each folder
of images, and is left aside when it is damaged or cannot be written.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from sanrobust.errors import DataError, OutputError, UsageError
from sanrobust.files import atomic_write, cache_home, open_regular

FOLDER = "digests"
MOST_FILES = 4_000_000  # entries of one cache file
MOST_BYTES = 1 << 30  # all cache files together; the oldest go first
# A file may change again within the tick of its clock in which it was read: git's racy case.
TICK_NS = 2_000_000_000
BLOCK = 1 << 18
_HEADER = b"sanrobust image digests 1 "
_FILES_PER_TASK = 64

State = tuple[int, int, int, int]  # size, time of change of content and of inode in ns, inode
Known = dict[str, tuple[State, str]]


class Files(Protocol):
    """The encoded images of a set by their ids, wherever they lie."""

    def digests(self, paths: Sequence[str]) -> Iterator[str]:
        """Yield the SHA-256 of each file in hexadecimal; raises DataError for one unreadable."""
        ...

    def differs(self, path: str) -> bool:
        """Whether a file, read once more, is not what its digest was taken of, or is gone."""
        ...

    def open(self, path: str) -> BinaryIO:
        """Open a file to read and seek; raises OSError."""
        ...


class Contents:
    """The files below ``folder``, by their paths there.

    In one instance a file is read once, so what was taken from a set and the set itself agree.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests: dict[str, str] = {}

    def digests(self, paths: Sequence[str]) -> Iterator[str]:
        """Yield the SHA-256 of each file in hexadecimal.

        Raises DataError for a path that is not that of a readable file.
        """
        missing = [path for path in paths if path not in self._digests]
        if missing:
            self._find(missing)
        return (self._digests[path] for path in paths)

    def differs(self, path: str) -> bool:
        """Whether a file, read once more, is not what its digest was taken of, or is gone."""
        known = self._digests.get(path)
        try:
            return known is not None and self._hashed(path)[1] != known
        except OSError:
            return True

    def open(self, path: str) -> BinaryIO:
        """Open a file to read and seek; raises OSError, for a pipe or a device too."""
        # Buffered, since Pillow reads in small pieces.
        return io.BufferedReader(open_regular(self._place(path)))

    def _place(self, path: str) -> str:
        """Return the file on disk that holds the one at ``path``."""
        return os.path.join(self._folder, path)

    def _find(self, paths: Sequence[str]) -> None:
        known = _recall(self._folder)
        learnt: Known = {}
        blocks = [paths[start:start + _FILES_PER_TASK]
                  for start in range(0, len(paths), _FILES_PER_TASK)]
        pool = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4), "sanrobust-digest")
        try:
            # SHA-256 leaves the interpreter's lock, and a disk answers many at a time.
            for found, fresh in pool.map(lambda block: self._block(block, known), blocks):
                self._digests.update(found)
                learnt.update(fresh)
        finally:
            pool.shutdown(cancel_futures=True)
            if learnt:  # also when stopped: what was read need not be read again
                merged = {**known, **learnt}
                _remember(self._folder, merged if len(merged) <= MOST_FILES else learnt)

    def _block(self, paths: Sequence[str], known: Known) -> tuple[dict[str, str], Known]:
        found: dict[str, str] = {}
        fresh: Known = {}
        for path in paths:
            try:
                remembered = known.get(path)
                if remembered is not None and remembered[0] == _state(os.stat(self._place(path))):
                    found[path] = remembered[1]
                    continue
                state, digest = self._hashed(path)
            except OSError as error:
                raise DataError("every listed image must be a readable file",
                                seen=f"{path} is not ({error.strerror or error})",
                                hint="mend or remove it and run again") from error
            found[path] = digest
            if state is not None:
                fresh[path] = (state, digest)
        return found, fresh

    def _hashed(self, path: str) -> tuple[State | None, str]:
        """Return a file's digest, and its state unless it may have changed while it was read."""
        begun = time.time_ns()
        digest = hashlib.sha256()
        with self.open(path) as stream:
            before = os.fstat(stream.fileno())
            while block := stream.read(BLOCK):
                digest.update(block)
            after = os.fstat(stream.fileno())
        newest = max(after.st_mtime_ns, after.st_ctime_ns)
        is_settled = _state(before) == _state(after) and newest < begun - TICK_NS
        return _state(after) if is_settled else None, digest.hexdigest()


def _state(status: os.stat_result) -> State:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _memory(folder: Path) -> Path:
    """Return the cache file of a folder of images."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:32]
    return cache_home() / FOLDER / name


def _recall(folder: Path) -> Known:
    """Read a folder's cache file; one that is absent, damaged or of another version is empty."""
    try:
        content = _memory(folder).read_bytes()
        header, _, body = content.partition(b"\n")
        if header != _HEADER + hashlib.sha256(body).hexdigest().encode():
            return {}
        known: Known = {}
        for line in body.decode("utf-8", "surrogatepass").split("\n")[:-1]:
            digest, size, mtime, ctime, inode, path = line.split(" ", 5)
            known[path] = ((int(size), int(mtime), int(ctime), int(inode)), digest)
        return known
    except (OSError, ValueError, UsageError):
        return {}


def _remember(folder: Path, known: Mapping[str, tuple[State, str]]) -> None:
    """Replace a cache file whole, so that processes side by side never see half of one."""
    body = "".join(f"{digest} {' '.join(map(str, state))} {path}\n"
                   for path, (state, digest) in known.items()
                   if "\n" not in path).encode("utf-8", "surrogatepass")
    with suppress(OutputError, OSError, UsageError):
        memory = _memory(folder)
        with atomic_write(memory) as stream:
            stream.write(_HEADER + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        _forget_oldest(memory.parent)


def _forget_oldest(folder: Path) -> None:
    """Keep the cache within MOST_BYTES."""
    with os.scandir(folder) as entries:
        files = sorted(((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path)
                        for entry in entries), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > MOST_BYTES:
            os.unlink(path)
