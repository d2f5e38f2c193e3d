"""From what a set of images gives to the pixels that a model takes, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from sanrobust.data.decode import ImageError, ImageTrouble
from sanrobust.data.items import ItemImages
from sanrobust.data.transforms import to_pixels
from sanrobust.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from sanrobust.data.imageset import ImageSet
    from sanrobust.preprocessing import Preprocessing

LEVELS = 255


def fitted(image: Image.Image | Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return an image as a model takes it, float32 (3, S, S) in [0, 1] with S = ``img_size``.

    A tensor (3, S, S) is that already. Another one is resized and cropped as a file is, for which
    its values must be 8-bit levels over 255. Raises ImageError where they are not, and as
    `to_pixels`.
    """
    if isinstance(image, Image.Image):
        return to_pixels(image, preprocessing)
    side = preprocessing.img_size
    if image.shape[-2:] == (side, side):
        return image
    levels = torch.round(image * LEVELS)
    if not torch.allclose(levels / LEVELS, image, rtol=0, atol=1e-6):
        raise ImageError(f"float pixels of {image.shape[-2]}x{image.shape[-1]} between 8-bit "
                         f"levels, which cannot be resized to {side}")
    pixels = levels.to(torch.uint8).permute(1, 2, 0).numpy()
    return to_pixels(Image.fromarray(np.ascontiguousarray(pixels)), preprocessing)


def fit_sides(images: ImageSet, preprocessing: Preprocessing) -> tuple[str, ...]:
    """Say what becomes of float pixels in memory, by the first image.

    Raises DataError where they cannot be made a model's.
    """
    side = preprocessing.img_size
    try:
        first = images.load(0) if isinstance(images, ItemImages) else None
        if not isinstance(first, torch.Tensor):
            return ()
        fitted(first, preprocessing)
    except ImageTrouble as error:
        raise DataError("a dataset must give the same images each time", seen=f"{images.name} did "
                        f"not ({error})", hint="leave random transforms out") from error
    except ImageError as error:
        raise DataError(f"float pixels must be {side}x{side} for this model, or 8-bit levels over "
                        "255", seen=f"{images.name} has {error}",
                        hint="resize and crop them, or give uint8 levels") from error
    if first.shape[-2:] != (side, side) or preprocessing.resize_size == side:
        return ()
    return (f"{images.name}: float pixels of {side}x{side} are taken as the model's input, neither "
            "resized nor cropped",)
