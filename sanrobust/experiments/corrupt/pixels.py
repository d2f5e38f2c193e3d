"""Noise, colours, compression: what changes each pixel or block by itself.

Here and in `blurs` and `weather` an image is ``levels``, uint8 (S, S, 3), and a result float
(S, S, 3) in 0 to 255, of which the whole part counts. ``draws`` is NumPy's frozen generator, drawn
from in the order of the published scripts, so that equal seeds give equal images. S: the side.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image

Levels = NDArray[np.uint8]
Floats = NDArray[np.floating]
Formula = Callable[..., Floats]


def gaussian_noise(levels: Levels, draws: RandomState, deviation: float) -> Floats:
    """Add normal noise, its deviation in parts of the pixel range."""
    pixels = levels / 255.
    return scaled(pixels + draws.normal(size=pixels.shape, scale=deviation))


def shot_noise(levels: Levels, draws: RandomState, photons: float) -> Floats:
    """Count photons, of which white has ``photons`` on average."""
    return scaled(draws.poisson(levels / 255. * photons) / photons)


def impulse_noise(levels: Levels, draws: RandomState, part: float) -> Floats:
    """Set ``part`` of all values, each colour by itself, to black or white."""
    is_hit = draws.random_sample(levels.shape) < part
    is_white = draws.random_sample(levels.shape) < 0.5
    return np.where(is_hit, np.where(is_white, 255., 0.), levels)


def speckle_noise(levels: Levels, draws: RandomState, deviation: float) -> Floats:
    """Add normal noise in proportion to the pixel."""
    pixels = levels / 255.
    return scaled(pixels + pixels * draws.normal(size=pixels.shape, scale=deviation))


def contrast(levels: Levels, draws: RandomState, factor: float) -> Floats:
    """Draw each colour toward its mean over the image."""
    del draws
    pixels = levels / 255.
    means = pixels.mean(axis=(0, 1), keepdims=True)
    return scaled((pixels - means) * factor + means)


def brightness(levels: Levels, draws: RandomState, more: float) -> Floats:
    """Raise the value of the HSV colour."""
    del draws
    pixels = levels / 255.
    value = pixels.max(axis=2, keepdims=True)
    raised = np.clip(value + more, 0, 1)
    # Hue and saturation stay, so a colour scales with its value; black has neither.
    return scaled(np.where(value > 0, pixels * (raised / np.where(value > 0, value, 1)), raised))


def saturate(levels: Levels, draws: RandomState, factor: float, more: float) -> Floats:
    """Change the saturation of the HSV colour; grey, whose hue counts as red, may turn reddish."""
    del draws
    pixels = levels / 255.
    value = pixels.max(axis=2, keepdims=True)
    spread = value - pixels.min(axis=2, keepdims=True)
    safe = np.where(spread > 0, spread, 1)
    share = np.where(spread > 0, (value - pixels) / safe, np.array([0., 1., 1.]))
    saturation = np.where(spread > 0, spread / np.where(value > 0, value, 1), 0)
    return scaled(value * (1 - np.clip(saturation * factor + more, 0, 1) * share))


def jpeg_compression(levels: Levels, draws: RandomState, quality: float) -> Floats:
    """Write a JPEG file of a quality and read it."""
    del draws
    return as_jpeg(levels, int(quality)).astype(np.float64)


def as_jpeg(levels: Levels, quality: int) -> Levels:
    """Return an image as a JPEG file of a quality holds it."""
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def pixelate(levels: Levels, draws: RandomState, part: float) -> Floats:
    """Make the image smaller and larger again, each by means over boxes."""
    del draws
    side = len(levels)
    few = max(1, int(side * part))
    small = Image.fromarray(levels).resize((few, few), Image.Resampling.BOX)
    return np.asarray(small.resize((side, side), Image.Resampling.BOX), np.float64)


def scaled(pixels: Floats) -> Floats:
    """Return pixels of [0, 1], cut to that, as levels of 0 to 255."""
    return np.clip(pixels, 0, 1) * 255


FORMULAE: Mapping[str, Formula] = {each.__name__: each for each in (
    gaussian_noise, shot_noise, impulse_noise, speckle_noise, contrast, brightness, saturate,
    jpeg_compression, pixelate)}
