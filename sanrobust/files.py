"""Writing files so that a reader sees either the old content or the whole new one."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sanrobust.errors import OutputError, UsageError

TEMPORARY_SUFFIX = ".tmp"


class NameTaken(Exception):
    """A file that must be new has a name that is taken."""


@contextmanager
def atomic_write(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` that gets its name when the block ends well.

    The content reaches the disk before the name does, so a crash or a full disk leaves the old
    file as it was. Raises OutputError when the folder cannot be made or the write fails, and
    NameTaken where ``replace`` is False and there is a file of that name.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".",
                                        suffix=TEMPORARY_SUFFIX)
        temporary = Path(name)
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


def require_writable(folder: Path) -> None:
    """Make ``folder`` and write there for a moment; raises OutputError when that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise output_error(folder, error) from error


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


def put_in_place(new: Path, path: Path) -> Path | None:
    """Rename ``new`` to ``path``; a file of other content that is there becomes ``FILE.previous``.

    Returns the path of what was kept, None when there was nothing to keep. Raises OutputError.
    """
    previous = path.with_name(path.name + ".previous")
    try:
        is_other = path.exists() and sha256_file(path) != sha256_file(new)
        if is_other:
            os.replace(path, previous)
        os.replace(new, path)
    except OSError as error:
        raise output_error(path, error) from error
    return previous if is_other else None


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
