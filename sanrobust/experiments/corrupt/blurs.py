"""Blurs and the elastic transform: what mixes or moves pixels; see `pixels` for the conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

from sanrobust.experiments.corrupt.pixels import Floats, Formula, Levels, scaled

_LEAST_RADIUS = 8  # of the square in which a disk is drawn
_NO_WIDTH = 1e-15  # of a Gaussian that leaves pixels as they are
_FINE = 32  # an affine map looks pixels up at places rounded to this part of one, as OpenCV does


def gaussian_blur(levels: Levels, draws: RandomState, sigma: float) -> Floats:
    """Convolve with a Gaussian of ``sigma`` pixels."""
    del draws
    return scaled(smooth(levels / 255., sigma))


def glass_blur(levels: Levels, draws: RandomState, sigma: float, distance: float,
               rounds: float) -> Floats:
    """Smooth, let pixels copy a random one near by, from the last to the first, and smooth.

    The published script means to swap two pixels, but copies one onto the other, because NumPy
    hands out views; so do we.
    """
    side, far = len(levels), int(distance)
    soft = (smooth(levels / 255., sigma) * 255).astype(np.uint8)
    places = np.arange(side * side)
    inner = [row * side + column for row in range(side - far, far, -1)
             for column in range(side - far, far, -1)]
    for _ in range(int(rounds)):
        steps = draws.randint(-far, far, size=(len(inner), 2))
        places = _copied(places, inner, (steps[:, 1] * side + steps[:, 0]).tolist())
    shuffled = soft.reshape(-1, 3)[places].reshape(levels.shape)
    return scaled(smooth(shuffled / 255., sigma))


def _copied(places: NDArray[np.int64], inner: list[int], steps: list[int]) -> NDArray[np.int64]:
    """Let each place in ``inner``, one after the other, take what lies a step from it."""
    held = places.tolist()
    for place, step in zip(inner, steps):
        held[place] = held[place + step]
    return np.array(held)


def defocus_blur(levels: Levels, draws: RandomState, radius: float, sigma: float) -> Floats:
    """Convolve with a disk whose edge is smoothed."""
    del draws
    kernel = _disk(radius, sigma)
    pixels = levels / 255.
    return scaled(np.stack([ndimage.correlate(pixels[..., colour], kernel, mode="mirror")
                            for colour in range(3)], axis=2))


def _disk(radius: float, sigma: float) -> Floats:
    reach = max(_LEAST_RADIUS, int(radius))
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line ** 2 <= radius ** 2).astype(np.float32)
    edge = np.arange(-1, 2) if radius <= _LEAST_RADIUS else np.arange(-2, 3)
    weights = _weights(-edge ** 2 / (2 * sigma ** 2))
    disk /= disk.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, weights, axis, mode="mirror")
    return disk


def motion_blur(levels: Levels, draws: RandomState, radius: float, sigma: float) -> Floats:
    """Blur along a direction of -45 to 45 degrees."""
    return smeared(levels, radius, sigma, draws.uniform(-45, 45))


def smeared(levels: NDArray[np.uint8], radius: float, sigma: float, degrees: float) -> Floats:
    """Blur (S, S) or (S, S, C) one-sidedly along a direction as ImageMagick does.

    Half a Gaussian, cut at twice the radius, weighs the pixels along the direction; pixels beyond
    the border are those on it.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = _weights(-steps ** 2 / (2 * sigma ** 2))
    down, right = (np.ceil(steps * part - 0.5).astype(int)
                   for part in (math.sin(math.radians(degrees)), math.cos(math.radians(degrees))))
    rows, columns = (np.arange(side) for side in levels.shape[:2])
    total = np.zeros(levels.shape)
    for weight, row, column in zip(weights, down, right):
        total += weight * levels[np.clip(rows + row, 0, rows[-1])][
            :, np.clip(columns + column, 0, columns[-1])]
    return np.rint(total * 257) // 257  # it computes in 16 bits and cuts to 8


def zoom_blur(levels: Levels, draws: RandomState, end: float, step: float) -> Floats:
    """Average the image with enlargements of it."""
    del draws
    pixels = (levels / 255.).astype(np.float32)
    factors = np.arange(1, end, step)
    total = np.zeros_like(pixels)
    for factor in factors:
        total += enlarged(pixels, float(factor))
    return scaled((pixels + total) / (len(factors) + 1))


