"""Lines that ask whether a model is a function of one image that an attack can be made on."""

from __future__ import annotations

import torch
from torch import Tensor

from sanrobust.metrics import wilson
from sanrobust.choices import FLOAT32, TF32
from sanrobust.probe import are_probabilities
from sanrobust.validity.line import Line
from sanrobust.validity.settings import DESCENDS_CROSS_ENTROPY
from sanrobust.validity.subject import Subject
from sanrobust.validity.thresholds import (DEAD_IMAGES, FEWEST, FLAT, FLAT_IMAGES, MOSTLY_ZERO,
                                           SLOPE_16_BITS, SLOPE_EXACT, SLOPE_FLOAT32, SLOPE_IMAGES,
                                           SLOPE_LOOK, TINY)
from sanrobust.validity.values import LOOK, OK, WRONG, Finding

CARLINI = "Carlini et al. 2019"
ATHALYE = "Athalye et al. 2018"
PINTOR = "Pintor et al. 2022"
SOUND = ("eval mode", "repeated pass", "batch of one")
"""Lines without which no number of a model repeats."""
_SMALLEST_RANGE = 2 / 255


def _eval_mode(subject: Subject) -> Finding:
    parts = sum(1 for _ in subject.classifier.modules())
    return Finding(OK, f"all {parts} parts are in eval mode", numbers={"parts": parts})


def _pixel_range(subject: Subject) -> Finding:
    low, high = (float(each) for each in torch.aminmax(subject.attacked.pixels))
    total = len(subject.pixels)
    finite, changed = subject.outside
    beyond = ("" if finite == total else
              f", and {total - finite} of {total} images have no finite logits there")
    clips = "the model clips what lies beyond" if not changed else "beyond, the model does not clip"
    seen = f"pixels span {low:.3g} to {high:.3g}; {clips}{beyond}"
    numbers = {"low": low, "high": high, "finite_outside": finite, "changed_outside": changed}
    if not 0 <= low <= high <= 1:
        return Finding(WRONG, seen, "give pixels in [0, 1] and leave the normalisation to the "
                       "model", numbers)
    if high < _SMALLEST_RANGE:
        return Finding(WRONG, seen, "divide 8-bit levels by 255 once: these pixels are nearly "
                       "black", numbers)
    return Finding(OK, seen, numbers=numbers)


def _repeated(subject: Subject) -> Finding:
    found = subject.repeated
    numbers = {"difference": found.again}
    if found.random:
        return Finding(WRONG, f"two passes over the same images differ by {found.again:.2g} of "
                       "the spread of the logits", "switch off what draws in eval mode, such as "
                       "dropout or noise; a defence that must draw needs sanrobust pgd --attack "
                       "autoattack --version rand", numbers)
    if found.changed:
        return Finding(LOOK, f"passes agree, but change the model's own {found.changed}",
                       "see to it that no answer depends on earlier ones", numbers)
    return Finding(OK, "passes over the same images are equal" if found.again == 0 else
                   f"passes over the same images differ by {found.again:.2g} of the spread of the "
                   "logits", numbers=numbers)


def _batch_of_one(subject: Subject) -> Finding:
    found = subject.repeated
    numbers = {"difference": found.alone}
    seen = (f"an image alone and in a batch differs by {found.alone:.2g} of the spread of the "
            "logits")
    if found.of_batch:
        return Finding(WRONG, seen, "normalise by running statistics, and let no image see another",
                       numbers)
    return Finding(OK, seen if found.alone else "an image alone and in a batch is the same, but "
                   "for rounding", numbers=numbers)


def _logits(subject: Subject) -> Finding:
    total, finite = len(subject.attacked.ids), len(subject.ids)
    numbers: dict[str, float | int | str | None] = {"finite": finite, "images": total}
    if finite < min(FEWEST, total):
        return Finding(WRONG, f"{finite} of {total} images have finite logits",
                       "check the weights, the preprocessing and the images", numbers)
    low, high = (float(each) for each in torch.aminmax(subject.logits))
    seen = f"logits span {low:.3g} to {high:.3g}"
    numbers |= {"low": low, "high": high}
    kind = _kind(subject.logits)
    if kind:
        return Finding(WRONG, f"{kind} ({seen})", "return what comes before the softmax or argmax",
                       numbers)
    if finite < total:
        return Finding(LOOK, f"{seen}; {total - finite} of {total} images have no finite ones and "
                       "are left out", "find out why: a rate without them speaks of the others "
                       "alone", numbers)
    return Finding(OK, seen, numbers=numbers)


def _kind(logits: Tensor) -> str:
    """Say what rows (N, K) are if they are no logits; empty text if they may be."""
    if (logits == logits[0]).all() and len(logits) > 1:
        return "all images have the same logits"
    if are_probabilities(logits):
        hard = bool(((logits == 0) | (logits == 1)).all())
        return "rows are decisions, one 1 and else 0" if hard else (
            "rows are probabilities: in [0, 1], with the sum 1")
    return ""


