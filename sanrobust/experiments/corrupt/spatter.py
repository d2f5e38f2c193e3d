"""Drops of water or mud on the lens; see `pixels` for the conventions.

The water's shading was published as a chain of OpenCV's functions on 8-bit images. They are written
here anew, with the same rounding, as far as this chain needs them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

from sanrobust.experiments.corrupt.blurs import smooth
from sanrobust.experiments.corrupt.pixels import Floats, Formula, Levels, scaled

_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255
_WEAK, _STRONG = 50, 150  # thresholds of the edges of drops
_FARTHEST = 20
# Lengths of a step to a neighbour, diagonally, and as a knight (Borgefors 1986).
_CHAMFER = {1: 1.0, 2: 1.4, 5: 2.1969}
_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])


def spatter(levels: Levels, draws: RandomState, mean: float, deviation: float, sigma: float,
            threshold: float, strength: float, is_mud: float) -> Floats:
    """Cover the image with drops where smoothed noise is above a threshold.

    An image that no drop falls on stays as it is; the published script divides by zero there.
    """
    pixels = levels.astype(np.float32) / np.float32(255)
    noise = draws.normal(size=levels.shape[:2], loc=mean, scale=deviation)
    liquid = smooth(noise, sigma)
    liquid = np.where(liquid < threshold, 0, liquid)
    if is_mud:
        mask = smooth((liquid > threshold).astype(np.float32), strength)[..., None]
        mask = np.where(mask < 0.8, 0, mask)
        return scaled(pixels * (1 - mask) + _MUD * mask)
    return scaled(pixels + _shaded((liquid * 255).astype(np.uint8), strength)[..., None] * _WATER)


def _shaded(liquid: NDArray[np.uint8], strength: float) -> Floats:
    """Return how bright the water is, (S, S), at most ``strength``."""
    depth = np.minimum(_distance(_edges(liquid)), _FARTHEST)
    depth = _levelled(_mean3(depth).astype(np.uint8))
    relief = ndimage.correlate(depth.astype(int), _RELIEF, mode="mirror")
    light = _mean3(np.clip(relief, 0, 255))
    light = np.rint(light) * liquid
    return light / max(float(light.max()), 1.) * strength


def _mean3(values: NDArray[np.generic]) -> Floats:
    mean: Floats = ndimage.correlate(values.astype(np.float64), np.ones((3, 3)), mode="mirror") / 9
    return mean


def _levelled(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Equalise the histogram; the darkest level becomes 0."""
    counts = np.bincount(image.ravel(), minlength=256)
    darkest = int(np.flatnonzero(counts)[0])
    others = image.size - counts[darkest]
    if not others:
        return image
    counts[:darkest + 1] = 0
    table = np.rint(counts.cumsum().astype(np.float32) * np.float32(255 / others))
    levelled: NDArray[np.uint8] = table.astype(np.uint8)[image]
    return levelled


def _edges(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find edges (Canny 1986): ridges of the gradient that hang together with a strong place."""
    across, down = (ndimage.sobel(image.astype(int), axis, mode="nearest") for axis in (1, 0))
    ridge = _ridges(across, down)
    size = abs(across) + abs(down)
    parts, count = ndimage.label(ridge & (size > _WEAK), np.ones((3, 3)))
    strong = np.unique(parts[ridge & (size > _STRONG)])
    return np.isin(parts, strong[strong > 0])


def _ridges(across: NDArray[np.int64], down: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return where the gradient is larger than at both neighbours along its direction."""
    size = np.pad(abs(across) + abs(down), 1)
    # OpenCV's tangent of 22.5 degrees, in parts of 2 to the power of 15.
    flat, tall = abs(across) * 13573, abs(down) << 15
    is_flat, is_steep = tall < flat, tall > flat + (abs(across) << 16)
    same = (across ^ down) >= 0

    def beats(row: int, column: int, *, ties: bool) -> NDArray[np.bool_]:
        other = size[1 + row:size.shape[0] - 1 + row, 1 + column:size.shape[1] - 1 + column]
        here = size[1:-1, 1:-1]
        return here >= other if ties else here > other
    level = beats(0, -1, ties=False) & beats(0, 1, ties=True)
    upright = beats(-1, 0, ties=False) & beats(1, 0, ties=True)
    falling = beats(-1, -1, ties=False) & beats(1, 1, ties=False)
    rising = beats(-1, 1, ties=False) & beats(1, -1, ties=False)
    return np.where(is_flat, level, np.where(is_steep, upright,
                                             np.where(same, falling, rising)))


def _distance(edges: NDArray[np.bool_]) -> Floats:
    """Return each place's distance to an edge in chamfer steps, right up to `_FARTHEST`."""
    found = np.where(edges, 0., np.inf)
    steps = [(row, column, _CHAMFER[row * row + column * column]) for row in range(-2, 3)
             for column in range(-2, 3) if row * row + column * column in _CHAMFER]
    height, width = edges.shape
    for _ in range(_FARTHEST):
        padded = np.pad(found, 2, constant_values=np.inf)
        nearer = np.min([padded[2 + row:2 + row + height, 2 + column:2 + column + width] + length
                         for row, column, length in steps], axis=0)
        closer = np.minimum(found, nearer)
        if np.array_equal(closer, found):
            break
        found = closer
    return found


FORMULAE: Mapping[str, Formula] = {"spatter": spatter}
