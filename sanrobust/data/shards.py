"""Images in tar archives of WebDataset's layout, read where they lie; nothing is extracted.

A sample is the members whose names agree up to the first dot of their last part: ``a/7.jpg`` and
its label ``a/7.cls``, a whole number as text, or ``a/7.json`` with the number under ``label`` or
``cls``. An image's id is its member's name, so that an archive made of a folder has its ids.
"""

from __future__ import annotations

import glob
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sanrobust.csvfiles import MAX_INDEX_DIGITS, counted, plain, shown
from sanrobust.data.contents import Contents
from sanrobust.data.imageset import FileImages, ImageRef, require_fit_ids
from sanrobust.data.listing import is_image_name, left_out_clause
from sanrobust.data.places import TAR
from sanrobust.errors import DataError, shown_value
from sanrobust.files import open_regular

LABEL_SUFFIXES = (".cls", ".json")
MOST_SHARDS = 100_000
_MOST_LABEL_BYTES = 1 << 20
_BLOCK = 512  # of POSIX's tar format
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Member:
    """Where an image's bytes lie: in which archive, from which byte on, and how many."""

    shard: str
    start: int
    size: int


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, stream: io.FileIO, start: int, size: int) -> None:
        self._stream, self._start, self._size, self._at = stream, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        view = memoryview(buffer)[:max(0, self._size - self._at)]
        self._stream.seek(self._start + self._at)
        read = self._stream.readinto(view)
        self._at += read
        return read

    def close(self) -> None:
        self._stream.close()
        super().close()


class Members(Contents):
    """The images in tar archives, by their ids."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        # What is remembered of them stands under the first archive's name.
        super().__init__(Path(next(iter(members.values())).shard))
        self._members = members

    def open(self, path: str) -> BinaryIO:
        """Open a member to read and seek; raises OSError."""
        member = self._members[path]
        window = _Window(open_regular(member.shard), member.start, member.size)
        return io.BufferedReader(window)  # type: ignore[type-var]

    def _place(self, path: str) -> str:
        return self._members[path].shard


def open_shards(word: str, *, name: str) -> FileImages:
    """Open the archives that a path, a folder or a pattern names, as one set in their order.

    Raises DataError for an archive that is damaged, an image without a label, a name that is there
    twice or leads out of a folder, and for no image at all.
    """
    shards = _paths(word)
    index = _Index()
    for shard in shards:
        index.read(shard)
    refs = index.refs(word)
    return FileImages(name, Path(shards[0]).parent, refs, None, left_out=tuple(index.left_out()),
                      contents=Members(index.images))


def _paths(word: str) -> list[str]:
    """Return the archives that are meant, each once, in order."""
    if os.path.isdir(word):
        found = [os.path.join(word, entry) for entry in sorted(os.listdir(word))
                 if entry.lower().endswith(TAR) and not entry.startswith(".")]
    elif os.path.isfile(word):
        found = [word]
    else:
        found = [path for part in _expanded(word)
                 for path in (sorted(glob.glob(part)) if glob.has_magic(part) else [part])]
    absent = [path for path in found if not os.path.isfile(path)]
    if absent or not found:
        raise DataError("every tar shard must exist",
                        seen=f"{counted(absent, 'file')} not there" if absent
                        else f"{word} fits no file", hint="check the pattern given to --data")
    return list(dict.fromkeys(found))


def _expanded(word: str) -> list[str]:
    """Return what a shell makes of braces: ``{000..019}`` and ``{a,b}``."""
    words, done = [word], []
    while words:
        first = words.pop(0)
        braces = _BRACES.search(first)
        if braces is None:
            done.append(first)
        else:
            words = [first[:braces.start()] + choice + first[braces.end():]
                     for choice in _choices(braces[1])] + words
        if len(words) + len(done) > MOST_SHARDS:
            raise DataError(f"a pattern must name at most {MOST_SHARDS} shards",
                            seen=f"{shown(word)} names more", hint="give the folder that holds "
                            "them to --data")
    return done


def _choices(inside: str) -> list[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",")
    width = max(map(len, span.groups())) if any(each[0] == "0" and len(each) > 1
                                                for each in span.groups()) else 0
    first, last = int(span[1]), int(span[2])
    return [f"{number:0{width}d}" for number in range(first, min(last, first + MOST_SHARDS) + 1)]


@dataclass
class _Index:
    """What the archives hold, by name: images with their key, and labels by key."""

    images: dict[str, Member] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # of an image, by its key
    labels: dict[str, dict[str, int | None]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)

    def read(self, shard: str) -> None:
        """Take in the members of one archive; raises DataError."""
        try:
            with open_regular(shard) as raw, io.BufferedReader(raw) as stream:
                _require_tar(shard, stream)
                end = 0
                for member, content, after in _members(stream):
                    if member.offset < end or after <= member.offset:
                        raise tarfile.TarError("a member lies within another")
                    end = after
                    self._enter(shard, member, content)
                _require_ended(stream, end)
        except DataError:
            raise
        # Damaged archives make the reader raise nearly any type; all mean the same to us.
        except Exception as error:
            detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise DataError("a tar archive must be whole and readable",
                            seen=f"{shard} is not ({' '.join(detail.split())[:100]})",
                            hint="fetch or make it anew") from error

    def _enter(self, shard: str, member: tarfile.TarInfo, content: bytes | None) -> None:
        name = _safe(member.name, shard)
        key, suffix = _split(name)
        if member.isdir() or any(part.startswith(".") for part in name.split("/")):
            return
        if not member.isreg() or member.sparse is not None:
            self.unusable.append(name)
        elif is_image_name(name):
            self._enter_image(name, key, Member(shard, member.offset_data, member.size))
        elif content is not None:
            known = self.labels.setdefault(key, {})
            if suffix in known:
                raise _twice(name, name)
            known[suffix] = _label(name, suffix, content)
        else:
            self.others.append(name)

    def _enter_image(self, name: str, key: str, member: Member) -> None:
        if key in self.keys:
            raise _twice(name, self.keys[key])
        self.keys[key], self.images[name] = name, member

    def refs(self, word: str) -> tuple[ImageRef, ...]:
        """Return the images in their order; raises DataError where one has no label."""
        if not self.images:
            raise DataError("a tar archive must hold images", seen=f"there is none in {word}",
                            hint="give a folder, or an archive that holds KEY.jpg and KEY.cls")
        require_fit_ids(self.images)
        found = {name: self._label_of(key) for key, name in self.keys.items()}
        lacking = [name for name, label in found.items() if label is None]
        if lacking:
            raise DataError("every image of a tar archive must have its label beside it, as "
                            "KEY.cls or KEY.json", seen=f"{counted(lacking, 'image')} without one",
                            hint="add them, or unpack the archive and give the folder to --data")
        return tuple(ImageRef(name, label) for name, label in found.items() if label is not None)

    def _label_of(self, key: str) -> int | None:
        known = self.labels.get(key, {})
        return next((known[suffix] for suffix in LABEL_SUFFIXES
                     if known.get(suffix) is not None), None)

    def left_out(self) -> Iterator[str]:
        """Say what lies beside the images, a clause for each kind."""
        alone = [key for key in self.labels if key not in self.keys]
        for names, one, many in (
                (self.others, "member that is neither image nor label",
                 "members that are neither image nor label"),
                (alone, "label without an image", "labels without an image"),
                (self.unusable, "member that is no plain file", "members that are no plain files")):
            if names:
                yield left_out_clause(names, one, many)


def _members(stream: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, bytes | None, int]]:
    """Yield the members in their order, the content of a label's, and where the next one begins."""
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
            after: int = archive.offset
            content = None
            if member.isreg() and member.name.endswith(LABEL_SUFFIXES) \
                    and member.size <= _MOST_LABEL_BYTES:
                opened = archive.extractfile(member)
                content = opened.read() if opened is not None else None
            yield member, content, after