def enlarged(pixels: Floats, factor: float) -> Floats:
    """Return the middle of (S, S, C) enlarged to the whole, by linear interpolation."""
    side = len(pixels)
    part = math.ceil(side / factor)
    before = (side - part) // 2
    middle = pixels[before:before + part, before:before + part]
    length = round(part * factor)
    spare = (length - side) // 2
    # First and last pixel stay where they are, as in SciPy's zoom, which takes twice as long.
    places = np.arange(spare, spare + side) * ((part - 1) / max(length - 1, 1))
    first = np.minimum(places.astype(int), max(part - 2, 0))
    after = np.minimum(first + 1, part - 1)
    weight = (places - first)[:, None, None]
    rows = middle[first] * (1 - weight) + middle[after] * weight
    weight = weight.reshape(1, -1, 1)
    larger: Floats = rows[:, first] * (1 - weight) + rows[:, after] * weight
    return larger.astype(pixels.dtype)


def elastic_transform(levels: Levels, draws: RandomState, reach: float, sigma: float,
                      shift: float) -> Floats:
    """Move three points, and the image with them, then every pixel a little; all as parts of S."""
    side = len(levels)
    pixels = _moved((levels / 255.).astype(np.float32), draws, shift * side)
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    right, down = (_displacement(draws, side, reach, sigma) for _ in range(2))
    return scaled(_looked_up(pixels, rows + down, columns + right, mode="reflect"))


def _displacement(draws: RandomState, side: int, reach: float, sigma: float) -> Floats:
    noise = draws.uniform(-1, 1, size=(side, side))
    soft = smooth(noise, sigma * side, mode="reflect", truncate=3)
    moved: Floats = (soft * (reach * side)).astype(np.float32)
    return moved


def _moved(pixels: Floats, draws: RandomState, shift: float) -> Floats:
    """Apply the affine map that moves three points about the middle by up to ``shift`` pixels."""
    side = len(pixels)
    middle, third = side // 2, side // 3
    before = np.array([[middle + third, middle + third], [middle + third, middle - third],
                       [middle - third, middle - third]], dtype=np.float32)
    after = before + draws.uniform(-shift, shift, size=before.shape).astype(np.float32)
    ones = np.ones((3, 1))
    back = np.linalg.solve(np.hstack([after, ones]).astype(np.float64), before.astype(np.float64))
    down, right = np.mgrid[:side, :side]
    columns, rows = (np.rint((right * back[0, axis] + down * back[1, axis] + back[2, axis]) * _FINE)
                     / _FINE for axis in (0, 1))
    return _looked_up(pixels, rows, columns, mode="mirror")


def _looked_up(pixels: Floats, rows: Floats, columns: Floats, *, mode: str) -> Floats:
    """Return each colour's values at places between the pixels, by linear interpolation."""
    moved: Floats = np.stack([ndimage.map_coordinates(pixels[..., colour], [rows, columns], order=1,
                                                      mode=mode) for colour in range(3)], axis=2)
    return moved


def smooth(pixels: Floats, sigma: float, *, mode: str = "nearest", truncate: float = 4) -> Floats:
    """Convolve (S, S) or (S, S, C) with a Gaussian that ends at ``truncate`` times ``sigma``.

    As `scipy.ndimage.gaussian_filter` does, whose ``mode`` says how borders go on.
    """
    reach = int(truncate * sigma + 0.5)
    weights = _weights(-0.5 / max(sigma, _NO_WIDTH) ** 2 * np.arange(-reach, reach + 1) ** 2)
    for axis in (0, 1):
        pixels = ndimage.correlate1d(pixels, weights, axis, mode=mode)
    return pixels


def _weights(exponents: Floats) -> Floats:
    """Return the exponentials over their sum.

    Those of the C library: NumPy's depend on the instructions of the processor in their last bit,
    which moves levels where an image is even.
    """
    values = np.array([math.exp(exponent) for exponent in exponents])
    weights: Floats = values / values.sum()
    return weights


FORMULAE: Mapping[str, Formula] = {each.__name__: each for each in (
    gaussian_blur, glass_blur, defocus_blur, motion_blur, zoom_blur, elastic_transform)}
