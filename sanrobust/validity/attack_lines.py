"""Lines that ask whether an attack does on a model what attacks do where they work."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sanrobust.metrics import wilson
from sanrobust.validity.attacked import NOISES, RESTARTS, UNLIMITED, WALK_STEPS, Broken, Pair
from sanrobust.validity.line import Line
from sanrobust.validity.model_lines import ATHALYE, CARLINI, PINTOR, SOUND
from sanrobust.validity.subject import Subject
from sanrobust.validity import thresholds as limits
from sanrobust.validity.values import LOOK, OK, WRONG, Finding

_OVERFLOWS = "find out where the network overflows: nothing is known of the attack there"
_MASKED = ("the gradient's attack fails where another one wins: look for what hides the gradient, "
           "and report the stronger of both")


def _descent(subject: Subject) -> Finding:
    walk = subject.attacks.walk
    known = walk.known
    total = int(known.sum())
    if not total:
        return Finding(LOOK, "no image has finite numbers at every step", "see the line on logits")
    losses, zero = walk.losses[known], walk.zero[known]
    stuck = int((zero == 1).any(1).sum())
    falls = float((np.diff(losses, axis=1) < 0).mean())
    worse = int((losses[:, -1] >= losses[:, 0]).sum())
    numbers = {"falling_steps": 100 * falls, "worse_images": worse, "stuck_images": stuck,
               "images": total, "zero_entries": 100 * float(zero.mean())}
    seen = (f"{100 * falls:.0f} % of {WALK_STEPS} plain steps lower the loss; {worse} of {total} "
            f"images end no lower, {stuck} meet a zero gradient")
    if any(wilson(count, total)[0] > limits.DEAD_IMAGES for count in (worse, stuck)):
        return Finding(WRONG, seen, "the gradient leads nowhere: look at the loss and the way from "
                       "the pixels to it", numbers)
    if falls < limits.DESCENT or worse or stuck:
        return Finding(LOOK, seen, "try smaller steps, or another loss (--attack apgd-dlr)",
                       numbers)
    return _of_all(Finding(OK, seen, numbers=numbers), known)


def _converged(subject: Subject) -> Finding:
    steps = subject.settings.iters
    pair = Pair.of(subject.attacks.broken(iters=2 * steps), subject.attacks.broken())
    if not pair.n:
        return _nothing()
    gain = pair.weak - pair.strong
    numbers = {"steps": steps, "rate": pair.strong, "rate_twice": pair.weak, "gain": gain,
               "images": pair.n}
    seen = (f"{pair.strong:.1f} % in {steps} steps, {pair.weak:.1f} % in {2 * steps}: "
            f"{gain:+.1f} points")
    more = f"raise the steps (--iters {2 * steps}) until twice as many gain under a point"
    # Images that the longer walk alone breaks, less its chance.
    if gain > 0 and pair.low > limits.UNCONVERGED:
        return Finding(WRONG, seen, more, numbers)
    one_image = 100 / pair.n
    if gain > max(limits.CONVERGED, one_image * (1 + 1e-9)):
        return Finding(LOOK, seen, f"{more}, or report what sanrobust pgd --attack autoattack "
                       "leaves", numbers)
    return _of_all(Finding(OK, seen, numbers=numbers), pair.known)


def _radius(subject: Subject) -> Finding:
    radii = [subject.settings.radius * part for part in (0.25, 0.5, 1, 2)]
    broken = [subject.attacks.broken(eps) for eps in radii]
    rates = [_rate(each) for each in broken]
    seen = ", ".join(f"{rate:.1f} % at {eps:g}" if rate == rate else f"no numbers at {eps:g}"
                     for eps, rate in zip(radii, rates))
    pairs = [Pair.of(small, large) for small, large in zip(broken, broken[1:])]
    numbers = {**{f"rate_{eps:g}": rate for eps, rate in zip(radii, rates)},
               "only_smaller": max(pair.only_weak for pair in pairs)}
    verdict = _gravest(map(_word, pairs))
    if verdict == OK and rates[0] == rates[-1]:
        return Finding(LOOK, f"{seen}: no more at the largest than at the smallest",
                       "give an --eps at which some images break and others do not", numbers)
    advice = ("a larger ball holds the smaller one: an attack that breaks less in it does not "
              "search it; try more steps and other step lengths" if verdict != OK else "")
    return _of_all(Finding(verdict, seen, advice, numbers), _known(*broken))


def _unlimited(subject: Subject) -> Finding:
    broken = subject.attacks.broken(UNLIMITED)
    known = broken[~np.isnan(broken)]
    if not len(known):
        return _nothing(f" at eps = {UNLIMITED:g}")
    rate, high = _rate(broken), wilson(int(known.sum()), len(known))[1]
    numbers = {"rate": rate, "high": high, "images": len(known)}
    seen = f"{rate:.1f} % of {len(known)} images at eps = {UNLIMITED:g}/255"
    if len(known) < len(broken):
        seen += f"; {len(broken) - len(known)} have no finite numbers there"
    advice = ("in this ball every image can be made grey, so an attack that works breaks nearly "
              "all: try more steps, larger ones, or another loss")
    if high < limits.UNLIMITED:
        return Finding(WRONG, seen, advice, numbers)
    if rate < limits.UNLIMITED or len(known) < len(broken):
        return Finding(LOOK, seen, advice, numbers)
    return Finding(OK, seen, numbers=numbers)


def _noise(subject: Subject) -> Finding:
    return _weaker(subject, subject.attacks.noise, f"{NOISES} draws of noise")


def _one_step(subject: Subject) -> Finding:
    return _weaker(subject, subject.attacks.one_step, "one step")


def _black_box(subject: Subject) -> Finding:
    return _weaker(subject, subject.attacks.square,
                   f"Square in {subject.settings.queries} queries")


def _weaker(subject: Subject, weak: Broken, words: str) -> Finding:
    """Compare the attack with one that should not be stronger."""
    pair = Pair.of(weak, subject.attacks.broken())
    if not pair.n:
        return _nothing()
    settings = subject.settings
    seen = (f"{words} {pair.weak:.1f} %, {settings.attack} {pair.strong:.1f} % of {pair.n} images; "
            f"{pair.only_weak} and {pair.only_strong} alone (p = {pair.p:.2g})")
    numbers = {"rate": pair.weak, "rate_attack": pair.strong, "only_other": pair.only_weak,
               "only_attack": pair.only_strong, "p": pair.p, "images": pair.n}
    verdict = _word(pair)
    if verdict != OK:
        return Finding(verdict, seen, _MASKED, numbers)
    if pair.weak == pair.strong:
        return Finding(LOOK, seen, "give an --eps at which the two can be told apart", numbers)
    return _of_all(Finding(OK, seen, numbers=numbers), pair.known)


def _restarts(subject: Subject) -> Finding:
    every = [subject.attacks.broken(restart=restart) for restart in range(RESTARTS)]
    known = _known(*every)
    runs = [each[known] for each in every]
    rates = [_rate(each) for each in runs]
    best = _rate(np.maximum.reduce(runs))
    pairs = [Pair.of(one, other) for one in runs for other in runs if one is not other]
    numbers = {**{f"rate_{number + 1}": rate for number, rate in enumerate(rates)},
               "rate_best": best}
    seen = (f"{', '.join(f'{rate:.1f}' for rate in rates)} % from {RESTARTS} starts, {best:.1f} % "
            "by the best of them")
    if math.isnan(best):
        return _nothing()
    if any(pair.p < limits.WRONG_P for pair in pairs):
        return Finding(WRONG, seen, "the number depends on where the attack starts: take many "
                       "restarts, and look for what makes the loss rugged", numbers)
    if best - rates[0] > limits.RESTARTS:
        return Finding(LOOK, seen, "take several restarts (sanrobust pgd --restarts 5)", numbers)
    return _of_all(Finding(OK, seen, numbers=numbers), known)


def _stored(subject: Subject) -> Finding:
    attacks = subject.attacks
    broken = attacks.broken() == 1
    total = int(broken.sum())
    if not total:
        return Finding(LOOK, "the attack breaks no image at this radius",
                       "give a larger --eps to see it")
    again, rounded = attacks.again
    lost = int((broken & (again != 1)).sum())
    whole = int((broken & (again == 1) & (rounded != 1)).sum())
    numbers = {"broken": total, "whole_again": lost, "whole_rounded": whole}
    seen = (f"of {total} broken images {lost} are whole when predicted again, {whole} when rounded "
            "to 8 bits")
    if wilson(lost, total)[0] > limits.ROUNDING_LOSS:
        return Finding(WRONG, seen, "the model gives other answers for the stored images: score "
                       "what is stored, and look for what changes between passes", numbers)
    if lost or whole > max(1, limits.ROUNDING_LOSS / 100 * total):
        return Finding(LOOK, seen, "report what is left of the attack on 8-bit images too", numbers)
    return _of_all(Finding(OK, seen, numbers=numbers), _known(attacks.broken()))


def _word(pair: Pair) -> str:
    """Return the verdict of a pair of which the first should not be the stronger one."""
    if pair.p < limits.WRONG_P or pair.low > limits.STRONGER_SHARE:
        return WRONG
    return LOOK if pair.p < limits.LOOK_P or pair.low > limits.STRONGER_LOOK else OK


def _gravest(words: Iterable[str]) -> str:
    found = set(words)
    return next((word for word in (WRONG, LOOK) if word in found), OK)


def _rate(broken: Broken) -> float:
    known = broken[~np.isnan(broken)]
    return 100 * float(known.mean()) if len(known) else math.nan


def _known(*broken: Broken) -> NDArray[np.bool_]:
    """Return which images (N,) have numbers under all of these attacks."""
    return np.asarray(~np.isnan(np.stack(broken)).any(0))


def _of_all(finding: Finding, known: NDArray[np.bool_]) -> Finding:
    """Return a finding, of which ok is no more than look where some images (N,) have no numbers.
    """
    lost, left = int((~known).sum()), int(known.sum())
    if finding.verdict != OK or not lost:
        return finding
    return Finding(LOOK, f"{finding.seen}; {lost} of {len(known)} images have no finite numbers "
                   "and are left out", _OVERFLOWS, {**finding.numbers, "lost": lost, "known": left})


def _nothing(where: str = "") -> Finding:
    return Finding(LOOK, f"no image has finite numbers{where}", _OVERFLOWS)


_WALKS = (*SOUND, "logits", "gradients", "saturation", "differences", "normalisation")
_WORKS = (*_WALKS, "descent")
ATTACK_LINES = (
    Line("descent", "Plain steps lower the loss, and on the way no gradient is zero.", PINTOR,
         _descent, rests_on=_WALKS),
    Line("steps", "Twice the steps gain under a point.", CARLINI, _converged, rests_on=_WORKS),
    Line("radius", "In a larger ball more is broken.", CARLINI, _radius, rests_on=_WORKS),
    Line("eps 128", "Where every image can be made grey nearly all are broken.", ATHALYE,
         _unlimited, rests_on=(*_WORKS, "radius", "accuracy")),
    Line("noise", "Random noise of the same size does less.", CARLINI, _noise, rests_on=_WORKS),
    Line("one step", "One step does less than many.", ATHALYE, _one_step, rests_on=_WORKS),
    Line("black box", "An attack without gradients (Square) is not stronger.", ATHALYE, _black_box,
         rests_on=_WORKS),
    Line("restarts", "Several random starts break as much.", CARLINI, _restarts, rests_on=_WORKS),
    Line("stored images", "What was broken is broken when predicted again, and in 8 bits.", CARLINI,
         _stored, rests_on=_WORKS),
)
