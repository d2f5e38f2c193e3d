"""Where a line stops being ok, each number with its reason.

A verdict must not be a toss of a coin: where images are counted, what decides is a test or the
bound of an interval, so that a sound model is called wrong about once in a thousand times.
"""

from __future__ import annotations

WRONG_P = 1e-3
"""p below which a difference between images counts as a fault: a line asks this once for each of
about 15 questions, so a sound model meets a wrong one by chance in less than 2 % of checks."""
LOOK_P = 0.05
"""p below which a difference is worth a look."""
STRONGER_SHARE = 5.0
"""Percent of the images that the weaker attack alone may break, at the lower bound of its interval.
More hints at gradients that lead nowhere for a part of the images, even where the rates of both
are far apart (Athalye et al. 2018, section 3.1)."""
STRONGER_LOOK = 1.0
"""The same in percent, worth a look."""

CONVERGED = 1.0
"""Points that twice the steps may add: the last figure that a paper prints is worth a point."""
UNCONVERGED = 20.0
"""Points that twice the steps add, at the lower bound of their interval, where steps are far too
few to call the number robustness."""
UNLIMITED = 95.0
"""Percent of the images that an attack of 128/255 must break: there all pixels can be the same grey
(Athalye et al. 2018, section 3.1: an unbounded attack reaches 100 %)."""
RESTARTS = 5.0
"""Points that the best of all restarts may have above the first one."""
ROUNDING_LOSS = 5.0
"""Percent of the broken images that may be whole again once they are rounded to 8 bits; one image
may be in any case."""

DEAD_IMAGES = 10.0
"""Percent of the images whose gradient may be zero or tiny, at the lower bound of its interval."""
MOSTLY_ZERO = 0.99
"""Part of a gradient's entries that are exactly zero, of the median image, worth a look."""
TINY = 0.01
"""A gradient is tiny where a change of every pixel by the whole range would change the margin, to
first order, by less than this part of it. Sound networks reach their margin at 0.1 % to 30 % of
the range."""
FLAT = 16.6
"""Margin in nats from which float32 gives the first class the probability 1 (24 ln 2): there the
cross entropy's gradient has lost the label's own part (Carlini and Wagner 2017,
arXiv 1608.04644, section VIII)."""
FLAT_IMAGES = 5.0
"""Percent of images with such a margin, worth a look."""

SLOPE_EXACT, SLOPE_FLOAT32, SLOPE_16_BITS = 0.02, 0.1, 0.2
"""How far a slope by autograd may lie from that by differences, in parts of the gradient's length:
differences in float64; in float32; and where the network itself computes in 16 bits, whose
gradients round to a few percent. A surrogate gradient is off by half of it and more."""
SLOPE_IMAGES, SLOPE_LOOK = 0.25, 0.125
"""Part of the images that must be off, more than this, for a wrong verdict and for a look. One or
two of 16 may lie where float32 rounds to the other side of a kink."""

DESCENT = 0.75
"""Part of all steps that should lower the loss; a walk of constant steps goes up now and then."""

GAIN = 5.0
"""Points of accuracy that another reading of the pixels or labels must win to be a fault."""
ACCURATE = 90.0
"""Percent of accuracy above which pixels are read rightly, so that other readings are not tried."""
FEWEST = 8
"""Finite images below which nothing is judged."""
