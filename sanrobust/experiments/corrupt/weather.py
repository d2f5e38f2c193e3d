"""Snow, frost and fog; see `pixels` for the conventions."""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from PIL import Image

from sanrobust.errors import DataError, UsageError
from sanrobust.experiments.corrupt.blurs import enlarged, smeared
from sanrobust.experiments.corrupt.pixels import Floats, Formula, Levels, scaled

PACKAGE = "imagecorruptions"
FROST = {
    "frost1.png": "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755",
    "frost2.png": "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137",
    "frost3.png": "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504",
    "frost4.jpg": "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e",
    "frost5.jpg": "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2",
}
"""SHA-256 of the published pictures; of their sixth the script makes no use."""
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_SPARE = 1.1  # a picture too small for a crop is enlarged so that this part of the side fits


def snow(levels: Levels, draws: RandomState, mean: float, deviation: float, zoom: float,
         threshold: float, radius: float, sigma: float, part: float) -> Floats:
    """Whiten the image and let flakes fall on it from two sides."""
    pixels = levels.astype(np.float32) / np.float32(255)
    layer: Floats = draws.normal(size=levels.shape[:2], loc=mean, scale=deviation)
    layer = enlarged(layer[..., None], zoom)[..., 0]
    flakes = scaled(np.where(layer < threshold, 0, layer)).astype(np.uint8)
    fallen = smeared(flakes, radius, sigma, draws.uniform(-135, -45))[..., None] / 255
    grey = (pixels @ _GREY)[..., None]
    white = part * pixels + (1 - part) * np.maximum(pixels, grey * 1.5 + 0.5)
    return scaled(white + fallen + np.rot90(fallen, 2))


def frost(levels: Levels, draws: RandomState, part: float, of_frost: float, *,
          scale: float) -> Floats:
    """Lay part of a picture of frost, made smaller by ``scale``, over the image."""
    side = len(levels)
    name = list(FROST)[draws.randint(5)]
    picture = _picture(name, _scale_for(name, scale, side))
    row, column = (draws.randint(0, length - side) for length in picture.shape[:2])
    over = picture[row:row + side, column:column + side]
    return np.clip(part * levels + of_frost * over, 0, 255)


def frost_folder() -> Path:
    """Return the folder of the pictures of frost, which the package imagecorruptions brings.

    Raises UsageError where it is not installed, DataError where they are not the published ones.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UsageError("frost needs pictures of it, which come with a package",
                         seen=f"{PACKAGE} is not installed",
                         hint="pip install 'sanrobust[corrupt]', or name the others with "
                              "--corruptions")
    folder = Path(next(iter(found.submodule_search_locations))) / "frost"
    for name in _changed(folder):
        raise DataError("the pictures of frost must be the published ones",
                        seen=f"{folder / name} is not", hint=f"install {PACKAGE} anew")
    return folder


@cache
def _changed(folder: Path) -> tuple[str, ...]:
    def wrong() -> Iterator[str]:
        for name, digest in FROST.items():
            path = folder / name
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                yield name
    return tuple(wrong())


@cache
def _whole(name: str) -> Levels:
    return np.asarray(Image.open(frost_folder() / name).convert("RGB"))


def _scale_for(name: str, scale: float, side: int) -> float:
    shortest = min(_whole(name).shape[:2])
    return scale if round(shortest * scale) > side else _SPARE * (side + 1) / shortest


@cache
def _picture(name: str, scale: float) -> Levels:
    """Return a picture of frost resized by linear interpolation between its nearest pixels."""
    whole = _whole(name).astype(np.float64)
    for axis in (0, 1):
        length = whole.shape[axis]
        places = np.clip((np.arange(round(length * scale)) + 0.5) / scale - 0.5, 0, length - 1)
        first = np.minimum(places.astype(int), length - 2)
        weight = (places - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        whole = whole.take(first, axis) * (1 - weight) + whole.take(first + 1, axis) * weight
    return np.rint(whole).astype(np.uint8)


def fog(levels: Levels, draws: RandomState, strength: float, decay: float) -> Floats:
    """Add a plasma fractal and darken the sum to the image's own range."""
    side = len(levels)
    pixels = levels / 255.
    brightest = pixels.max()
    clouds = plasma(2 ** math.ceil(math.log2(max(2, side))), draws, decay)[:side, :side, None]
    return scaled((pixels + strength * clouds) * brightest / (brightest + strength))


def plasma(side: int, draws: RandomState, decay: float) -> Floats:
    """Return a square of clouds in [0, 1] by the diamond-square algorithm (Fournier et al. 1982).

    Args:
        side: a power of two; the clouds go on beyond each border where they begin at the other.
        draws: one uniform number per place.
        decay: by how much a step is less rough than the one before it.
    """
    field = np.zeros((side, side))
    step, rough = side, 100.
    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        above = corners + np.roll(corners, -1, axis=0)
        centres = _rough(above + np.roll(above, -1, axis=1), rough, draws)
        field[half::step, half::step] = centres
        field[::step, half::step] = _rough(_across(centres, corners, 0), rough, draws)
        field[half::step, ::step] = _rough(_across(centres, corners, 1), rough, draws)
        step, rough = half, rough / decay
    field -= field.min()
    field /= field.max()
    return field


def _across(centres: Floats, corners: Floats, axis: int) -> Floats:
    """Return the sums of two centres along ``axis`` and of two corners along the other."""
    return (centres + np.roll(centres, 1, axis)) + (corners + np.roll(corners, -1, 1 - axis))


def _rough(sums: Floats, rough: float, draws: RandomState) -> Floats:
    # The published script multiplies by the roughness twice.
    return sums / 4 + rough * draws.uniform(-rough, rough, sums.shape)


FORMULAE: Mapping[str, Formula] = {each.__name__: each for each in (snow, frost, fog)}
