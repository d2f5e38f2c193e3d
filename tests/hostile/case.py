"""What a hostile input is, and what the command must answer to it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sanrobust.records import RUNS_FOLDER
from sanrobust.runs import TABLES_LOCK_NAME

MOST_SECONDS = 20.0
MOST_BYTES = 1_500_000_000
LONGEST_SENTENCE = 900
# The exit codes of `sanrobust.errors`, but for 1, which is that of a traceback.
REFUSALS = (2, 3, 4, 5, 6, 7, 8, 9)
_SENTENCE = re.compile(r"^(?:sanrobust|Error): ")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: what is hostile about it.
        argv: the words behind ``sanrobust``.
        folder: where they are typed; it holds the files that they name.
        env: variables of the environment beside those of every case.
        expected: a file of ``folder`` that may come out, and what it must then hold; a case with
            one may also be answered by exactly that file and exit code 0.
    """

    name: str
    argv: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    expected: tuple[str, bytes] | None = None

    def command(self) -> str:
        """Return what to type to see it again."""
        words = [*(f"{key}={value}" for key, value in self.env.items()), "sanrobust", *self.argv]
        return f"cd {shlex.quote(str(self.folder))} && {shlex.join(words)}"


class Family(Protocol):
    """A kind of hostile inputs: a function of an empty folder and a seed, the same each time."""

    def __call__(self, folder: Path, seed: int) -> Iterator[Case]: ...


@dataclass(frozen=True)
class Answer:
    """What a command did.

    Attributes:
        code: exit code; negative for a signal, None where it had to be stopped.
        out: standard output.
        err: standard error.
        seconds: how long it took.
        peak: the most memory it held, in bytes.
        written: files that are new or changed, relative to the folder.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    peak: int
    written: tuple[str, ...]


def fault(case: Case, answer: Answer) -> str | None:
    """Say what is wrong with an answer; None where it is as it must be."""
    if answer.code is None:
        return f"it hung for {answer.seconds:.0f} s"
    if "Traceback (most recent call last)" in answer.out + answer.err:
        return "it ended in a traceback"
    if answer.peak > MOST_BYTES:
        return f"it took {answer.peak / 1e9:.1f} GB"
    if answer.code == 0 and case.expected is not None:
        return _wrong_result(case)
    if answer.code not in REFUSALS:
        return f"the exit code is {answer.code}"
    return _wrong_sentence(answer.err) or _wrong_files(case, answer.written)


def _wrong_result(case: Case) -> str | None:
    assert case.expected is not None
    name, content = case.expected
    path = case.folder / name
    if path.exists() and path.read_bytes() == content:
        return None
    return f"{name} is another and nothing was said"


def _wrong_sentence(err: str) -> str | None:
    sentences = [line for line in err.splitlines() if _SENTENCE.match(line)]
    if len(sentences) != 1:
        return f"it said {len(sentences)} sentences"
    if len(sentences[0]) > LONGEST_SENTENCE:
        return f"the sentence has {len(sentences[0])} characters"
    unfit = {each for each in err if not each.isprintable() and each != "\n"}
    return f"it printed {unfit!r}" if unfit else None


def _wrong_files(case: Case, written: tuple[str, ...]) -> str | None:
    allowed = () if case.expected is None else (case.expected[0].rpartition(".")[0],)
    # Locks of old versions of filelock stay when they are released.
    left = [name for name in written if not name.startswith(("home/", *allowed))
            and name != f"o/{RUNS_FOLDER}/{TABLES_LOCK_NAME}"]
    return f"it left {left[0]!r} behind" if left else None
