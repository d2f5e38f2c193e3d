"""Writing files so that a reader sees either the old content or the whole new one."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from sanrobust.errors import OutputError, UsageError

TEMPORARY_SUFFIX = ".tmp"
# A surrogate stands for a byte that is not UTF-8; neither it nor a control character fits a CSV.
UNFIT_FOR_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_PREFIX = ".sanrobust-"
# Whose a temporary is: a host's name and a process there.
_OWNED = re.compile(rf"{re.escape(_PREFIX)}(?P<host>.+)-(?P<pid>\d+)-[^-]+{TEMPORARY_SUFFIX}")
_LONG_AGO_S = 3600.0


class NameTaken(Exception):
    """A file that must be new has a name that is taken."""


@contextmanager
def atomic_write(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` that gets its name when the block ends well.

    The content reaches the disk before the name does, so a crash or a full disk leaves the old
    file as it was. Temporaries of killed processes are removed when this process first writes
    into their folder. Raises OutputError when the folder cannot be made or the write fails, and
    NameTaken where ``replace`` is False and there is a file of that name.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(os.path.abspath(path.parent))
        handle, temporary = temporary_file(path.parent)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            if replace:
                os.replace(temporary, path)
                temporary = None
            else:
                _name_new(temporary, path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def temporary_file(folder: Path) -> tuple[int, Path]:
    """Open a new file that is locked, and that `sweep` leaves alone, for as long as it is open."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f"{_PREFIX}{host()}-{os.getpid()}-",
                                        suffix=TEMPORARY_SUFFIX)
        if not try_lock(handle) or os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # swept by another process before it was locked


def sweep(folder: Path) -> None:
    """Remove from ``folder`` the temporaries of `atomic_write` whose process was killed.

    A lock alone does not tell: on some file systems it means nothing on another machine, and a new
    file is locked a moment after it is there. What a living process, or one of another machine,
    wrote of late is left.
    """
    for path in folder.glob(f"{_PREFIX}*{TEMPORARY_SUFFIX}"):
        with suppress(OSError), path.open("rb") as stream:
            if not _may_be_written(path) and try_lock(stream.fileno()):
                path.unlink(missing_ok=True)


def host() -> str:
    """Return this machine's name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname())[:60] or "host"


def _may_be_written(temporary: Path) -> bool:
    owned = _OWNED.fullmatch(temporary.name)
    if owned is None or time.time() - temporary.stat().st_mtime > _LONG_AGO_S:
        return False
    if owned["host"] != host() or os.name == "nt":  # where the signal 0 is one
        return True
    try:
        os.kill(int(owned["pid"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


@cache
def _sweep_once(folder: str) -> None:
    sweep(Path(folder))


def try_lock(handle: int) -> bool:
    """Lock a file until it is closed or its process dies; False where that cannot be had."""
    try:
        import fcntl  # absent on Windows
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def open_regular(path: str | Path) -> io.FileIO:
    """Open a file to read, unbuffered; raises OSError for a pipe or a device too.

    Those might be waited for, or read, without end.
    """
    stream = open(path, "rb", buffering=0, opener=_open_at_once)
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return stream


def _open_at_once(path: str, flags: int) -> int:
    # A pipe would wait for a writer; for a regular file the flag means nothing.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def cache_home() -> Path:
    """Return the user's folder for what can be fetched or computed again.

    ``SANROBUST_HOME``, else ``sanrobust`` in ``XDG_CACHE_HOME``, else ``~/.cache/sanrobust``.
    Raises UsageError where that is in nobody's home.
    """
    named = os.environ.get("SANROBUST_HOME")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if named:
            return Path(named).expanduser()
        # A relative path there is to be ignored, says the XDG Base Directory Specification.
        return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "sanrobust"
    except RuntimeError as error:
        raise UsageError("the user's folder must be known", seen=f"{named or '~'} names no "
                         "user's home", hint="set SANROBUST_HOME to a folder") from error


def require_writable(folder: Path, *names: str) -> None:
    """See that ``folder`` can be made and its files ``names`` be written; nothing is left behind.

    Raises OutputError when one of that fails.
    """
    try:
        tempfile.TemporaryFile(dir=_nearest(folder), prefix=_PREFIX,
                               suffix=TEMPORARY_SUFFIX).close()
    except OSError as error:
        raise output_error(folder, error) from error
    for name in names:
        try:
            if stat.S_ISDIR(os.lstat(folder / name).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except FileNotFoundError:
            continue
        except OSError as error:  # a folder, or a name that the file system cannot hold
            raise output_error(folder / name, error) from error


def _nearest(folder: Path) -> Path:
    """Return the nearest folder that exists, ``folder`` itself or one above it."""
    while True:
        try:
            os.lstat(folder)
            break
        except FileNotFoundError:
            folder = folder.parent
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    return folder


def _name_new(temporary: Path, path: Path) -> None:
    """Give a file a second name that must be free."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise NameTaken(path) from error
    except OSError:  # a file system without hard links; here the check and the naming are two steps
        if path.exists():
            raise NameTaken(path) from None
        os.replace(temporary, path)


def printable(text: str) -> str:
    """Return ``text`` with a question mark for everything that is no printable character.

    A name from outside may hold line ends, which would break a row in two, or the sequences by
    which a terminal is told to do things.
    """
    return "".join(each if each.isprintable() else "?" for each in text)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 through `atomic_write`."""
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8"))


def write_keeping(path: Path, content: bytes) -> Path | None:
    """Write ``content`` to ``path``; a file of other content there is copied to ``FILE.previous``.

    Returns the path of the copy, None when there was nothing to keep. Raises OutputError.
    """
    previous = previous_name(path)
    try:
        is_other = path.exists() and sha256_file(path) != hashlib.sha256(content).hexdigest()
        with atomic_write(path) as stream:
            stream.write(content)
            if is_other:
                with atomic_write(previous) as kept, path.open("rb") as old:
                    shutil.copyfileobj(old, kept)
    except OSError as error:
        raise output_error(path, error) from error
    return previous if is_other else None


def previous_name(path: Path) -> Path:
    """Return where `write_keeping` keeps the earlier content of ``path``."""
    return path.with_name(path.name + ".previous")


def output_error(path: Path, error: OSError) -> OutputError:
    """Turn a failed write to ``path`` into a sentence that says how to go on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    rule = "the disk must have room for the results" if full else "the results must be writable"
    hint = ("free some room and run the same command again, which goes on from the last record"
            if full else "name a writable folder with --out, or mend this one and run again")
    return OutputError(rule, seen=f"writing {path} failed ({error.strerror or error})", hint=hint)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
