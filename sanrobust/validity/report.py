"""The verdicts of a check as a value, and as the texts of its files."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.errors import SanrobustError, ValidityError
from sanrobust.files import printable
from sanrobust.harmless import csv_text
from sanrobust.summary import DEMO_NOTE
from sanrobust.tables import sheet
from sanrobust.validity.values import LOOK, NOT_JUDGED, OK, WORDS, WRONG, Verdict

if TYPE_CHECKING:
    import pandas as pd

STEM = "check"
SUFFIXES = ("csv", "md", "json")
_WIDTH = 100
_SOURCES = ("Carlini et al. 2019 (arXiv 1902.06705), Athalye et al. 2018 (arXiv 1802.00420), "
            "Pintor et al. 2022 (arXiv 2106.09947)")


@dataclass(frozen=True, eq=False)
class Validity:
    """What a check of one or several models has found.

    Attributes:
        verdicts: a line of each model, model by model.
        settings: what decided the numbers, by name.
        files: the files written.
        failed: why a model could not be checked, by its name.
        remarks: what a reader should know besides.
        about: which weights, preprocessing and images the lines of each model are of.
        whole: whether the text has the lines that are ok, as the files do.
    """

    verdicts: tuple[Verdict, ...]
    settings: Mapping[str, object]
    files: tuple[Path, ...] = ()
    failed: Mapping[str, SanrobustError] | None = None
    remarks: tuple[str, ...] = ()
    about: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    whole: bool = True

    @property
    def table(self) -> pd.DataFrame:
        """A row for each line of each model: ``model``, ``data``, ``line``, ``verdict``, ``seen``,
        ``advice`` and ``numbers``, unrounded, rates in percent."""
        import pandas as pd
        return pd.DataFrame([{
            "model": each.model, "data": each.data, "line": each.line,
            "verdict": each.finding.verdict, "seen": each.finding.seen,
            "advice": each.finding.advice, "numbers": dict(each.finding.numbers)}
            for each in self.verdicts])

    def wrong(self) -> tuple[Verdict, ...]:
        """Return the lines that are wrong."""
        return tuple(each for each in self.verdicts if each.finding.verdict == WRONG)

    @property
    def text(self) -> str:
        """The verdicts as people read them on a screen."""
        return "\n".join(_lines(self))

    @property
    def problem(self) -> SanrobustError | None:
        """What says that a line is wrong, or that a model could not be checked."""
        wrong = self.wrong()
        if wrong:
            named = ", ".join(f"{each.line} of {each.model}" for each in wrong[:3])
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            return ValidityError("no line may be wrong for an attack's numbers to be believed",
                                 seen=f"{named}{more} {'is' if len(wrong) == 1 else 'are'}",
                                 hint="do what stands below it in the table, and check again")
        if self.failed:
            return next(iter(self.failed.values()))
        return None


def texts(made: Validity) -> dict[str, str]:
    """Return the content of each file of a check by its suffix."""
    return {"csv": _csv(made), "md": sheet.to_markdown(_sheet(made)), "json": _json(made)}


def caption(made: Validity) -> str:
    """Return the sentences that stand with the verdicts."""
    said = made.settings
    note = [DEMO_NOTE] if any(each.data == "digits" for each in made.verdicts) else []
    return " ".join([
        f"Validity of {said['attack']} in L-inf at eps = {said['eps']:g}/255 in {said['iters']} "
        f"steps, away from the model's own prediction; seed {said['seed']}. {LOOK}: to be thought "
        f"about; {WRONG}: the attack's numbers cannot be believed; a line that rests on a wrong "
        f"one is {NOT_JUDGED}. After {_SOURCES}.", *note])


def _lines(made: Validity) -> Iterator[str]:
    width = max(len(each.line) for each in made.verdicts)
    mark = max(map(len, WORDS))
    margin = " " * (mark + width + 6)
    for (model, data), verdicts in groupby(made.verdicts, lambda each: (each.model, each.data)):
        own = list(verdicts)
        yield f"{printable(model)} on {printable(data)}: {_counted(own)}"
        for each in own:
            if each.finding.verdict == NOT_JUDGED or each.finding.verdict == OK and not made.whole:
                continue
            head = f"  {each.finding.verdict:<{mark}}  {each.line:<{width}}  "
            yield _filled(each.finding.seen, head, margin)
            if each.finding.advice and each.finding.verdict != OK:
                yield _filled(f"-> {each.finding.advice}", margin, f"{margin}   ")
        for cause, lines in _unjudged(own).items():
            yield _filled(f"{cause}: {', '.join(lines)}", f"  {NOT_JUDGED:<{mark}}  ",
                          " " * (mark + 4))
        yield ""
    yield _filled(caption(made))


def _filled(text: str, first: str = "", other: str = "") -> str:
    return textwrap.fill(printable(text), _WIDTH, initial_indent=first, subsequent_indent=other,
                         break_long_words=False, break_on_hyphens=False)


def _unjudged(verdicts: list[Verdict]) -> dict[str, list[str]]:
    """Return the lines that are not judged by the reason why."""
    found: dict[str, list[str]] = {}
    for each in verdicts:
        if each.finding.verdict == NOT_JUDGED:
            found.setdefault(each.finding.seen, []).append(each.line)
    return found


def _counted(verdicts: list[Verdict]) -> str:
    counts = Counter(each.finding.verdict for each in verdicts)
    return ", ".join(f"{counts[word]} {word}" for word in WORDS if counts[word])


def _sheet(made: Validity) -> sheet.Sheet:
    groups = tuple(tuple((each.model, each.data, each.line, each.finding.verdict,
                          each.finding.seen, each.finding.advice) for each in own)
                   for _, own in groupby(made.verdicts, lambda each: (each.model, each.data)))
    return sheet.Sheet(STEM, caption(made),
                       ("Model", "Data", "Line", "Verdict", "Seen", "What to do"), 6, groups)


def _csv(made: Validity) -> str:
    rows = made.table
    rows["numbers"] = [json.dumps(each, ensure_ascii=False) for each in rows["numbers"]]
    return csv_text(rows)


def _json(made: Validity) -> str:
    models = [{"model": model, "data": data, **made.about.get(model, {}), "counts": dict(Counter(
        each.finding.verdict for each in own)), "lines": [
            {"line": each.line, "verdict": each.finding.verdict, "seen": each.finding.seen,
             "advice": each.finding.advice, "numbers": _plain(each.finding.numbers)}
            for each in own]}
        for (model, data), group in groupby(made.verdicts, lambda each: (each.model, each.data))
        for own in [list(group)]]
    failed = {name: str(error) for name, error in (made.failed or {}).items()}
    return json.dumps({"settings": dict(made.settings), "models": models, "failed": failed},
                      indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(numbers: Mapping[str, float | int | str | None]) -> dict[str, float | int | str | None]:
    """Return numbers as JSON has them, which knows no NaN and no infinity."""
    return {name: None if isinstance(value, float) and not abs(value) < float("inf") else value
            for name, value in numbers.items()}
