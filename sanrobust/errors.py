"""Every deliberate error of the toolkit, each with the exit code of its command.

An error is one sentence in three parts: what must hold, what was seen, and what to type next.
Only these errors become messages on the command line; anything else is a defect and keeps its
traceback.
"""

from __future__ import annotations

import re

LONGEST_VALUE = 80
"""Characters of a value that a message shows; of a longer one it shows both ends."""
_LONGEST_PART = 600
# A word of a message is a path at most, of which a reader wants all that can be typed.
_COLOURS = re.compile("\x1b\\[[0-9;]*m")  # as a terminal is told of them
_LONG_WORD = re.compile(r"\S{241,}")


class SanrobustError(Exception):
    """Base of all deliberate errors; prints as ``rule, but seen: hint``.

    Each part is cut where it is longer than anybody reads.

    Args:
        rule: what must hold.
        seen: what was found instead.
        hint: what the user can do or type next.
    """

    exit_code = 1

    def __init__(self, rule: str, *, seen: str, hint: str) -> None:
        self.rule, self.seen, self.hint = map(readable, (rule, seen, hint))
        super().__init__(f"{self.rule}, but {self.seen}: {self.hint}")

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries when a data worker raises them.
        return (_rebuild, (type(self), self.rule, self.seen, self.hint))


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """Return ``text``, of which the middle is left out where it has more than ``most`` characters.
    """
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def shown_value(value: object) -> str:
    """Return a value as a message shows it: in quotes where it is text, printable and short."""
    try:
        text = shortened(value) if isinstance(value, str) else repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return repr(text) if isinstance(value, str) else shortened(text)


def readable(text: str) -> str:
    """Return a part of a message with words and length that can be read."""
    whole_words = _LONG_WORD.sub(lambda word: shortened(word[0]), text)
    return shortened(whole_words, _LONGEST_PART)


def _rebuild(kind: type[SanrobustError], rule: str, seen: str, hint: str) -> SanrobustError:
    return kind(rule, seen=seen, hint=hint)


class UsageError(SanrobustError):
    """An option or argument that cannot be meant."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that no registry holds."""


class DataError(SanrobustError):
    """A dataset, label file, target file or image that cannot serve."""

    exit_code = 3


class ModelError(SanrobustError):
    """A model that cannot be built or does not behave like a classifier."""

    exit_code = 4


class TrainModeError(ModelError):
    """A model that is in train mode where it must be in eval mode, in whole or in part."""


class NonFiniteError(ModelError):
    """Logits or gradients that are no numbers; the images behind them count as failed."""


class CheckpointError(ModelError):
    """Weights that are missing, damaged, hostile or of another architecture."""


class DownloadError(SanrobustError):
    """A download that failed or brought something other than what was asked for."""

    exit_code = 5


class OutputError(SanrobustError):
    """Results that cannot be written or do not read back."""

    exit_code = 6


class ThresholdError(SanrobustError):
    """Numbers that are worse than the user lets pass."""

    exit_code = 1


class ValidityError(SanrobustError):
    """A model or an attack whose numbers cannot mean what a table says."""

    exit_code = 1


class BackendError(SanrobustError):
    """A compute device or kernel backend that cannot run what was asked."""

    exit_code = 7


class ProtocolError(SanrobustError):
    """A run that broke a rule of its own experiment, so that its numbers would be wrong."""

    exit_code = 8


class FailedImagesError(SanrobustError):
    """A run whose images failed in such numbers that its rates speak of the survivors alone."""

    exit_code = 9


class MachineError(SanrobustError):
    """A machine that ran out of memory, open files or processes; no fault of what it computes."""

    exit_code = 10


class Interrupted(SanrobustError):
    """The user stopped the run; everything computed so far is saved."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """Return what an exception of other people's code says, in one line; else its type."""
    try:
        said = str(error)
    # Even this is their code.
    except Exception:
        said = ""
    plain = _COLOURS.sub("", said).strip()
    return (plain.splitlines() or [""])[0][:300] or type(error).__name__


def number_of(count: int, noun: str) -> str:
    """Return how many there are in words: ``1 image``, ``2 images``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