def _gradients(subject: Subject) -> Finding:
    found = subject.gradients
    total = len(subject.ids)
    hint = ("let gradients through: no detach, no rounding, no argmax on the way from the pixels; "
            "else attack without gradients: sanrobust pgd --attack square")
    if found is None:
        return Finding(WRONG, "no gradient comes back to the pixels", hint, {"dead": total})
    zero, tiny = found.zero == 1, (found.reach < TINY) & (found.zero < 1)
    count = {"zero": int(zero.sum()), "tiny": int(tiny.sum()), "nan": int((~found.finite).sum())}
    dead = sum(count.values())
    mostly = float(found.zero.median())
    reach = float(found.reach[found.finite].median()) if found.finite.any() else 0.0
    numbers = {**count, "images": total, "zero_entries": mostly, "reach": reach}
    told = [f"{word} on {value}" for word, value in count.items() if value]
    seen = (f"{', '.join(told) or 'zero, tiny or NaN on 0'} of {total} images; of the median one "
            f"{100 * mostly:.0f} % is zero")
    if wilson(dead, total)[0] > DEAD_IMAGES or dead == total:
        return Finding(WRONG, seen, hint, numbers)
    if dead or mostly > MOSTLY_ZERO:
        return Finding(LOOK, seen, "an attack cannot move these images or pixels: count them apart",
                       numbers)
    return Finding(OK, seen, numbers=numbers)


def _saturation(subject: Subject) -> Finding:
    margins, total = subject.margins, len(subject.ids)
    # What cross entropy's gradient in the logits is: probabilities less the one-hot label.
    pull = subject.logits.softmax(1)
    pull[torch.arange(total), subject.predicted] -= 1
    dead, flat = int((pull == 0).all(1).sum()), int((margins > FLAT).sum())
    median = float(margins.median())
    numbers = {"dead": dead, "flat": flat, "images": total, "median_margin": median}
    seen = (f"margin {median:.3g} (median); in float32 a probability is 1 on {flat} of {total} "
            f"images, and no gradient left on {dead}")
    if wilson(dead, total)[0] > DEAD_IMAGES:
        if subject.settings.attack in DESCENDS_CROSS_ENTROPY:
            return Finding(WRONG, seen, "descend a loss that no scale flattens: sanrobust check "
                           "--attack apgd-dlr, sanrobust pgd --attack apgd-dlr or --loss margin",
                           numbers)
        return Finding(OK, f"{seen}; {subject.settings.attack} does not descend it",
                       numbers=numbers)
    if 100 * flat > FLAT_IMAGES * total and subject.settings.attack in DESCENDS_CROSS_ENTROPY:
        return Finding(LOOK, seen, "check again with --attack apgd-dlr, whose loss no scale "
                       "flattens", numbers)
    return Finding(OK, seen, numbers=numbers)


def _differences(subject: Subject) -> Finding:
    found = subject.slopes
    tolerance = SLOPE_EXACT if found.exact else SLOPE_FLOAT32
    if subject.precision not in (FLOAT32, TF32):
        tolerance = max(tolerance, SLOPE_16_BITS)
    settled = found.settled(tolerance)
    off = int(((found.off > tolerance) & settled).sum())
    total, known = len(found.length), int(settled.sum())
    median = float(found.off[settled].median()) if known else float("nan")
    numbers = {"off": off, "settled": known, "images": total, "median_difference": median,
               "tolerance": tolerance, "float64": int(found.exact)}
    how = "in float64" if found.exact else "in float32, since the network has no float64"
    if not known:
        return Finding(LOOK, f"differences {how} agree with each other on 0 of {total} images",
                       "compare with an attack that takes no gradients", numbers)
    seen = (f"autograd is off by over {100 * tolerance:g} % on {off} of {known} images, by "
            f"{100 * median:.2g} % on the median one (differences {how})")
    if off > SLOPE_IMAGES * known:
        return Finding(WRONG, seen, "the gradient is not the network's own (a straight-through "
                       "or surrogate one): attack it by one that is meant for it, or without "
                       "gradients", numbers)
    if off > SLOPE_LOOK * known:
        return Finding(LOOK, seen, "look at these images: their gradients may mislead an attack",
                       numbers)
    return Finding(OK, seen, numbers=numbers)


MODEL_LINES = (
    Line("eval mode", "Every part of the model is in eval mode.", CARLINI, _eval_mode),
    Line("pixel range", "Pixels lie in [0, 1]; said is what the model does beyond.", CARLINI,
         _pixel_range, rests_on=("eval mode",)),
    Line("logits", "The model returns finite logits, no probabilities and no decisions.", CARLINI,
         _logits, rests_on=("eval mode",)),
    Line("repeated pass", "Two passes over the same images give the same logits.", ATHALYE,
         _repeated, rests_on=("eval mode", "logits")),
    Line("batch of one", "An image gets the same logits alone and in a batch.", CARLINI,
         _batch_of_one, rests_on=("eval mode", "logits", "repeated pass")),
    Line("gradients", "At the images gradients of the margin are neither zero, tiny nor NaN.",
         ATHALYE, _gradients, rests_on=(*SOUND, "logits")),
    Line("saturation", "Logits are not so far apart that cross entropy has no gradient in float32.",
         PINTOR, _saturation, rests_on=(*SOUND, "logits")),
    Line("differences", "Slopes by autograd are those by finite differences, in random directions.",
         CARLINI, _differences, rests_on=(*SOUND, "logits", "gradients")),
)
