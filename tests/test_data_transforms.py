"""The geometric transform equals torchvision's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from timm.data import create_transform
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from sanrobust.data.decode import ImageError
from sanrobust.data.transforms import to_pixels
from sanrobust.preprocessing import CROP_MODES, INTERPOLATIONS, Preprocessing
from image_files import noise

SIZES = [(500, 375), (375, 500), (256, 256), (257, 256), (224, 224), (31, 29), (8, 8), (1, 40),
         (600, 90)]


def _torchvision(size: tuple[int, int], preprocessing: Preprocessing, resize: int) -> torch.Tensor:
    composed = transforms.Compose([
        transforms.Resize(resize, interpolation=InterpolationMode(preprocessing.interpolation)),
        transforms.CenterCrop(preprocessing.img_size),
        transforms.ToTensor(),
    ])
    pixels: torch.Tensor = composed(noise(size))
    return pixels


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_torchvision_resize_256_crop_224(size: tuple[int, int]) -> None:
    pixels = to_pixels(noise(size), Preprocessing())
    assert pixels.shape == (3, 224, 224) and pixels.dtype == torch.float32
    assert torch.equal(pixels, _torchvision(size, Preprocessing(), 256))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("img_size, crop_pct, resize", [(32, 1.0, 32), (28, 0.875, 32),
                                                        (75, 0.9, 83)])
def test_pixels_equal_torchvision_for_every_interpolation(
        interpolation: str, img_size: int, crop_pct: float, resize: int) -> None:
    preprocessing = Preprocessing(img_size=img_size, crop_pct=crop_pct,
                                  interpolation=interpolation)
    expected = _torchvision((61, 47), preprocessing, resize)
    assert torch.equal(to_pixels(noise((61, 47)), preprocessing), expected)


def test_an_image_of_the_wanted_size_keeps_its_values() -> None:
    image = noise((8, 8))
    pixels = to_pixels(image, Preprocessing(img_size=8, crop_pct=1.0))
    values = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    assert values.numpy().tobytes() == image.tobytes()


def test_an_image_too_elongated_to_resize_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="too elongated"):
        to_pixels(noise((1, 9000)), Preprocessing())


@pytest.mark.parametrize("mode", CROP_MODES)
@pytest.mark.parametrize("img_size, crop_pct", [(32, 1.0), (33, 0.875), (33, 1.15), (45, 1.3)])
@pytest.mark.parametrize("size", [(61, 47), (47, 62), (33, 33), (20, 21), (9, 70)])
def test_pixels_equal_timms_in_every_crop_mode(
        mode: str, img_size: int, crop_pct: float, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(img_size=img_size, crop_pct=crop_pct, interpolation="bicubic",
                                  mean=(0.1, 0.6, 0.45), std=(0.2, 0.3, 0.4), crop_mode=mode)
    timms = create_transform((3, img_size, img_size), interpolation="bicubic", crop_mode=mode,
                             crop_pct=crop_pct, mean=preprocessing.mean, std=preprocessing.std)
    mean, std = (torch.tensor(values).view(3, 1, 1)
                 for values in (preprocessing.mean, preprocessing.std))
    assert torch.equal((to_pixels(noise(size), preprocessing) - mean) / std, timms(noise(size)))


def test_an_image_too_thin_for_a_border_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="too elongated"):
        to_pixels(noise((1, 900)), Preprocessing(crop_mode="border"))
