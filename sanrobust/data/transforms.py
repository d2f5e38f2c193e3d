"""The one geometric transform: from a decoded image to the pixels a model sees."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from sanrobust.data.decode import MAX_PIXELS, ImageError
from sanrobust.preprocessing import Preprocessing


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize, crop the centre and scale to [0, 1], as timm and torchvision do with Pillow.

    ``image`` is in mode RGB; the result is float32 (3, S, S) with S = ``img_size``, not
    normalised. Raises ImageError for an image so elongated that its resized form would exceed
    MAX_PIXELS.
    """
    height, width = resized_sides(image.height, image.width, preprocessing)
    if height * width > MAX_PIXELS or min(height, width) < 1:
        raise ImageError(f"too elongated ({image.width}x{image.height})")
    resized = F.resize(image, [height, width],
                       interpolation=InterpolationMode(preprocessing.interpolation))
    if preprocessing.crop_mode == "border":
        resized = _filled(resized, preprocessing)
    cropped = F.center_crop(resized, preprocessing.img_size)
    pixels: Tensor = F.to_tensor(cropped)
    return pixels


def resized_sides(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return height and width in pixels to which an image of that height and width is resized."""
    side = preprocessing.resize_size
    if preprocessing.crop_mode == "squash":
        return side, side
    if preprocessing.crop_mode == "border":
        ratio = max(height, width) / side
        return round(height / ratio), round(width / ratio)
    short, long = sorted((height, width))
    longer = side * long // short
    return (side, longer) if height <= width else (longer, side)


def _filled(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Put an image smaller than the crop on a ground of the mean colour, odd pixels behind."""
    spare = [max(0, preprocessing.img_size - side) for side in image.size]
    before, after = [each // 2 for each in spare], [(each + 1) // 2 for each in spare]
    colour = tuple(min(255, max(0, round(255 * value))) for value in preprocessing.mean)
    padded: Image.Image = F.pad(image, [*before, *after], fill=colour)
    return padded
