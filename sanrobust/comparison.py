"""How models differ, as a value and as the texts of its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.errors import SanrobustError, ThresholdError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.harmless import csv_text
from sanrobust.metrics import PairedDifference
from sanrobust.summary import DEMO_NOTE
from sanrobust.tables import sheet
from sanrobust.tables.grid import printed

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "compare_"
"""What the names of the files begin with; the experiment's own follows."""
CLEAR = 0.05
"""Adjusted p below which one model is called better."""


@dataclass(frozen=True)
class Difference:
    """A row: how two models differ in one rate.

    Attributes:
        a, b: the models.
        data: name of the dataset.
        variant: what was done to the images in a word or two; may be empty.
        measure: the rate in words.
        rate: its name.
        found: the difference, a minus b.
        holm: its p adjusted for all rows of the table.
        higher_is_better: whether a high rate is good.
    """

    a: str
    b: str
    data: str
    variant: str
    measure: str
    rate: str
    found: PairedDifference
    holm: float
    higher_is_better: bool

    @property
    def advantage(self) -> float:
        """Points by which a is better than b; negative where it is worse."""
        return self.found.difference if self.higher_is_better else -self.found.difference

    @property
    def better(self) -> str:
        """The model that is better beyond chance; empty where neither is."""
        if not self.holm < CLEAR:
            return ""
        return self.a if self.advantage > 0 else self.b


@dataclass(frozen=True, eq=False)
class Comparison:
    """The differences in one experiment, and where they were written.

    Attributes:
        experiment: its name.
        rows: the differences.
        files: the files written.
        told: what a reader of the numbers should know besides, a sentence each.
        done: what was done to the images, a sentence for each variant.
        fail_under: advantage of the first model below which there is a problem; None for none.
        damage: what says that runs do not read back; None where all do.
        remarks: what a command says beside the table: which runs are not finished.
    """

    experiment: str
    rows: tuple[Difference, ...]
    files: tuple[Path, ...]
    told: tuple[str, ...]
    done: tuple[str, ...]
    fail_under: float | None = None
    damage: SanrobustError | None = None
    remarks: tuple[str, ...] = ()

    @property
    def frame(self) -> pd.DataFrame:
        """The rows with unrounded numbers, rates in percent."""
        import pandas as pd
        return pd.DataFrame([{
            "model_a": row.a, "model_b": row.b, "data": row.data, "variant": row.variant,
            "measure": row.measure, "rate": row.rate, **asdict(row.found), "p_holm": row.holm,
            "better": row.better} for row in self.rows])

    @property
    def text(self) -> str:
        """The table as people read it on a screen."""
        return sheet.to_text(sheet_of(self))

    @property
    def problem(self) -> SanrobustError | None:
        """What says that runs do not read back, or the first of a pair is too much worse."""
        if self.damage is not None:
            return self.damage
        fail_under = -math.inf if self.fail_under is None else self.fail_under
        low = [row for row in self.rows if row.advantage < fail_under]
        if not low:
            return None
        worst = min(low, key=lambda row: row.advantage)
        return ThresholdError(
            f"the first model's advantage must be at least {fail_under:g} points",
            seen=f"{worst.a} has {worst.advantage:.2f} over {worst.b} in {worst.measure}"
                 + (f", and {len(low) - 1} more lie below" if len(low) > 1 else ""),
            hint="look at the table, or give a lower --fail-under if that much may be lost")


def texts(made: Comparison) -> dict[str, str]:
    """Return the content of each file of a comparison by its suffix."""
    table = sheet_of(made)
    return {"csv": _csv(made), "md": sheet.to_markdown(table), "tex": sheet.to_latex(table)}


def _csv(made: Comparison) -> str:
    rows = made.frame
    note = _note(made)
    return csv_text(rows.assign(note=note) if note else rows)


def _note(made: Comparison) -> str:
    return DEMO_NOTE if any(row.data == "digits" for row in made.rows) else ""


_COLUMNS = {"a": "First", "b": "Second", "data": "Data", "variant": "Attack"}
"""Headings of what may differ between the rows."""


def sheet_of(made: Comparison) -> sheet.Sheet:
    """Return the table of a comparison, with its caption."""
    several = [name for name in _COLUMNS if len({getattr(row, name) for row in made.rows}) > 1]
    pairs: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for row in made.rows:
        pairs.setdefault((row.a, row.b), []).append(_line(row, several))
    return sheet.Sheet(
        f"{PREFIX}{EXPERIMENTS.get(made.experiment).files}", _caption(made, several),
        (*(_COLUMNS[name] for name in several), "Measure", "better", "first", "second", "diff.",
         "95 % interval", "1st only", "2nd only", "p", "Holm's p"),
        2 + len(several), tuple(map(tuple, pairs.values())))


def _caption(made: Comparison, several: Sequence[str]) -> str:
    first = made.rows[0]
    where = [made.experiment, *(getattr(first, name) for name in ("variant", "data")
                                if name not in several and getattr(first, name))]
    who = "; ".join(f"{word} is {getattr(first, name)}" for name, word in
                    (("a", "first"), ("b", "second")) if name not in several)
    images = sorted({row.found.n for row in made.rows})
    count = str(images[0]) if len(images) == 1 else f"{images[0]} to {images[-1]}"
    tests = "p is of the exact McNemar test" + (
        ", and of paired t tests of drops and of answers that are averaged"
        if any(row.found.of_means for row in made.rows) else "")
    note = _note(made)
    return " ".join([
        f"Paired comparison in {', '.join(where)}{f'; {who}' if who else ''}. Rates in percent of "
        f"the {count} images that both models evaluated; diff. is that of the first minus that of "
        "the second in points, with its paired interval; 1st only and 2nd only count the images of "
        f"which the measure holds, or holds more, for one alone; {tests}, Holm's p is adjusted for "
        f"all {len(made.rows)} rows; better is which of the two has the better rate, where Holm's "
        f"p is below {CLEAR:g}.",
        *made.done, *(f"{each[:1].upper()}{each[1:]}." for each in made.told),
        *([note] if note else [])])


def _line(row: Difference, several: Sequence[str]) -> tuple[str, ...]:
    found = row.found
    better = {row.a: "first", row.b: "second"}.get(row.better, "-")
    bounds = ", ".join(printed(bound, signed=True) for bound in (found.low, found.high))
    return (*(str(getattr(row, name)) for name in several), row.measure, better,
            printed(found.rate_a), printed(found.rate_b), printed(found.difference, signed=True),
            "-" if math.isnan(found.low) else f"[{bounds}]",
            str(found.only_a), str(found.only_b), _small(found.p_value), _small(row.holm))


def _small(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.1e}" if p < 0.001 else f"{p:.3f}"
