"""One image in, the same image corrupted out; random numbers belong to the image alone."""

from __future__ import annotations

import threading

import numpy as np
from numpy.random import RandomState

from sanrobust.attacks.randomness import hashed
from sanrobust.experiments.corrupt import blurs, pixels, spatter, weather
from sanrobust.experiments.corrupt.parameters import Strengths, strengths_for

FORMULAE = {**pixels.FORMULAE, **blurs.FORMULAE, **weather.FORMULAE, **spatter.FORMULAE}


def corrupted(levels: pixels.Levels, corruption: str, severity: int, *, seed: int,
              image_id: str) -> pixels.Levels:
    """Return an image, uint8 (S, S, 3), corrupted as in the published version for its size.

    Where that version is published as JPEG files, the result is what such a file holds. Random
    numbers are a function of seed, image id, corruption and severity.
    """
    version = strengths_for(len(levels))
    made = formula(version, levels, corruption, severity, draws_of(
        seed, image_id, corruption, severity))
    return made if version.jpeg is None else pixels.as_jpeg(made, version.jpeg)


def formula(version: Strengths, levels: pixels.Levels, corruption: str, severity: int,
            draws: RandomState) -> pixels.Levels:
    """Return what a published script makes of an image before it is written to a file."""
    more = {"scale": version.frost_scale} if corruption == "frost" else {}
    made = FORMULAE[corruption](levels, draws, *version.of[corruption][severity - 1], **more)
    return made.astype(np.uint8)


class _Draws(threading.local):
    """A generator for each thread: seeding one takes a tenth of the time of making one."""

    def __init__(self) -> None:
        self.generator = RandomState(0)


_DRAWS = _Draws()


def draws_of(seed: int, image_id: str, corruption: str, severity: int) -> RandomState:
    """Return the generator of one corrupted image, of the kind that NumPy promises never to change.

    It is the thread's own, and the next call seeds it anew.
    """
    number = hashed(seed, f"corruption {corruption}", image_id, severity)
    _DRAWS.generator.seed(np.frombuffer(number.to_bytes(32, "little"), "<u4").astype(np.uint32))
    return _DRAWS.generator
