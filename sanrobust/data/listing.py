"""What lies below a folder: its images, and everything else, so that nothing is lost in silence."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sanrobust.csvfiles import shown
from sanrobust.data.decode import IMAGE_SUFFIXES
from sanrobust.errors import DataError


@dataclass
class Listing:
    """Paths below a folder, relative to it, with slashes; names that begin with a dot are none.

    Attributes:
        images: files with the name of an image, sorted.
        others: files with other names.
        unusable: links that lead nowhere, pipes and devices.
        repeated: links to folders that contain them or have been read under another name.
    """

    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def add(self, other: Listing, *, below: str) -> None:
        """Take in what lies below a subfolder."""
        for name in ("images", "others", "unusable", "repeated"):
            getattr(self, name).extend(f"{below}/{path}" for path in getattr(other, name))

    def left_out(self, *, used: Collection[str] = ()) -> tuple[str, ...]:
        """Say what was left out, a clause for each kind; ``used`` names files with a purpose."""
        others = [path for path in self.others if path not in used]
        return tuple(
            left_out_clause(paths, *words) for paths, words in (
                (others, ("file that is not named as an image",
                          "files that are not named as images")),
                (self.unusable, ("name that leads to no file", "names that lead to no file")),
                (self.repeated, ("linked folder that is read already",
                                 "linked folders that are read already")),
            ) if paths)


def listing(folder: Path) -> Listing:
    """Find all files below ``folder``, through links to files and folders.

    A link may lead anywhere; each real folder is read once, by its own name where it has one
    below ``folder``. Raises DataError when a folder cannot be read.
    """
    found = Listing()
    seen: set[str] = set()
    folders, links = deque([("", os.path.realpath(folder))]), deque[tuple[str, str]]()
    try:
        while folders or links:
            # Links come last, so that a folder is found under its own name.
            is_link = not folders
            place, real = links.popleft() if is_link else folders.popleft()
            if real in seen or (is_link and leads_back(folder / place)):
                found.repeated.append(place)
                continue
            seen.add(real)
            below, linked = _read(folder, place, found)
            folders.extend((path, os.path.join(real, os.path.basename(path))) for path in below)
            links.extend((path, os.path.realpath(folder / path)) for path in linked)
    except OSError as error:
        raise unreadable(folder, error) from error
    for paths in (found.images, found.others, found.unusable, found.repeated):
        paths.sort()
    return found


def is_image_name(name: str) -> bool:
    """Say whether a file's suffix is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def leads_back(entry: Path) -> bool:
    """Say whether a subfolder is a link to the folder that holds it, or to one above."""
    return _contains(os.path.realpath(entry), os.path.realpath(entry.parent))


def unreadable(folder: Path, error: OSError) -> DataError:
    """Turn a failed reading of a folder into a sentence."""
    return DataError("the folder of images must be readable",
                     seen=f"{error.filename or folder} is not ({error.strerror})",
                     hint="check the path and its permissions")


def _read(folder: Path, place: str, found: Listing) -> tuple[list[str], list[str]]:
    """Sort one folder's files into ``found``; return its subfolders and its links to folders."""
    below: list[str] = []
    links: list[str] = []
    with os.scandir(folder / place) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            path = f"{place}/{entry.name}" if place else entry.name
            if _is_folder(entry):
                (links if entry.is_symlink() else below).append(path)
            elif not _is_file(entry):
                found.unusable.append(path)
            else:
                (found.images if is_image_name(entry.name) else found.others).append(path)
    return below, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _contains(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)


def left_out_clause(paths: Sequence[str], one: str, many: str) -> str:
    """Say that paths were left out, which are ``one`` or ``many`` of something."""
    if len(paths) == 1:
        return f"left out 1 {one} ({shown(paths[0])})"
    return f"left out {len(paths)} {many} (the first is {shown(paths[0])})"
