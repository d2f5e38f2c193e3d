"""From a subject to its verdicts: every line asked once, but for those that rest on a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sanrobust.errors import ModelError, NonFiniteError
from sanrobust.validity.catalog import LINES
from sanrobust.validity.line import Line
from sanrobust.validity.subject import Subject
from sanrobust.validity.thresholds import FEWEST
from sanrobust.validity.values import LOOK, NOT_JUDGED, OK, WRONG, Finding

FIRST = "eval mode"


def judged(subject: Subject) -> Iterator[tuple[str, Finding]]:
    """Yield the name of each line and what it finds, in the order of the catalogue."""
    causes: dict[str, str] = {}
    for line in LINES:
        cause = next((causes[name] for name in line.rests_on if name in causes), None)
        if cause is not None:
            causes[line.name] = cause
            yield line.name, _unjudged(cause)
            continue
        finding = _of_enough(_asked(line, subject))
        if finding.verdict == WRONG:
            causes[line.name] = line.name
        yield line.name, finding


def in_train_mode(error: ModelError) -> Iterator[tuple[str, Finding]]:
    """Yield the lines of a model that no command measures, because it is in train mode."""
    yield FIRST, Finding(WRONG, error.seen, error.hint)
    for line in list(LINES)[1:]:
        yield line.name, _unjudged(FIRST)


def _asked(line: Line, subject: Subject) -> Finding:
    try:
        return line.judge(subject)
    except NonFiniteError as error:
        return Finding(LOOK, f"{error.rule}, but {error.seen}", error.hint)
    except ModelError as error:  # it stops where this line asks it, and perhaps nowhere else
        return Finding(WRONG, f"{error.rule}, but {error.seen}", error.hint)


def _of_enough(finding: Finding) -> Finding:
    """Return a finding, of which ok is no more than look where few images speak for it."""
    images = finding.numbers.get("known", finding.numbers.get("images"))
    if finding.verdict != OK or not isinstance(images, int) or images >= FEWEST:
        return finding
    return replace(finding, verdict=LOOK, seen=f"{finding.seen}; {images} "
                   f"image{' is' if images == 1 else 's are'} too few to judge by",
                   advice=f"give {FEWEST} images or more, better 64: --num-samples 64")


def _unjudged(cause: str) -> Finding:
    return Finding(NOT_JUDGED, f"because {cause} is wrong", f"mend {cause} first")
