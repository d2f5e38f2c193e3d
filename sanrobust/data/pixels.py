"""Pixels as files that hold them exactly: PNG where they are 8-bit values, else float32 as NPZ.

Letters: S is the side of an image in pixels.
"""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from sanrobust.data.decode import ImageError, quiet

if TYPE_CHECKING:
    from torch import Tensor

    Array = npt.NDArray[np.float32]

PNG, NPZ = "png", "npz"
SUFFIXES = (PNG, NPZ)
_LEVELS = 255
# What a file holds beside its pixels, at most: the names and sums of its parts.
_ROOM = 1 << 16


def encode(pixels: Tensor) -> tuple[str, bytes]:
    """Return the suffix and the content of a file that gives these very pixels back.

    Args:
        pixels: float32 (3, S, S) in [0, 1].
    """
    values: Array = pixels.detach().cpu().numpy()
    levels = np.rint(values * np.float32(_LEVELS))
    stream = io.BytesIO()
    if np.array_equal(levels / np.float32(_LEVELS), values) and levels.min() >= 0 \
            and levels.max() <= _LEVELS:
        Image.fromarray(levels.astype(np.uint8).transpose(1, 2, 0)).save(stream, "PNG")
        return PNG, stream.getvalue()
    np.savez_compressed(stream, pixels=np.ascontiguousarray(values))
    return NPZ, stream.getvalue()


def decode_exactly(content: bytes, suffix: str, side: int) -> Tensor:
    """Return the pixels that `encode` was given, float32 (3, S, S) in [0, 1].

    Args:
        content: of the file; nothing in it is run, and a size other than ``side`` is not unpacked.
        suffix: of its name.
        side: S.

    Raises ImageError for anything else than such pixels.
    """
    import torch
    try:
        values = (_from_png if suffix == PNG else _from_npz)(content, side)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("it is no PNG") from error
    # Damaged files make readers raise nearly any type; all mean the same to us.
    except Exception as error:
        detail = " ".join(str(error).split())[:100]
        raise ImageError(f"damaged ({detail or type(error).__name__})") from error
    if not (values.min() >= 0 and values.max() <= 1):  # nan fails too
        raise ImageError("it holds values outside [0, 1]")
    return torch.from_numpy(values)


def most_bytes(side: int) -> int:
    """Return the size that no file of an image of this side exceeds."""
    return 3 * side * side * np.dtype(np.float32).itemsize + _ROOM


def _from_png(content: bytes, side: int) -> Array:
    with quiet(), Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        if image.size != (side, side) or image.mode != "RGB":
            raise ImageError(f"it is {image.width}x{image.height} in mode {image.mode}, where "
                             f"{side}x{side} in RGB was saved")
        levels = np.asarray(image, np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(levels) / np.float32(_LEVELS)


def _from_npz(content: bytes, side: int) -> Array:
    with zipfile.ZipFile(io.BytesIO(content)) as archive, \
            archive.open("pixels.npy") as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ImageError(f"its array is of version {version}")
        # Read by hand, since a header that lies could ask for any amount of memory, or for code.
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        if shape != (3, side, side) or dtype != np.float32 or is_fortran:
            raise ImageError(f"its array is {dtype} {shape}, where float32 {(3, side, side)} was "
                             "saved")
        size = 3 * side * side * dtype.itemsize
        data = stream.read(size + 1)
        if len(data) != size:
            raise ImageError(f"its array has not the {size} bytes that it says")
    return np.frombuffer(data, np.float32).reshape(shape).copy()
