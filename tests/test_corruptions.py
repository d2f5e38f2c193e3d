"""The common corruptions as functions of an image: those of the published scripts.

``published/corruptions.npz`` holds 149 values of each image that the scripts of
hendrycks/robustness (ImageNet-C/create_c, run with ImageMagick 6.9.11, OpenCV 4.10 and scikit-image
0.26) make of `picture`, with NumPy's generator seeded by the severity: by version and corruption,
severities in rows.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sanrobust.errors import DataError
from sanrobust.experiments.corrupt import names, weather
from sanrobust.experiments.corrupt.apply import corrupted, formula
from sanrobust.experiments.corrupt.names import BY_NAME, CORRUPTIONS
from sanrobust.experiments.corrupt.parameters import PUBLISHED, strengths_for

SCRIPTS = Path(__file__).parent / "published" / "corruptions.npz"
KEYS = {"CIFAR-10-C": "cifar", "Tiny ImageNet-C": "tiny", "ImageNet-C": "imagenet"}
# Largest difference in levels; none for the others. Colours are turned to HSV and back in another
# order, OpenCV adds up a convolution and interpolates in single or fixed precision, and other
# versions of Pillow bring other JPEG libraries.
MOST_LEVELS = {"brightness": 1, "saturate": 1, "defocus_blur": 1, "frost": 1, "spatter": 1,
               "elastic_transform": 5, "jpeg_compression": 3}
HAS_FROST = importlib.util.find_spec(weather.PACKAGE) is not None
needs_frost = pytest.mark.skipif(not HAS_FROST, reason="imagecorruptions is not installed")


def picture(side: int) -> np.ndarray:
    """Waves and blocks of colour, (side, side, 3), by whole numbers alone."""
    rows, columns, colours = np.ogrid[:side, :side, :3]
    wave = abs((rows * (7 + 2 * colours) + columns * (5 - colours)) % 510 - 255)
    blocks = (rows // 8 * 37 + columns // 8 * 91 + colours * 60) % 256
    return np.where(rows < columns, wave, blocks).astype(np.uint8)


@pytest.mark.parametrize("name", ["gaussian_blur", "glass_blur", "defocus_blur", "motion_blur"])
def test_no_image_depends_on_the_last_bit_of_numpys_exponential(
        name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.full((32, 32, 3), 77, np.uint8)
    image[5:20, 9:30] = 200

    def made() -> list[np.ndarray]:
        return [formula(PUBLISHED[-1], image, name, severity, np.random.RandomState(severity))
                for severity in names.SEVERITIES]

    before, exponential = made(), np.exp
    monkeypatch.setattr(np, "exp", lambda value: np.nextafter(exponential(value), 2))
    for one, two in zip(before, made(), strict=True):
        assert np.array_equal(one, two)


@pytest.mark.parametrize("version", PUBLISHED, ids=lambda each: each.name)
@pytest.mark.parametrize("name", BY_NAME)
def test_images_are_those_of_the_published_scripts(version, name: str) -> None:  # type: ignore
    if name == "frost" and not HAS_FROST:
        pytest.skip("imagecorruptions is not installed")
    wanted = np.load(SCRIPTS)[f"{KEYS[version.name]}/{name}"].astype(int)
    for severity in names.SEVERITIES:
        made = formula(version, picture(version.side), name, severity,
                       np.random.RandomState(severity)).reshape(-1)
        values = made[::len(made) // 149][:149].astype(int)
        apart = abs(values - wanted[severity - 1])
        assert apart.max() <= MOST_LEVELS.get(name, 0), severity
        # A convolution of flat blocks is a whole level but for rounding, and the scripts cut.
        assert apart.mean() < (0.7 if name == "defocus_blur" else 0.1), severity


def test_the_version_is_the_one_of_the_nearest_size() -> None:
    sides = {1: "CIFAR-10-C", 45: "CIFAR-10-C", 46: "Tiny ImageNet-C", 64: "Tiny ImageNet-C",
             119: "Tiny ImageNet-C", 120: "ImageNet-C", 224: "ImageNet-C", 512: "ImageNet-C"}
    assert {side: strengths_for(side).name for side in sides} == sides
    for version in PUBLISHED:
        assert set(version.of) == set(BY_NAME)
        assert all(len(each) == len(names.SEVERITIES) for each in version.of.values())


@pytest.mark.parametrize("side", [1, 7, 32, 130])
def test_every_size_and_plain_images_can_be_corrupted(side: int) -> None:
    for level in (0, 128, 255):
        levels = np.full((side, side, 3), level, np.uint8)
        for each in CORRUPTIONS:
            if each.name != "frost" or HAS_FROST:
                made = corrupted(levels, each.name, 5, seed=0, image_id="x")
                assert made.shape == levels.shape and made.dtype == np.uint8


def test_large_images_are_stored_as_jpeg_as_published_and_small_ones_are_not() -> None:
    large, small = (corrupted(picture(side), "contrast", 1, seed=0, image_id="x")
                    for side in (224, 32))
    plain = [formula(strengths_for(side), picture(side), "contrast", 1,
                     np.random.RandomState(0)) for side in (224, 32)]
    file = io.BytesIO()
    Image.fromarray(plain[0]).save(file, "JPEG", quality=85, optimize=True)
    assert (large == np.asarray(Image.open(file))).all() and (small == plain[1]).all()


def test_a_draw_belongs_to_seed_image_corruption_and_severity() -> None:
    levels = np.full((32, 32, 3), 128, np.uint8)

    def noise(name: str = "gaussian_noise", severity: int = 5, seed: int = 0,
              image: str = "a") -> bytes:
        made: bytes = corrupted(levels, name, severity, seed=seed, image_id=image).tobytes()
        return made
    others = [noise(seed=1), noise(image="b"), noise("speckle_noise"), noise(severity=4)]
    assert noise() == noise() and noise() not in others


def test_global_generators_are_neither_read_nor_moved() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = [corrupted(picture(32), name, 3, seed=0, image_id="a") for name in BY_NAME
             if name != "frost" or HAS_FROST]
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(5)
    again = [corrupted(picture(32), name, 3, seed=0, image_id="a") for name in BY_NAME
             if name != "frost" or HAS_FROST]
    assert all((one == two).all() for one, two in zip(first, again, strict=True))


@needs_frost
def test_other_pictures_of_frost_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weather, "FROST", {"frost1.png": "0" * 64})
    monkeypatch.setattr(weather, "_changed", weather._changed.__wrapped__)
    with pytest.raises(DataError, match="frost1.png"):
        weather.frost_folder()
