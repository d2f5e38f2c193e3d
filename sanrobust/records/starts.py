"""``starts/TOKEN.json``: what each process that measures a run says of itself.

The system locks the file for as long as the process lives. That tells people who is working, and
keeps processes from measuring the same block at the same time for nothing. Where locks mean
nothing that happens, and changes no record.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sanrobust.errors import OutputError
from sanrobust.files import output_error, temporary_file, try_lock
from sanrobust.processes import uninterrupted
from sanrobust.records.headers import sealed_text, unsealed

STARTS_FOLDER = "starts"
BEAT_SECONDS = 10.0
"""How often a process says that it is at work."""
FRESH_SECONDS = 900.0
"""A process that has said nothing for so long is not waited for, whatever its lock says."""
_RECENT_SECONDS = 300.0
RUNNING = "running"


def now() -> str:
    """Return the time as headers have it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Start:
    """This process in the list of those that measure a run.

    Args:
        folder: of the run.
        token: name of this process in it, which no other has.
        facts: how it computes.
    """

    def __init__(self, folder: Path, token: str, facts: Mapping[str, object]) -> None:
        self.token = token
        self._path = folder / STARTS_FOLDER / f"{self.token}.json"
        self._facts = {"started": now(), "host": socket.gethostname(), "pid": os.getpid(), **facts}
        self._begun = self._written = time.monotonic()
        self._images = 0
        self._recent = deque([(self._begun, 0)])
        self._block: int | None = None
        self._lock: int | None = None

    @property
    def seconds(self) -> float:
        """For how long it has been at work."""
        return round(time.monotonic() - self._begun, 3)

    def claim(self, block: int | None) -> None:
        """Say which block is measured next; None: none."""
        self._block = block
        self.write(RUNNING)

    def count(self, images: int) -> None:
        """Count images whose records are ready."""
        self._images += images
        self.beat()

    def beat(self) -> None:
        """Say, now and then, that it is at work."""
        if time.monotonic() - self._written >= BEAT_SECONDS:
            self.write(RUNNING)

    def write(self, status: str, **more: object) -> None:
        """Say how it stands; raises OutputError where the disk refuses it."""
        self._written = time.monotonic()
        facts = {**self._facts, "status": status, "updated": now(), "seconds": self.seconds,
                 "images": self._images, "rate": self._rate(), "block": self._block, **more}
        try:
            self._path.parent.mkdir(exist_ok=True)
            with uninterrupted():
                self._replace(sealed_text(facts))
        except OSError as error:
            raise output_error(self._path, error) from error

    def end(self) -> None:
        """Give the lock back."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _rate(self) -> float:
        """Return images per second over the last minutes."""
        self._recent.append((self._written, self._images))
        while len(self._recent) > 2 and self._written - self._recent[1][0] > _RECENT_SECONDS:
            self._recent.popleft()
        then, images = self._recent[0]
        seconds = self._written - then
        return round((self._images - images) / seconds, 3) if seconds > 0 else 0.0

    def _replace(self, content: bytes) -> None:
        """Put a new file in the place of the old one, locked before it is there."""
        handle, temporary = temporary_file(self._path.parent)
        try:
            os.write(handle, content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, self._path)
        except BaseException:
            os.close(handle)
            temporary.unlink(missing_ok=True)
            raise
        self.end()
        self._lock = handle


@dataclass(frozen=True)
class Said:
    """What a process said of itself last.

    Attributes:
        token: its name.
        facts: what it said.
        alive: whether it holds its lock and said something within `FRESH_SECONDS`.
    """

    token: str
    facts: Mapping[str, object]
    alive: bool

    @property
    def block(self) -> int | None:
        """The block that it is measuring now."""
        block = self.facts.get("block")
        return block if self.alive and isinstance(block, int) else None


def starts_of(folder: Path) -> list[Said]:
    """Return what the processes of a run in ``folder`` said last, in the order of their starts.

    A file that is not as it was written is left out: no record depends on it.
    """
    return sorted(_read_all(folder / STARTS_FOLDER),
                  key=lambda each: str(each.facts.get("started")))


def _read_all(folder: Path) -> Iterator[Said]:
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(folder.glob("*.json")):
            with suppress(OSError, ValueError, RecursionError, OutputError):
                facts = json.loads(path.read_bytes())
                if isinstance(facts, dict):
                    yield Said(path.stem, unsealed(facts), _is_alive(path, facts))


def _is_alive(path: Path, facts: Mapping[str, object]) -> bool:
    if facts.get("status") != RUNNING or time.time() - path.stat().st_mtime > FRESH_SECONDS:
        return False
    with path.open("rb") as stream:
        return not try_lock(stream.fileno())
