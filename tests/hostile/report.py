"""The families with their shares, their counts, and for each fault the command to type."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from hostile.case import Answer, Case, Family, fault
from hostile.driver import load, run
from hostile.finished import headers, records
from hostile.names import names
from hostile.numbers import numbers
from hostile.places import places
from hostile.tables_of_names import tables_of_names
from hostile.weights import weights

FRESH_EVERY = 40
"""One case in so many gets a process of its own, started anew."""
SHARES: dict[str, tuple[Family, float]] = {
    "numbers": (numbers, 0.25),
    "names": (names, 0.25),
    "csv": (tables_of_names, 0.16),
    "places": (places, 0.16),
    "weights": (weights, 0.08),
    "headers": (headers, 0.05),
    "records": (records, 0.05),
}


@dataclass
class Count:
    """What came of a family's cases."""

    codes: Counter[int | None] = field(default_factory=Counter)
    faults: int = 0
    seconds: float = 0.0
    peak: int = 0

    def add(self, answer: Answer, wrong: str | None) -> None:
        """Count an answer."""
        self.codes[answer.code] += 1
        self.faults += wrong is not None
        self.seconds = max(self.seconds, answer.seconds)
        self.peak = max(self.peak, answer.peak)

    def line(self) -> str:
        """Return the counts as words."""
        codes = ", ".join(f"{number} with {code}" for code, number in self.codes.most_common())
        return (f"{sum(self.codes.values()):4} tried, {self.faults} wrong; exit codes: {codes}; "
                f"at most {self.seconds:.1f} s, {self.peak / 1e9:.2f} GB")


def main(argv: Sequence[str]) -> int:
    """Try the families and print what came of them; return 1 when an answer was wrong."""
    asked = _parser().parse_args(argv)
    chosen = asked.family or [*SHARES]
    whole = sum(SHARES[name][1] for name in chosen)
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    load()
    counts = {name: _try(name, folder / name, asked.seed,
                         round(asked.count * SHARES[name][1] / whole)) for name in chosen}
    for name, count in counts.items():
        print(f"{name:<10}{count.line()}")
    faults = sum(count.faults for count in counts.values())
    print(f"seed {asked.seed}: {sum(sum(count.codes.values()) for count in counts.values())} "
          f"hostile inputs, {faults} answered wrongly")
    if faults:
        print(f"their files are kept in {folder}")
    else:
        shutil.rmtree(folder)
    return int(faults > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hostile", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="other cases for another number")
    parser.add_argument("--count", type=int, default=500, help="cases in all")
    parser.add_argument("--family", action="append", choices=tuple(SHARES), help="only this one")
    return parser


def _try(name: str, folder: Path, seed: int, number: int) -> Count:
    folder.mkdir()
    count = Count()
    for place, case in enumerate(islice(SHARES[name][0](folder, seed), number)):
        answer = run(case, fresh=place % FRESH_EVERY == FRESH_EVERY - 1)
        wrong = fault(case, answer)
        count.add(answer, wrong)
        if wrong:
            print(_told(name, seed, place, case, answer, wrong), flush=True)
    return count


def _told(name: str, seed: int, place: int, case: Case, answer: Answer, wrong: str) -> str:
    last = (answer.err.strip().splitlines() or [""])[-1]
    return (f"{name} {seed}:{place} {ascii(case.name)}: {wrong}, exit code {answer.code}\n"
            f"    {ascii(case.command())[:400]}\n    {ascii(last)[:200]}")
