"""Images that lie corrupted on disk, in the folders of ImageNet-C: corruption/severity/class/file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.data.contents import Contents
from sanrobust.data.decode import ImageError, ImageTrouble, decode
from sanrobust.data.transforms import to_pixels
from sanrobust.errors import DataError
from sanrobust.experiments.corrupt.settings import Condition

if TYPE_CHECKING:
    from torch import Tensor

    from sanrobust.preprocessing import Preprocessing


class CorruptedFiles:
    """The corrupted versions of a dataset's images.

    The folders of the corruptions lie in ``folder``, or one level deeper, as ImageNet-C's archives
    unpack them. A file is found by the id of its image, which is its path in the dataset; the id of
    an image in a flat folder lacks the class, and is looked up by its name.

    Attributes:
        missing: why an image cannot be measured, by its id.
        digest: SHA-256 over the names and contents of all files in use; see `open`.

    Raises DataError where a corruption at one of the severities has no folder.
    """

    def __init__(self, folder: Path, conditions: Sequence[Condition]) -> None:
        self.missing: dict[str, str] = {}
        self.digest = ""
        self._contents = Contents(folder)
        self._root = folder
        self._conditions = conditions
        self._homes = {name: _home(folder, name) for name, _ in conditions}
        for name, severity in conditions:
            if not (self._homes[name] / str(severity)).is_dir():
                raise _no_folder(self._homes[name], str(severity))
        self._by_name: dict[str, str] | None = None

    def open(self, ids: Sequence[str]) -> None:
        """Look for the files of these images and take the digest of those that are there."""
        total = hashlib.sha256()
        self.missing = {}
        for name, severity in self._conditions:
            there = []
            for image in ids:
                if self._path(image, name, severity).is_file():
                    there.append(image)
                else:
                    self.missing.setdefault(image, f"no file of {name} at severity {severity}")
            paths = [str(self._path(image, name, severity).relative_to(self._root))
                     for image in there]
            for image, content in zip(there, self._contents.digests(paths), strict=True):
                total.update(f"{name}/{severity}/{image}\t{content}\n".encode(
                    "utf-8", "surrogatepass"))
        self.digest = total.hexdigest()

    def load(self, image: str, condition: Condition, preprocessing: Preprocessing) -> Tensor:
        """Return the pixels of one file, float32 (3, S, S) in [0, 1].

        A file is a crop already; one whose sides are not S is resized, and cut where it is not
        square. Raises ImageError where it is damaged, DataError where it cannot be read.
        """
        whole = replace(preprocessing, crop_pct=1.0, crop_mode="center")
        path = self._path(image, *condition)
        try:
            return to_pixels(decode(path), whole)
        except ImageTrouble as error:
            raise DataError("every corrupted image must be readable while it is measured",
                            seen=f"{path} could not be read ({error})",
                            hint="see to it that it can, and type the same command again; the "
                                 "records of all others are saved") from error
        except ImageError as error:
            name, severity = condition
            raise ImageError(f"{name} at severity {severity}: {error}") from error

    def _path(self, image: str, name: str, severity: int) -> Path:
        return self._homes[name] / str(severity) / self._relative(image)

    def _relative(self, image: str) -> str:
        if "/" in image:
            return image
        if self._by_name is None:
            first, severity = self._conditions[0]
            self._by_name = _class_of_each(self._homes[first] / str(severity))
        return self._by_name.get(image, image)


def _class_of_each(folder: Path) -> dict[str, str]:
    """Return the path of each file in the class folders of ``folder`` by its name."""
    return {file.name: f"{each.name}/{file.name}" for each in _folders_in(folder)
            for file in os.scandir(each)}


def _folders_in(folder: Path) -> list[os.DirEntry[str]]:
    """Return the folders in ``folder`` by name; none where it is not there."""
    if not folder.is_dir():
        return []
    return sorted((each for each in os.scandir(folder) if each.is_dir()),
                  key=lambda each: each.name)


def _home(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise DataError("--corrupted must be a folder", seen=f"{folder} is none",
                        hint="name the folder that holds gaussian_noise/1/class/file and the like")
    places = [folder, *(Path(each.path) for each in _folders_in(folder))]
    for place in places:
        if (place / name).is_dir():
            return place / name
    raise _no_folder(folder, name)


def _no_folder(folder: Path, name: str) -> DataError:
    return DataError("--corrupted must hold each corruption at each severity",
                     seen=f"{folder} holds no folder {name}",
                     hint="put it there, or name what is there with --corruptions and --severities")
