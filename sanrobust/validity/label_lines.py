"""Lines that ask whether pixels and labels mean to a model what they mean to the images.

Letters: M images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import binomtest
from torch import Tensor

from sanrobust.data.imageset import id_hash
from sanrobust.metrics import wilson
from sanrobust.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from sanrobust.validity.attacked import Pair
from sanrobust.validity.line import Line
from sanrobust.validity.model_lines import CARLINI, SOUND
from sanrobust.validity.subject import Subject
from sanrobust.validity.thresholds import ACCURATE, GAIN, LOOK_P, WRONG_P
from sanrobust.validity.values import LOOK, OK, WRONG, Finding

_READ = 256
"""Images that are read in other ways at most."""
_HALF = (0.5, 0.5, 0.5)
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
Reading = tuple[str, str, Callable[[Tensor], Tensor]]


def _normalisation(subject: Subject) -> Finding:
    plain = subject.right[:_READ]
    accuracy = 100 * float(plain.double().mean())
    # Where names of classes are mixed up nearly any reading is better than all images wrong.
    renamed = torch.from_numpy(_reassigned(subject)[0])[:_READ]
    least = renamed if renamed.sum() > plain.sum() else plain
    own = subject.classifier.preprocessing
    numbers: dict[str, float | int | str | None] = {"top1": accuracy, "images": len(plain)}
    best: tuple[float, float, str, str] | None = None
    tried = [*_readings(own, subject.wider.pixels, accurate=accuracy >= ACCURATE)]
    for words, advice, read in tried:
        hits = subject.hits(subject.logits_of(read(subject.wider.pixels[:_READ])))
        pair = Pair.of(hits.double().numpy(), least.double().numpy())
        p = min(1.0, pair.p * len(tried))  # Bonferroni: several are tried
        if p < LOOK_P and (best is None or pair.weak > best[0]):
            best = pair.weak, p, words, advice
    seen = f"{accuracy:.1f} % of {len(plain)} images are right"
    if best is not None:
        rate, p, words, advice = best
        numbers |= {"top1_other": rate, "p": p, "other": words}
        seen += f", and {rate:.1f} % if {words} (p = {p:.2g})"
        is_wrong = p < WRONG_P and rate - 100 * float(least.double().mean()) >= GAIN
        return Finding(WRONG if is_wrong else LOOK, seen, advice, numbers)
    seen += ", and no more if the pixels are read otherwise"
    if any(word in subject.assumed for word in ("mean", "deviation")):
        return Finding(LOOK, f"{seen}; its normalisation was assumed or changed", "say how the "
                       "network wants its pixels: --mean and --std, or --no-normalize", numbers)
    return Finding(OK, seen, numbers=numbers)


def _readings(own: Preprocessing, pixels: Tensor, *, accurate: bool) -> Iterator[Reading]:
    """Yield how the pixels may have to be read: in words, what to do then, and the reading.

    What a model does with pixels x begins with (x - mean) / std, so x std + mean undoes it once.
    """
    usual = dict.fromkeys([(own.mean, own.std), (IMAGENET_MEAN, IMAGENET_STD), (_HALF, _HALF)])
    usual.pop((_ZERO, _ONE), None)
    for mean, std in usual:
        told = f"by mean {mean[0]:g} and deviation {std[0]:g}"
        yield (f"a normalisation {told} is undone", "normalise once: take it out of the network, "
               "or type --no-normalize", _affine(std, mean))
        if accurate:
            return
        yield (f"they are normalised {told} once more", "give the normalisation that the network "
               "was trained with: --mean and --std",
               _affine(tuple(1 / each for each in std),
                       tuple(-m / s for m, s in zip(mean, std))))
    yield ("they span 0 to 255", "scale by 255 in the network: --mean 0,0,0 and --std of 1/255",
           lambda x: x * 255)
    yield "they are inverted", "invert the images, as in training", lambda x: 1 - x
    if not torch.equal(pixels, pixels.flip(1)):
        yield ("their channels are in the order blue, green, red",
               "turn the order of the channels in the network", lambda x: x.flip(1))


def _affine(scale: tuple[float, ...], offset: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    factor, shift = (torch.tensor(each).view(-1, 1, 1) for each in (scale, offset))
    return lambda x: x * factor + shift


def _label_order(subject: Subject) -> Finding:
    plain = subject.right
    accuracy = 100 * float(plain.double().mean())
    hits, moved = _reassigned(subject)
    pair = Pair.of(hits.astype("float64"), plain.double().numpy())
    numbers = {"top1": accuracy, "top1_reassigned": pair.weak, "classes_moved": moved,
               "p": pair.p, "images": pair.n}
    seen = (f"{accuracy:.1f} % of {pair.n} images are right, {pair.weak:.1f} % with other names "
            "for the classes")
    if pair.p < WRONG_P and pair.weak - accuracy >= GAIN:
        return Finding(WRONG, f"{seen} (p = {pair.p:.2g}; {moved} classes have other names)",
                       "sort the classes as the model was trained with: --class-map, or the order "
                       "of the folders", numbers)
    return Finding(OK, seen, numbers=numbers)


def _reassigned(subject: Subject) -> tuple[np.ndarray, int]:
    """Return which images (M,) are right once classes are renamed, and how many classes are.

    Each half of the images is counted by the renaming that is best on the other one, which its
    own noise cannot help.
    """
    labels = subject.wider.labels.numpy()
    predicted = subject.wide_logits.argmax(1).numpy()
    finite = subject.wide_logits.isfinite().all(1).tolist()
    classes = subject.wide_logits.shape[1]
    order = sorted((place for place, known in enumerate(finite) if known),
                   key=lambda place: id_hash("sanrobust-halves", subject.wider.ids[place]))
    hits, moved = np.zeros(len(labels), bool), 0
    for fit, count in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        # A class of which nothing is known keeps its name, and so does one of which as many
        # images speak for another.
        table = np.eye(classes) / 2
        np.add.at(table, (labels[fit], predicted[fit]), 1)
        _, renamed = linear_sum_assignment(table, maximize=True)
        hits[count] = renamed[labels[count]] == predicted[count]
        moved = max(moved, int((renamed != np.arange(classes)).sum()))
    return hits, moved


def _accuracy(subject: Subject) -> Finding:
    right, total = int(subject.right.sum()), len(subject.right)
    accuracy, (low, high) = 100 * right / total, wilson(right, total)
    numbers: dict[str, float | int | str | None] = {
        "top1": accuracy, "low": low, "high": high, "images": total,
        "published": subject.published}
    seen = f"{accuracy:.1f} % of {total} images are right [{low:.1f}, {high:.1f}]"
    commonest = int(torch.bincount(subject.wider.labels).max()) / total
    if commonest ** total > LOOK_P:  # with all images right
        return Finding(LOOK, f"{seen}; {total} images cannot tell a network from one that names "
                       "the commonest class", "give more images, of several classes", numbers)
    if binomtest(right, total, commonest, alternative="greater").pvalue > LOOK_P:
        return Finding(WRONG, f"{seen}, no more than by naming the commonest class "
                       f"({100 * commonest:.1f} %)", "check weights, labels and preprocessing: "
                       "there is nothing to attack", numbers)
    if subject.published is None:
        return Finding(LOOK, f"{seen}; {subject.source}",
                       "compare it with what the network reached in training", numbers)
    p = float(binomtest(right, total, subject.published / 100).pvalue)
    numbers["p"] = p
    seen += f"; {subject.published:.1f} % is known from {subject.source} (p = {p:.2g})"
    if accuracy < subject.published and p < WRONG_P:
        return Finding(WRONG, seen, "check weights, preprocessing and data: they are not those of "
                       "the published accuracy", numbers)
    if p < LOOK_P:
        return Finding(LOOK, seen, "check that these are the images of the published accuracy",
                       numbers)
    return Finding(OK, seen, numbers=numbers)


_KNOWN = (*SOUND, "logits")
PIXEL_LINES = (
    Line("normalisation", "No other reading of the pixels makes more images right: they are "
         "normalised once, and have the range and order of training.", CARLINI, _normalisation,
         rests_on=_KNOWN),)
LABEL_LINES = (
    Line("label order", "No renaming of the classes makes more images right.", CARLINI,
         _label_order, rests_on=(*_KNOWN, "normalisation")),
    Line("accuracy", "Clean accuracy is what is published of the weights.", CARLINI, _accuracy,
         rests_on=(*_KNOWN, "normalisation", "label order")),
)
