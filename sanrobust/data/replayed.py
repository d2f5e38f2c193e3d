"""A folder of saved images as a set of images: each is a model's input already."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.csvfiles import counted, shown
from sanrobust.data.contents import Contents
from sanrobust.data.decode import ImageError, ImageTrouble
from sanrobust.data.imageset import ImageRef
from sanrobust.data.pixels import decode_exactly, most_bytes
from sanrobust.data.saved import (FOLDER, INDEX, SOURCE, Budget, Saved, Source, read_index,
                                  read_source, require_same_budgets)
from sanrobust.errors import DataError
from sanrobust.files import open_regular
from sanrobust.spec import digest_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class SavedImages:
    """Saved images with their labels, each in one or several budgets.

    Attributes:
        saved: the files of each image, in the order of the budgets.
        source: who made them.
        contents: hashes of the files in their folder.
    """

    name: str
    folder: Path
    saved: tuple[tuple[Saved, ...], ...]
    source: Source
    num_classes: int | None
    classes: tuple[str, ...] | None
    contents: Contents = field(repr=False)
    left_out: tuple[str, ...] = ()

    @cached_property
    def refs(self) -> tuple[ImageRef, ...]:
        """The images, each once."""
        return tuple(ImageRef(rows[0].image, rows[0].label) for rows in self.saved)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets in which each image was saved."""
        return tuple(row.budget for row in self.saved[0])

    @property
    def made(self) -> str:
        """What the images are, in words."""
        spec, count = self.source.spec, len(self.budgets)
        return (f"each as {spec['experiment']} made it on {spec['model']}"
                f"{f' in {count} budgets' if count > 1 else ''}")

    @cached_property
    def by_image(self) -> Mapping[str, tuple[Saved, ...]]:
        """The files of each image by its id."""
        return {rows[0].image: rows for rows in self.saved}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the run that made the images, and over what the index says of each file.

        Raises DataError when a file is not as it was written.
        """
        rows = [row for each in self.saved for row in each]
        self._require_as_written(rows)
        total = hashlib.sha256(digest_of(self.source.spec).encode())
        for row in rows:
            total.update(f"{row.line()}\n".encode("utf-8", "surrogatepass"))
        return total.hexdigest()

    def _require_as_written(self, rows: Sequence[Saved]) -> None:
        most = most_bytes(self.source.side)
        absent = [row.file for row in rows if not (self.folder / row.file).is_file()]
        wrong = [row.file for row in rows if row.file not in absent
                 and (self.folder / row.file).stat().st_size > most] if not absent else []
        if not (absent or wrong):
            found = self.contents.digests([row.file for row in rows])
            wrong = [row.file for row, digest in zip(rows, found) if digest != row.sha256]
        if absent or wrong:
            seen = (f"{counted(absent, 'file')} not in {self.folder}" if absent
                    else f"{counted(wrong, 'file')} of {self.folder} not")
            raise DataError("every saved image must be as it was written", seen=seen,
                            hint="restore the folder, or make the images anew with "
                                 "--save-adversarial --fresh")

    def load(self, index: int) -> Tensor:
        """Return image ``index`` in the first budget, float32 (3, S, S); see `pixels`."""
        return self.pixels(self.saved[index][0])

    def pixels(self, saved: Saved) -> Tensor:
        """Return what a file holds, float32 (3, S, S) in [0, 1].

        Raises ImageTrouble when it cannot be read, is not the file that it was, or holds anything
        but such pixels.
        """
        try:
            with open_regular(self.folder / saved.file) as stream:
                content = stream.read(most_bytes(self.source.side) + 1)
        except OSError as error:
            raise ImageTrouble(f"cannot be read ({error.strerror or error})") from error
        if hashlib.sha256(content).hexdigest() != saved.sha256:
            raise ImageTrouble("the file is not the one that was saved")
        try:
            return decode_exactly(content, saved.file.rpartition(".")[2], self.source.side)
        except ImageError as error:
            raise ImageTrouble(f"{saved.file}: {error}") from error

    def take(self, indices: Sequence[int]) -> SavedImages:
        """Return the set of the images at ``indices``."""
        return replace(self, saved=tuple(self.saved[index] for index in indices))

    def relabelled(self, labels: Mapping[int, int], *, num_classes: int | None,
                   classes: tuple[str, ...] | None) -> SavedImages:
        """Return the same images with other class indices; targets follow by their names."""
        places = dict(labels)
        if self.classes is not None and classes is not None:
            known = {name: place for place, name in enumerate(classes)}
            places = {index: known[name] for index, name in enumerate(self.classes)
                      if name in known} | places
        return replace(self, num_classes=num_classes, classes=classes,
                       saved=tuple(tuple(row.relabelled(places) for row in rows)
                                   for rows in self.saved))


def open_saved(folder: Path) -> SavedImages:
    """Open the images that a run saved: its folder, or ``adversarial`` in it.

    Raises DataError for any other folder, and where something is not as it was written.
    """
    folder = Path(os.path.expanduser(folder))
    place = folder / FOLDER if (folder / FOLDER / SOURCE).exists() else folder
    if not (place / SOURCE).exists():
        raise _nothing_saved(folder)
    source = read_source(place)
    saved = read_index(place, source)
    require_same_budgets(place, saved)
    data, wanted = str(source.spec["data"]), int(source.spec["images"])
    missing = wanted - len(saved)
    left_out = (f"{missing} of {wanted} images were not saved, because they failed or had no "
                f"target on {shown(str(source.spec['model']))}",) if missing > 0 else ()
    return SavedImages(data, place, tuple(saved), source, source.num_classes, source.classes,
                       Contents(place), left_out)


def _nothing_saved(folder: Path) -> DataError:
    rule = "replay must be given a run's folder with saved images"
    if not folder.is_dir():
        return DataError(rule, seen=f"there is no folder {folder}", hint="check the path; runs lie "
                         "in OUT/runs")
    begun = any((folder / name).exists() for name in (FOLDER, f"{INDEX}.part"))
    seen = (f"the run of {folder} has not saved all of its images" if begun
            else f"{folder} holds none")
    hint = ("go on with the command that began to save them" if begun else
            "make them with sanrobust pgd --save-adversarial, and give the run's folder in "
            "OUT/runs")
    return DataError(rule, seen=seen, hint=hint)
