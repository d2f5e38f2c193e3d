"""Timings that can be trusted: alternated, bracketed by a compute probe, judged afterwards.

A virtual machine or a hot GPU has phases in which everything is several times slower. A sample
counts only if the probe, a fixed piece of pure arithmetic, ran at nearly its best rate just before
and just after it. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

LEAST_PART = 0.85
# Rounds of one case are at most this many times the samples asked for.
MOST_ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """One thing that several contenders compute.

    Attributes:
        kind: ``operator``, ``model``, ``attack`` or ``loop``.
        name: which operator and shape, or which model.
        step: ``forward``, or ``attack``: forward and gradient with respect to the input; of an
            attack its name.
        images: images in a batch, of a loop all.
    """

    kind: str
    name: str
    step: str
    images: int


@dataclass(frozen=True)
class Sample:
    """One timing.

    Attributes:
        case, contender: what was timed.
        round: which turn of the alternation it belongs to.
        seconds: wall time of one call.
        before, after: the probe's rate on either side, in GFLOP/s.
    """

    case: Case
    contender: str
    round: int
    seconds: float
    before: float
    after: float


@dataclass(frozen=True)
class Summary:
    """The healthy samples of one contender in one case.

    Attributes:
        case, contender: what was timed.
        seconds: median wall time of one call; None when no sample was healthy.
        fastest, slowest: extremes of the healthy samples, in seconds.
        samples: how many were healthy.
        rejected: how many were not.
        ours_faster: the contender's median over that of `ours` in the same case; None without.
    """

    case: Case
    contender: str
    seconds: float | None
    fastest: float | None
    slowest: float | None
    samples: int
    rejected: int
    ours_faster: float | None = None

    @property
    def images_per_second(self) -> float | None:
        """Images per second at the median."""
        return None if self.seconds is None else self.case.images / self.seconds


OURS = "ours"


def best_rate(samples: Iterable[Sample], known: float = 0.0) -> float:
    """Return the best rate that the probe reached anywhere, at least ``known``, in GFLOP/s."""
    return max(known, *(max(sample.before, sample.after) for sample in samples), 0.0)


def healthy(sample: Sample, best: float) -> bool:
    """Return whether the probe kept `LEAST_PART` of ``best`` on both sides of a sample."""
    return min(sample.before, sample.after) >= LEAST_PART * best


def alternate(case: Case, calls: Mapping[str, Callable[[], float]], probe: Callable[[], float],
              *, repeats: int, known: float = 0.0) -> list[Sample]:
    """Time every call in turn until each has ``repeats`` healthy samples, or rounds run out.

    Args:
        case: what the calls compute.
        calls: per contender, a function that returns the seconds of one call.
        probe: returns the machine's rate now, in GFLOP/s.
        repeats: healthy samples wanted of each contender; at most `MOST_ROUNDS` times as many
            rounds are made.
        known: the best rate that the probe is known to reach, in GFLOP/s.

    Returns all samples, healthy or not, in the order in which they were taken.
    """
    samples: list[Sample] = []
    rate = probe()
    for turn in range(repeats * MOST_ROUNDS):
        best = best_rate(samples, known)
        lacking = [name for name in calls if _count(samples, name, best) < repeats]
        if not lacking:
            break
        # Another contender comes first each time, so that no one always follows the same one.
        first = turn % len(lacking)
        for name in lacking[first:] + lacking[:first]:
            seconds = calls[name]()
            before, rate = rate, probe()
            samples.append(Sample(case, name, turn, seconds, before, rate))
    return samples


def summarise(samples: Sequence[Sample], known: float = 0.0) -> list[Summary]:
    """Judge all samples of a run by its best probe; one summary per case and contender.

    ``known`` is the best rate that the probe is known to reach, in GFLOP/s.

    Cases and contenders keep the order of their first samples.
    """
    best = best_rate(samples, known)
    groups: dict[tuple[Case, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.case, sample.contender), []).append(sample)
    medians = {key: _median(group, best) for key, group in groups.items()}
    return [_summary(group, best, _ratio(medians[key], medians.get((key[0], OURS))))
            for key, group in groups.items()]


def _count(samples: Sequence[Sample], contender: str, best: float) -> int:
    return sum(sample.contender == contender and healthy(sample, best) for sample in samples)


def _median(group: Sequence[Sample], best: float) -> float | None:
    seconds = [sample.seconds for sample in group if healthy(sample, best)]
    return median(seconds) if seconds else None


def _ratio(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or ours is None else theirs / ours


def _summary(group: Sequence[Sample], best: float, ours_faster: float | None) -> Summary:
    seconds = [sample.seconds for sample in group if healthy(sample, best)]
    return Summary(
        case=group[0].case, contender=group[0].contender, seconds=_median(group, best),
        fastest=min(seconds, default=None), slowest=max(seconds, default=None),
        samples=len(seconds), rejected=len(group) - len(seconds), ours_faster=ours_faster)
