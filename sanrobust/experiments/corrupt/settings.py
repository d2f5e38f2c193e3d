"""Which corruptions a run makes: one frozen value, checked before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sanrobust.errors import UsageError, shown_value
from sanrobust.experiments.corrupt.names import BY_NAME, CORRUPTIONS, EXTRA, SETS, SEVERITIES
from sanrobust.options import Whole, option, setting
from sanrobust.registry import unknown_name

Condition = tuple[str, int]
"""A corruption and its severity."""
_LISTING = "sanrobust corrupt --help"


@dataclass(frozen=True, kw_only=True)
class CorruptionSettings:
    """What is done to the images. Raises UsageError for what cannot be meant."""

    corruptions: str | Sequence[str] = setting("common", option(
        "--corruptions", show_default=True, metavar="NAME,...",
        help="Corruptions by name, such as fog,frost, or groups: common (all but extra), "
             "noise, blur, weather, digital, extra."))
    severities: str | Sequence[int] = setting("1,2,3,4,5", option(
        "--severities", show_default=True, metavar="N,...", help="Severities, each from 1 to 5."))
    extra: bool = setting(False, option(
        "--extra/--no-extra", help="Add the four that the benchmark keeps for choosing "
                                   f"hyperparameters: {', '.join(EXTRA)}."))
    corrupted: str | os.PathLike[str] | None = setting(None, option(
        "--corrupted", metavar="FOLDER",
        help="Read images corrupted before, as of ImageNet-C: FOLDER/corruption/severity/class/"
             "file, named as the dataset's. Without it they are made here."))
    seed: int = setting(0, option(
        "--seed", type=Whole(0, 2**63 - 1), show_default=True,
        help="Seed of what is made here; each draw belongs to (seed, image, corruption, "
             "severity)."))

    def __post_init__(self) -> None:
        if not isinstance(self.extra, bool):
            raise UsageError("extra must be True or False", seen=f"it is {self.extra!r}",
                             hint="leave it out for False")
        names = [*_named(self.corruptions), *(EXTRA if self.extra else ())]
        object.__setattr__(self, "corruptions", tuple(each.name for each in CORRUPTIONS
                                                      if each.name in names))
        object.__setattr__(self, "severities", _severities(self.severities))
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise UsageError("seed must be a whole number from 0 on",
                             seen=f"it is {shown_value(self.seed)}", hint="use --seed 0")
        if self.corrupted is not None:
            if not isinstance(self.corrupted, (str, os.PathLike)) or not os.fspath(self.corrupted):
                raise UsageError("corrupted must be a folder",
                                 seen=f"it is {shown_value(self.corrupted)}",
                                 hint="give a path such as --corrupted imagenet-c")
            folder = Path(os.path.expanduser(self.corrupted))
            object.__setattr__(self, "corrupted", folder)
            if self.seed:
                raise UsageError("--seed must go with images that are made here",
                                 seen=f"they are those of {folder}", hint="leave one of them out")

    @property
    def conditions(self) -> list[Condition]:
        """Corruptions and severities in their order."""
        return [(name, int(severity)) for name in self.corruptions for severity in self.severities]


def _named(corruptions: object) -> list[str]:
    """Return the corruptions of a text with commas, or a list, of names and groups."""
    words = corruptions.split(",") if isinstance(corruptions, str) else corruptions
    if not isinstance(words, Iterable) or not all(isinstance(word, str) for word in words):
        raise UsageError("corruptions must be names", seen=f"they are {shown_value(corruptions)}",
                         hint=f"see {_LISTING}")
    names = [name for word in words for name in SETS.get(word.strip(), (word.strip(),))]
    for name in names:
        if name not in BY_NAME:
            raise unknown_name("corruption", name, (*BY_NAME, *SETS), listing=_LISTING)
    if not names:
        raise UsageError("there must be a corruption", seen="the list of them is empty",
                         hint="leave it out for the 15 common ones")
    return names


def _severities(given: object) -> tuple[int, ...]:
    words = given.split(",") if isinstance(given, str) else given
    known = {str(severity): severity for severity in SEVERITIES}
    texts = [str(word).strip() for word in words] if isinstance(words, Iterable) else []
    if not texts or not known.keys() >= set(texts):
        raise UsageError("severities must be whole numbers from 1 to 5, separated by commas",
                         seen=f"they are {shown_value(given)}",
                         hint="type for example --severities 1,3,5")
    return tuple(sorted({known[text] for text in texts}))
