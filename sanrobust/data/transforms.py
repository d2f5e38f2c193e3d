"""The one geometric transform: from a decoded image to the pixels a model sees."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from sanrobust.data.decode import MAX_PIXELS, ImageError
from sanrobust.preprocessing import Preprocessing


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize the short side, crop the centre and scale to [0, 1], as torchvision does with Pillow.

    ``image`` is in mode RGB; the result is float32 (3, S, S) with S = ``img_size``, not
    normalised. Raises ImageError for an image so elongated that its resized form would exceed
    MAX_PIXELS.
    """
    short, long = sorted(image.size)
    side = preprocessing.resize_size
    if side * (side * long // short) > MAX_PIXELS:
        raise ImageError(f"too elongated ({image.width}x{image.height})")
    resized = F.resize(image, side, interpolation=InterpolationMode(preprocessing.interpolation))
    cropped = F.center_crop(resized, preprocessing.img_size)
    pixels: Tensor = F.to_tensor(cropped)
    return pixels
