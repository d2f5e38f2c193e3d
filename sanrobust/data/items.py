"""Images that a program holds: arrays, tensors, and whatever a dataset's items are.

Letters: N images; H, W height and width in pixels; C channels, 1 or 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sanrobust.csvfiles import MAX_INDEX_DIGITS, shown
from sanrobust.data.decode import MAX_PIXELS, ImageError, ImageTrouble, quiet, to_rgb
from sanrobust.data.imageset import ImageRef, line, relabelled_refs
from sanrobust.errors import DataError, shown_value

if TYPE_CHECKING:
    from torch import Tensor

    Pixels = npt.NDArray[Any]
    """uint8 (H, W, 3), or float32 (3, H, W) in [0, 1]."""

CHANNELS = (1, 3)
FORMS = ("uint8 (N, H, W, C), (N, C, H, W) or (N, H, W), or float32 (N, C, H, W) in [0, 1], with "
         "1 or 3 channels")


@dataclass(frozen=True, eq=False)
class ItemImages:
    """Images given as objects of a program.

    Attributes:
        items: the images by position; one is what `as_pixels` takes.
        positions: that of each reference.
        sums: SHA-256 of the pixels by position, as far as they were read; shared with what is
            taken of the set.
    """

    name: str
    refs: tuple[ImageRef, ...]
    num_classes: int | None
    items: Any
    positions: tuple[int, ...]
    classes: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    sums: dict[int, bytes] = field(default_factory=dict, repr=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over one line ``id, label, SHA-256 of the pixels`` per image.

        Raises DataError for an image that cannot be had.
        """
        total = hashlib.sha256()
        for ref, position in zip(self.refs, self.positions, strict=True):
            if position not in self.sums:
                self.sums[position] = self._first_sum(ref, position)
            total.update(line(ref, self.sums[position].hex()))
        return total.hexdigest()

    def _first_sum(self, ref: ImageRef, position: int) -> bytes:
        try:
            return sum_of(as_pixels(self.items[position]))
        except ImageError as error:
            raise DataError("every image must be had before it is measured",
                            seen=f"image {shown(ref.id)} cannot be ({error})",
                            hint="mend the data given") from error

    def load(self, index: int) -> Image.Image | Tensor:
        """Return image ``index`` in mode RGB, or as float32 (3, H, W) in [0, 1].

        Raises ImageTrouble where it is not the one that it was at the start.
        """
        position = self.positions[index]
        pixels = as_pixels(self.items[position])
        if self.sums.get(position) not in (None, sum_of(pixels)):
            raise ImageTrouble("another image than at the start, as of a dataset with random "
                               "transforms")
        if pixels.dtype == np.uint8:
            return Image.fromarray(pixels)
        import torch
        return torch.from_numpy(pixels.copy())

    def take(self, indices: Sequence[int]) -> ItemImages:
        """Return the set of the images at ``indices``."""
        return replace(self, refs=tuple(self.refs[index] for index in indices),
                       positions=tuple(self.positions[index] for index in indices))

    def relabelled(self, labels: Mapping[int, int], *, num_classes: int | None,
                   classes: tuple[str, ...] | None) -> ItemImages:
        """Return the same images with other class indices."""
        return replace(self, refs=relabelled_refs(self.refs, labels), num_classes=num_classes,
                       classes=classes)


def as_pixels(item: object) -> Pixels:
    """Return an image of Pillow, an array or a tensor as uint8 (H, W, 3) or float32 (3, H, W).

    Raises ImageError for what is none, with the reason.
    """
    if isinstance(item, Image.Image):
        with quiet():
            return np.asarray(to_rgb(item))
    values = as_array(item)
    if values is None or values.ndim not in (2, 3):
        raise ImageError(f"{described(item)}, no image of Pillow, array or tensor")
    reason = misfit(values[np.newaxis])
    if reason is not None:
        raise ImageError(reason)
    return np.asarray(arranged(values[np.newaxis])[0])


def as_array(value: object) -> Pixels | None:
    """Return an array, or a tensor of any device, as an array; None for anything else."""
    if isinstance(value, np.ndarray):
        return value
    import torch
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided \
            or value.is_quantized:
        return None
    try:
        return np.asarray(value.detach().cpu().numpy())
    except (TypeError, RuntimeError):  # bfloat16, or a tensor without data
        return None


def misfit(images: Pixels) -> str | None:
    """Say what an array (N, ...) has that images of `FORMS` have not; None: it is of them."""
    if images.dtype == np.uint8:
        reason = _misfit_of_levels(images)
    elif images.dtype == np.float32:
        reason = (None if images.ndim == 4 and images.shape[1] in CHANNELS
                  else f"float32 {images.shape}, where channels come before height and width")
    else:
        reason = f"{images.dtype} {images.shape}"
    if reason is None and (0 in images.shape or images[0].size > 3 * MAX_PIXELS):
        reason = f"{images.dtype} {images.shape}"
    if reason is None and images.dtype == np.float32:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # nan fails too
            reason = f"values from {low:.4g} to {high:.4g}, where pixels lie in [0, 1]"
    return reason


def _misfit_of_levels(images: Pixels) -> str | None:
    if images.ndim == 3:
        return None
    if images.ndim != 4 or not {images.shape[1], images.shape[3]}.intersection(CHANNELS):
        return f"uint8 {images.shape}"
    if images.shape[1] in CHANNELS and images.shape[3] in CHANNELS:
        return f"uint8 {images.shape}, in which channels may be the second or the last"
    return None


def arranged(images: Pixels) -> Pixels:
    """Return images of one of `FORMS` as uint8 (N, H, W, 3) or float32 (N, 3, H, W), as views."""
    if images.dtype == np.uint8 and images.ndim == 3:
        images = images[..., np.newaxis]
    elif images.dtype == np.uint8 and images.shape[3] not in CHANNELS:
        images = images.transpose(0, 2, 3, 1)
    axis = 3 if images.dtype == np.uint8 else 1
    if images.shape[axis] == 3:
        return images
    return np.broadcast_to(images, (*images.shape[:axis], 3, *images.shape[axis + 1:]))


def sum_of(pixels: Pixels) -> bytes:
    """Return the SHA-256 of pixels, their form and their values."""
    return hashlib.sha256(f"{pixels.dtype} {pixels.shape}\n".encode() + pixels.tobytes()).digest()


def label_of(value: object) -> int:
    """Return a class index given as a whole number of any kind; raises ValueError."""
    number: Any = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 \
        else value
    if isinstance(number, bool) or not isinstance(number, int) \
            or not 0 <= number < 10 ** MAX_INDEX_DIGITS:
        raise ValueError(described(value))
    return number


def described(value: object) -> str:
    """Say what a value is, an array by its form."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None and len(shape):
        return f"{dtype} {tuple(shape)}"
    return shown_value(value)
