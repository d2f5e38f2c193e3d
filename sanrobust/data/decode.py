"""Reading one image file into RGB, with every failure told as a short reason."""

from __future__ import annotations

import errno
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from sanrobust.files import open_regular
from sanrobust.trouble import MEMORY, lacking

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp",
    ".tif", ".tiff", ".webp", ".gif", ".avif"))
MAX_PIXELS = 178_956_970  # Pillow's own limit for a file that claims to be an image
# A closed list: other readers of Pillow start programs (EPS) or fetch nothing we want.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF",
           *(("AVIF",) if "avif" in features.modules and features.check("avif") else ()))
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_SILENCE = logging.NullHandler()
# What decoding takes at most, in bytes, beside the pixels and for each of them: 16 bits in four
# channels, their copy in RGB, and what a resampling filter holds.
_ROOM, _ROOM_PER_PIXEL = 1 << 26, 16
# Numbers of errors that a damaged file can cause, by places to read from that no file has.
_OF_CONTENT = frozenset((errno.EINVAL, errno.EOVERFLOW))


class ImageError(Exception):
    """An image that cannot serve; the message is a short reason without the file's name."""


class ImageTrouble(ImageError):
    """An image that could not be had this time, for a reason that does not lie in its content."""


def decode(path: Path) -> Image.Image:
    """Read an image file completely and return it in mode RGB.

    The pixels are those of Pillow's ``convert("RGB")``, as in torchvision's default loader: alpha
    is dropped, palettes are looked up, only the first frame is read and the EXIF orientation is
    not applied. The exception is greyscale of 16 bits, which is scaled to 0..255 instead of
    clipped. AVIF needs a Pillow that was built with it. Raises ImageError when the file is empty,
    not an image, damaged, or larger than MAX_PIXELS; ImageTrouble when it is missing or cannot be
    read, or the machine lacks what decoding takes. Prints nothing.
    """
    return decode_opened(lambda: io.BufferedReader(open_regular(path)))


def decode_opened(opened: Callable[[], BinaryIO]) -> Image.Image:
    """Do as `decode` with what ``opened`` returns, which may raise OSError and is closed here."""
    try:
        stream = opened()
    except OSError as error:
        raise ImageTrouble(_reason(error)) from error
    with stream:
        if not stream.seek(0, os.SEEK_END):
            raise ImageError("the file is empty")
        stream.seek(0)
        return _decoded(stream)


def _decoded(stream: BinaryIO) -> Image.Image:
    pixels = 0
    try:
        with ExitStack() as stack:
            stack.enter_context(quiet())
            image = stack.enter_context(Image.open(stream, formats=FORMATS))
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"more than {MAX_PIXELS} pixels")
            pixels = image.width * image.height
            if image.format == "TIFF":
                stack.enter_context(_muted_stderr())
            image.load()
            return to_rgb(image)
    except ImageError:
        raise
    # Damaged files make Pillow's readers raise nearly any type; all mean the same to us.
    except Exception as error:
        trouble = _trouble(error, pixels)
        raise ImageTrouble(trouble) if trouble else ImageError(_reason(error)) from error


def _trouble(error: Exception, pixels: int) -> str | None:
    """Say what kept an image from being decoded that is not in the file; None: nothing did."""
    if isinstance(error, OSError) and error.errno not in (None, *_OF_CONTENT):
        return _reason(error)
    lacks = lacking(error)
    if lacks not in (None, MEMORY):
        return f"the machine has not enough {lacks} to decode it"
    try:  # a decoder that lacks memory says so in many ways, and so does a damaged file
        np.empty(_ROOM + _ROOM_PER_PIXEL * pixels, np.uint8)
    except MemoryError:
        return "the machine has not enough memory to decode it"
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels"
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, IsADirectoryError):
        return "not a regular file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    detail = " ".join(str(error).split())[:100]
    return f"damaged ({detail or type(error).__name__})"


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image in mode RGB as `decode` does; raises ImageError where it cannot be."""
    if image.mode in SIXTEEN_BIT_MODES:
        return _scale_16_bit(image)
    if image.mode == "F":
        raise ImageError("floating-point samples have no defined range")
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.int64)
    if samples.min() < 0 or samples.max() > 65535:
        raise ImageError("integer samples outside 0..65535")
    grey = ((samples + 128) // 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow from printing while the block reads an image."""
    # Pillow warns of odd metadata and logs through a logger that would fall back to stderr.
    logger = logging.getLogger("PIL")
    is_ours = _SILENCE not in logger.handlers
    logger.addHandler(_SILENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if is_ours:
            logger.removeHandler(_SILENCE)


@contextmanager
def _muted_stderr() -> Iterator[None]:
    """Point file descriptor 2 elsewhere: libtiff writes there directly, past Python."""
    try:
        saved = os.dup(2)
    except OSError:  # the process runs without a standard error: nothing to keep clean
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
