"""What a dataset is to the rest of the toolkit, and the two ways in which images are held."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from sanrobust.data.contents import Contents, Files
from sanrobust.data.decode import ImageError, ImageTrouble, decode_opened
from sanrobust.errors import DataError, UsageError
from sanrobust.files import UNFIT_FOR_TEXT

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageRef:
    """One image of a set: its id, unique and the same on every machine, and its class index."""

    id: str
    label: int


class ImageSet(Protocol):
    """A fixed sequence of labelled images.

    Attributes:
        name: the dataset's name, or that of its folder.
        refs: the images in their fixed order, ids unique.
        num_classes: how many classes the labels index; None when unknown.
        classes: name of each class, by index; None when unknown.
        left_out: clauses that say what lies beside the images and is not among them, and how
            class folders were numbered where their names suggest another order.
        digest: SHA-256 in hexadecimal of what the set holds, wherever it lies.
    """

    @property
    def name(self) -> str: ...

    @property
    def refs(self) -> tuple[ImageRef, ...]: ...

    @property
    def num_classes(self) -> int | None: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    @property
    def left_out(self) -> tuple[str, ...]: ...

    @property
    def digest(self) -> str: ...

    def load(self, index: int) -> Image.Image | Tensor:
        """Return image ``index`` in mode RGB, or pixels (3, S, S) that a model takes as they are.

        Raises ImageError when it cannot be decoded, ImageTrouble when that may be otherwise another
        time.
        """
        ...

    def take(self, indices: Sequence[int]) -> ImageSet:
        """Return the set of the images at ``indices``."""
        ...

    def relabelled(self, labels: Mapping[int, int], *, num_classes: int | None,
                   classes: tuple[str, ...] | None) -> ImageSet:
        """Return the same images with other class indices, ``labels`` giving the new by the old."""
        ...


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images in files below ``folder``; an image's id is its path there, with slashes.

    ``contents`` opens them by their ids: files of the folder itself unless it is given.
    """

    name: str
    folder: Path
    refs: tuple[ImageRef, ...]
    num_classes: int | None
    classes: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    contents: Files | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.contents is None:
            object.__setattr__(self, "contents", Contents(self.folder))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over one line ``id, label, SHA-256 of the file`` per image, separated by tabs.

        Raises DataError when a file cannot be read.
        """
        assert self.contents is not None
        total = hashlib.sha256()
        found = self.contents.digests([ref.id for ref in self.refs])
        for ref, content in zip(self.refs, found, strict=True):
            total.update(line(ref, content))
        return total.hexdigest()

    def load(self, index: int) -> Image.Image:
        """Return image ``index`` in mode RGB.

        Raises ImageError when it cannot be decoded, ImageTrouble when that may be otherwise another
        time.
        """
        assert self.contents is not None
        name = self.refs[index].id
        try:
            return decode_opened(partial(self.contents.open, name))
        except ImageTrouble:
            raise
        except ImageError as error:
            if self.contents.differs(name):
                raise ImageTrouble("the file is not the one that it was at the start") from error
            raise

    def take(self, indices: Sequence[int]) -> FileImages:
        """Return the set of the images at ``indices``."""
        return replace(self, refs=tuple(self.refs[index] for index in indices))

    def relabelled(self, labels: Mapping[int, int], *, num_classes: int | None,
                   classes: tuple[str, ...] | None) -> FileImages:
        """Return the same images with other class indices."""
        return replace(self, refs=relabelled_refs(self.refs, labels), num_classes=num_classes,
                       classes=classes)


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images in memory: ``pixels`` is uint8, (N, H, W) greyscale or (N, H, W, 3) RGB."""

    name: str
    refs: tuple[ImageRef, ...]
    num_classes: int | None
    pixels: npt.NDArray[np.uint8]
    classes: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.refs) != len(self.pixels):
            raise ValueError(f"{len(self.refs)} labels for {len(self.pixels)} images")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over each image's line ``id, label, size in bytes`` followed by its pixels."""
        total = hashlib.sha256()
        for ref, image in zip(self.refs, self.pixels, strict=True):
            total.update(line(ref, image.nbytes))
            total.update(image.tobytes())
        return total.hexdigest()

    def load(self, index: int) -> Image.Image:
        """Return image ``index`` in mode RGB."""
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def take(self, indices: Sequence[int]) -> ArrayImages:
        """Return the set of the images at ``indices``."""
        return replace(self, refs=tuple(self.refs[index] for index in indices),
                       pixels=self.pixels[list(indices)])

    def relabelled(self, labels: Mapping[int, int], *, num_classes: int | None,
                   classes: tuple[str, ...] | None) -> ArrayImages:
        """Return the same images with other class indices."""
        return replace(self, refs=relabelled_refs(self.refs, labels), num_classes=num_classes,
                       classes=classes)


def subset(images: ImageSet, num_samples: int | None) -> ImageSet:
    """Return ``num_samples`` images chosen by the hash of their ids; None keeps them all.

    The choice is the same on every machine, a smaller one is part of a larger one, and the order
    of the dataset is kept. Raises UsageError when there are not that many.
    """
    if num_samples is None:
        return images
    available = len(images.refs)
    if not 1 <= num_samples <= available:
        raise UsageError(f"--num-samples must be between 1 and the {available} images of "
                         f"{images.name}", seen=f"it is {num_samples}",
                         hint="give a number in that range, or leave the option out")
    ranked = sorted(range(available),
                    key=lambda index: id_hash("sanrobust-subset", images.refs[index].id))
    return images.take(sorted(ranked[:num_samples]))


def require_fit_ids(ids: Iterable[str]) -> None:
    """Raise DataError for an id that no table could hold."""
    for image_id in ids:
        if UNFIT_FOR_TEXT.search(image_id):
            raise DataError("image file names must be UTF-8 without control characters",
                            seen=f"there is one named {image_id!r}", hint="rename it")


def id_hash(purpose: str, image_id: str) -> bytes:
    """Return SHA-256 of ``purpose``, a zero byte and the id: a draw that never changes."""
    return hashlib.sha256(f"{purpose}\0{image_id}".encode()).digest()


def line(ref: ImageRef, content: str | int) -> bytes:
    """Return what the digest of a set says of an image before, or in place of, its content."""
    return f"{ref.id}\t{ref.label}\t{content}\n".encode()


def relabelled_refs(refs: Sequence[ImageRef], labels: Mapping[int, int]) -> tuple[ImageRef, ...]:
    """Return the references with other class indices, ``labels`` giving the new by the old."""
    return tuple(ImageRef(ref.id, labels[ref.label]) for ref in refs)