def _require_tar(shard: str, stream: BinaryIO) -> None:
    start = stream.read(2)
    stream.seek(0)
    packed = {b"\x1f\x8b": "gunzip", b"BZ": "bunzip2", b"\xfd7": "unxz", b"\x28\xb5": "unzstd"}
    if start in packed:
        raise DataError("a tar archive must not be compressed, so that images can be read one by "
                        "one", seen=f"{shard} is", hint=f"unpack it with {packed[start]}")


def _require_ended(stream: BinaryIO, end: int) -> None:
    """Raise TarError unless zeros alone follow the last member, a block of them at least."""
    stream.seek(end)
    rest = stream.read(_BLOCK)
    if len(rest) < _BLOCK:
        raise tarfile.TarError("it is cut off")
    while rest:
        if rest.strip(b"\0"):
            raise tarfile.TarError("something that cannot be read follows its last member")
        rest = stream.read(1 << 20)


def _safe(name: str, shard: str) -> str:
    """Return a member's plain name; raises DataError for one that leads out of a folder."""
    path = plain(name)
    if not path or path.startswith("/") or ".." in path.split("/"):
        raise DataError("names in a tar archive must be paths below a folder",
                        seen=f"{shard} holds {shown_value(name)}", hint="make it anew from within "
                        "the folder of images")
    return path


def _split(name: str) -> tuple[str, str]:
    """Return a member's key and what follows it."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{suffix}"


def _label(name: str, suffix: str, content: bytes) -> int | None:
    """Read a label; None for JSON that holds none. Raises DataError for what is no class index."""
    value: object = content.decode("ascii", "replace").strip()
    if suffix.endswith(".json"):
        try:
            facts = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _no_label(name, "no JSON") from error
        given = [facts[word] for word in ("label", "cls") if word in facts] \
            if isinstance(facts, dict) else []
        if not given:
            return None
        value = str(given[0]) if type(given[0]) is int else given[0]
    if not (isinstance(value, str) and value.isascii() and value.isdigit()
            and len(value) <= MAX_INDEX_DIGITS):
        raise _no_label(name, shown_value(value))
    return int(value)


def _no_label(name: str, seen: str) -> DataError:
    return DataError("every label must be a whole number of 0 or more",
                     seen=f"{shown(name)} holds {seen}",
                     hint="write the class index as it counts in the model's logits")


def _twice(name: str, other: str) -> DataError:
    seen = (f"{shown(name)} is there twice" if name == other
            else f"{shown(other)} and {shown(name)} have the same")
    return DataError("each image of tar archives must have a key of its own, its name up to the "
                     "first dot", seen=seen,
                     hint="rename one, or give one of the archives alone to --data")
