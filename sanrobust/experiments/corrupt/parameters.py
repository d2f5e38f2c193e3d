"""How strong each corruption is at each severity, in the three published versions.

The numbers are those of the scripts that made ImageNet-C, Tiny ImageNet-C and CIFAR-10-C
(hendrycks/robustness, ImageNet-C/create_c): no package that is kept has them all as published, see
`results/README.md` of the repository. Lengths are in pixels of the published size, except
where a comment says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Strengths:
    """One published version of the benchmark.

    Attributes:
        name: what it is called.
        side: of its images, in pixels.
        least: shortest side of the images that we corrupt with it.
        jpeg: quality of the JPEG files in which it is published; None where pixels are stored.
        frost_scale: by how much pictures of frost are made smaller.
        of: parameters by corruption, one tuple per severity.
    """

    name: str
    side: int
    least: int
    jpeg: int | None
    frost_scale: float
    of: Mapping[str, Sequence[Numbers]]


def strengths_for(side: int) -> Strengths:
    """Return the version whose images are most like those of ``side`` pixels, as a ratio."""
    return next(each for each in PUBLISHED if side >= each.least)


def _singles(*values: float) -> list[Numbers]:
    return [(value,) for value in values]


# sigma; photons; part of the values; sigma.  Blurs: sigma; sigma, distance, rounds (glass); radius,
# sigma of smoothing (defocus); radius, sigma (motion); end and step of the factors (zoom).
# Snow: mean, deviation, zoom, threshold, radius, sigma, part of the image.  Frost: parts of image
# and frost.  Fog: strength, decay.  Elastic: displacement, its sigma, shift, all three in parts of
# the side.  Saturate: factor, summand.  Spatter: mean, deviation, sigma, threshold, strength or
# sigma of the edge, and 1 for mud or 0 for water.
_IMAGENET: Mapping[str, Sequence[Numbers]] = {
    "gaussian_noise": _singles(.08, .12, .18, .26, .38),
    "shot_noise": _singles(60, 25, 12, 5, 3),
    "impulse_noise": _singles(.03, .06, .09, .17, .27),
    "speckle_noise": _singles(.15, .2, .35, .45, .6),
    "gaussian_blur": _singles(1, 2, 3, 4, 6),
    "glass_blur": [(.7, 1, 2), (.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    "defocus_blur": [(3, .1), (4, .5), (6, .5), (8, .5), (10, .5)],
    "motion_blur": [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    "zoom_blur": [(1.11, .01), (1.16, .01), (1.21, .02), (1.26, .02), (1.31, .03)],
    "snow": [(.1, .3, 3, .5, 10, 4, .8), (.2, .3, 2, .5, 12, 4, .7),
             (.55, .3, 4, .9, 12, 8, .7), (.55, .3, 4.5, .85, 12, 8, .65),
             (.55, .3, 2.5, .85, 12, 12, .55)],
    "frost": [(1, .4), (.8, .6), (.7, .7), (.65, .7), (.6, .75)],
    "fog": [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    "brightness": _singles(.1, .2, .3, .4, .5),
    "contrast": _singles(.4, .3, .2, .1, .05),
    # The script says 244 where it means 224.
    "elastic_transform": [tuple(244 / 224 * part for part in parts) for parts in (
        (2, .7, .1), (2, .08, .2), (.05, .01, .02), (.07, .01, .02), (.12, .01, .02))],
    "pixelate": _singles(.6, .5, .4, .3, .25),
    "jpeg_compression": _singles(25, 18, 15, 10, 7),
    "spatter": [(.65, .3, 4, .69, .6, 0), (.65, .3, 3, .68, .6, 0), (.65, .3, 2, .68, .5, 0),
                (.65, .3, 1, .65, 1.5, 1), (.67, .4, 1, .65, 1.5, 1)],
    "saturate": [(.3, 0), (.1, 0), (2, 0), (5, .1), (20, .2)],
}
_TINY: Mapping[str, Sequence[Numbers]] = {
    "gaussian_noise": _singles(.04, .08, .12, .15, .18),
    "shot_noise": _singles(250, 100, 50, 30, 15),
    "impulse_noise": _singles(.01, .02, .05, .08, .14),
    "speckle_noise": _singles(.15, .2, .25, .3, .35),
    "gaussian_blur": _singles(.5, .75, 1, 1.25, 1.5),
    "glass_blur": [(.1, 1, 1), (.5, 1, 1), (.6, 1, 2), (.7, 2, 1), (.9, 2, 2)],
    "defocus_blur": [(.5, .6), (1, .1), (1.5, .1), (2.5, .01), (3, .1)],
    "motion_blur": [(10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)],
    "zoom_blur": [(1.06, .01), (1.11, .01), (1.16, .01), (1.21, .01), (1.26, .01)],
    "snow": [(.1, .2, 1, .6, 8, 3, .8), (.1, .2, 1, .5, 10, 4, .8),
             (.15, .3, 1.75, .55, 10, 4, .7), (.25, .3, 2.25, .6, 12, 6, .65),
             (.3, .3, 1.25, .65, 14, 12, .6)],
    "frost": [(1, .3), (.9, .4), (.8, .45), (.75, .5), (.7, .55)],
    "fog": [(.4, 3), (.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)],
    "brightness": _singles(.1, .2, .3, .4, .5),
    "contrast": _singles(.4, .3, .2, .1, .05),
    "elastic_transform": [(0, 0, .08), (.05, .3, .06), (.1, .08, .06), (.1, .03, .03),
                          (.16, .03, .02)],
    "pixelate": _singles(.9, .8, .7, .6, .5),
    "jpeg_compression": _singles(65, 58, 50, 40, 25),
    "spatter": [(.62, .1, .7, .7, .6, 0), (.65, .1, .8, .7, .6, 0), (.65, .3, 1, .69, .6, 0),
                (.65, .1, .7, .68, .6, 1), (.65, .1, .5, .67, .6, 1)],
    "saturate": [(.3, 0), (.1, 0), (2, 0), (5, .1), (30, .2)],
}
_CIFAR: Mapping[str, Sequence[Numbers]] = {
    "gaussian_noise": _singles(.04, .06, .08, .09, .10),
    "shot_noise": _singles(500, 250, 100, 75, 50),
    "impulse_noise": _singles(.01, .02, .03, .05, .07),
    "speckle_noise": _singles(.06, .1, .12, .16, .2),
    "gaussian_blur": _singles(.4, .6, .7, .8, 1),
    "glass_blur": [(.05, 1, 1), (.25, 1, 1), (.4, 1, 1), (.25, 1, 2), (.4, 1, 2)],
    "defocus_blur": [(.3, .4), (.4, .5), (.5, .6), (1, .2), (1.5, .1)],
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "zoom_blur": [(1.06, .01), (1.11, .01), (1.16, .01), (1.21, .01), (1.26, .01)],
    "snow": [(.1, .2, 1, .6, 8, 3, .95), (.1, .2, 1, .5, 10, 4, .9),
             (.15, .3, 1.75, .55, 10, 4, .9), (.25, .3, 2.25, .6, 12, 6, .85),
             (.3, .3, 1.25, .65, 14, 12, .8)],
    "frost": [(1, .2), (1, .3), (.9, .4), (.85, .4), (.75, .45)],
    "fog": [(.2, 3), (.5, 3), (.75, 2.5), (1, 2), (1.5, 1.75)],
    "brightness": _singles(.05, .1, .15, .2, .3),
    "contrast": _singles(.75, .5, .4, .3, .15),
    "elastic_transform": [(0, 0, .08), (.05, .2, .07), (.08, .06, .06), (.1, .04, .05),
                          (.1, .03, .03)],
    "pixelate": _singles(.95, .9, .85, .75, .65),
    "jpeg_compression": _singles(80, 65, 58, 50, 40),
    "spatter": [(.62, .1, .7, .7, .5, 0), (.65, .1, .8, .7, .5, 0), (.65, .3, 1, .69, .5, 0),
                (.65, .1, .7, .69, .6, 1), (.65, .1, .5, .68, .6, 1)],
    "saturate": [(.3, 0), (.1, 0), (1.5, 0), (2, .1), (2.5, .2)],
}
PUBLISHED: tuple[Strengths, ...] = (
    Strengths("ImageNet-C", 224, 120, 85, 1.0, _IMAGENET),
    Strengths("Tiny ImageNet-C", 64, 46, 85, 0.3, _TINY),
    Strengths("CIFAR-10-C", 32, 1, None, 0.2, _CIFAR),
)
"""The largest first; the limits lie at the geometric means of the published sides."""
