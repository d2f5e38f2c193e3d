"""Which wrong class each image is pushed toward. Importing this module loads no torch.

Letters: B images, K classes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.attacks.randomness import hashed
from sanrobust.csvfiles import CsvKind, by_name, counted, parse, read_bytes, same_form
from sanrobust.errors import DataError, UsageError, shown_value
from sanrobust.reasons import EXCLUDED
from sanrobust.registry import Registry, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    # (ids, labels (B,), clean logits (B, K), seed) -> a wrong class for each image, (B,) int64.
    Choice = Callable[[Sequence[str], Tensor, Tensor, int], Tensor]

_FILE = CsvKind("target file", ("image", "target"), "--targets file:CSV")
_LISTING = "sanrobust pgd --help"
NONE = "none"


@dataclass(frozen=True)
class Split:
    """The images of a batch that a rule can target, and why it cannot target the others.

    Attributes:
        kept: positions to attack, ascending.
        excluded: position and reason of every other image.
    """

    kept: tuple[int, ...]
    excluded: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class TargetRule:
    """How a target follows from an image; made by `parse_rule`.

    Attributes:
        kind: a name of `TARGETS`, ``fixed`` (one class for all), ``file`` (one class per
            image) or ``none`` (away from the label).
        label: the class of a ``fixed`` rule.
        path: the CSV of a ``file`` rule.
        table: target of each image id, in the form of `same_form`, read from ``path``.
        sha256: hash of the bytes that ``table`` was read from; empty until they are read.
    """

    kind: str
    label: int | None = None
    path: Path | None = field(default=None, compare=False)
    table: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)
    sha256: str = ""

    @property
    def untargeted(self) -> bool:
        """Whether the attack has no target."""
        return self.kind == NONE

    def identity(self) -> str:
        """Return the rule's text for a run's specification; a file enters by its hash."""
        if self.kind == "fixed":
            return f"fixed:{self.label}"
        return f"file:sha256:{self.sha256}" if self.kind == "file" else self.kind

    def loaded(self) -> TargetRule:
        """Return the rule with the table and the hash of its file, if it has one.

        Raises DataError when the file is missing, is not UTF-8 text, lacks the columns ``image``
        and ``target``, names an image twice or holds a target that is not a whole number.
        """
        if self.path is None:
            return self
        content = read_bytes(self.path, _FILE)
        table = by_name(parse(content, self.path, _FILE), self.path, _FILE, meant=same_form)
        return replace(self, table=table, sha256=hashlib.sha256(content).hexdigest())

    def refusal(self, label: int) -> str | None:
        """Say why an image of this label has no target under the rule, or return None."""
        if self.kind == "fixed" and label == self.label:
            return f"{EXCLUDED}the image's label is the fixed target {label}"
        return None

    def split(self, labels: Sequence[int]) -> Split:
        """Separate the images to attack from those that `refusal` gives a reason for."""
        reasons = [self.refusal(int(label)) for label in labels]
        return Split(
            kept=tuple(i for i, reason in enumerate(reasons) if reason is None),
            excluded=tuple((i, reason) for i, reason in enumerate(reasons) if reason is not None),
        )

    def check(self, ids: Sequence[str], labels: Sequence[int], num_classes: int) -> None:
        """Refuse a rule that cannot serve these images; call it once before a long run.

        Raises UsageError for a fixed target outside [0, K), DataError for a file that lacks an
        image or names a target that is outside [0, K) or equal to the image's label.
        """
        if self.kind == "fixed" and not 0 <= (self.label or 0) < num_classes:
            raise UsageError(f"the fixed target must be a class from 0 to {num_classes - 1}",
                             seen=f"it is {self.label}",
                             hint="type --targets fixed:C with a class C of the model")
        if self.kind == "file":
            for image_id, label in zip(ids, labels, strict=True):
                self._check_row(image_id, int(label), num_classes)

    def remarks(self, ids: Sequence[str]) -> tuple[str, ...]:
        """Say which rows of a file name no image of ``ids``, all that are to be measured."""
        known = {same_form(image_id) for image_id in ids}
        others = [name for name in self.table if name not in known]
        if not others:
            return ()
        return (f"note: of the target file {counted(others, 'row')} for no image that is measured",)

    def choose(self, ids: Sequence[str], labels: Tensor, logits: Tensor, *, seed: int) -> Tensor:
        """Return a wrong label for every image, under a rule that is not ``none``.

        Args:
            ids: B image ids.
            labels: (B,) int64, the true classes; no image may be one that `refusal` names.
            logits: (B, K), the clean logits; all rules read K, some the values.
            seed: seed of the ``random`` rule.

        Returns:
            (B,) int64 on the device of ``labels``.

        Raises UsageError and DataError as `check` does.
        """
        self.check(ids, labels.tolist(), logits.shape[1])
        if self.kind == "file":
            return labels.new_tensor([self.table[same_form(image_id)] for image_id in ids])
        if self.kind == "fixed":
            return labels.new_full((len(ids),), self.label or 0)
        return TARGETS.get(self.kind)(ids, labels, logits, seed)

    def _check_row(self, image_id: str, label: int, num_classes: int) -> None:
        target = self.table.get(same_form(image_id))
        if target is None:
            raise DataError("the target file must name every image",
                            seen=f"{self.path} has no row for image {shown_value(image_id)}",
                            hint="add a row image,target for it")
        if not 0 <= target < num_classes:
            raise DataError(f"a target must be a class from 0 to {num_classes - 1}",
                            seen=f"{self.path} gives {target} for image {shown_value(image_id)}",
                            hint="correct that row")
        if target == label:
            raise DataError("a target must differ from the image's label",
                            seen=f"{self.path} gives {target}, the label of image "
                                 f"{shown_value(image_id)}",
                            hint="give that image a wrong class")


def random_target(image_id: str, label: int, num_classes: int, *, seed: int) -> int:
    """Return a class uniform over the ``num_classes - 1`` wrong ones, from (seed, id) alone."""
    # Reducing 256 random bits favours a class by less than one part in 10**70.
    draw = hashed(seed, "target", image_id) % (num_classes - 1)
    return draw + (draw >= label)


def _random(ids: Sequence[str], labels: Tensor, logits: Tensor, seed: int) -> Tensor:
    """Choose uniformly among the wrong labels, from (seed, image id) alone."""
    return labels.new_tensor([
        random_target(image_id, label, logits.shape[1], seed=seed)
        for image_id, label in zip(ids, labels.tolist(), strict=True)])


def _least_likely(ids: Sequence[str], labels: Tensor, logits: Tensor, seed: int) -> Tensor:
    """Choose the wrong label with the lowest clean logit."""
    del ids, seed
    return logits.scatter(1, labels.unsqueeze(1), float("inf")).argmin(1)


def _second(ids: Sequence[str], labels: Tensor, logits: Tensor, seed: int) -> Tensor:
    """Choose the wrong label with the highest clean logit."""
    del ids, seed
    return logits.scatter(1, labels.unsqueeze(1), float("-inf")).argmax(1)


# The rules that are a name alone; ``fixed:C`` and ``file:CSV`` carry a value.
TARGETS: Registry[Choice] = Registry("target rule", listing=_LISTING)
TARGETS.add("random", _random)
TARGETS.add("least-likely", _least_likely)
TARGETS.add("second", _second)


def rule_forms() -> tuple[str, ...]:
    """Return how the rules are typed, for help texts."""
    return (*TARGETS.names(), "fixed:C", "file:CSV", NONE)


def parse_rule(text: str) -> TargetRule:
    """Read a rule such as ``random``, ``fixed:7`` or ``file:targets.csv`` without opening a file.

    Raises UsageError with the closest legal name.
    """
    name, colon, value = text.strip().partition(":")
    if name == "fixed":
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise UsageError("a fixed target must be a class index",
                             seen=f"{shown_value(text)} was seen",
                             hint="type for example --targets fixed:7")
        return TargetRule("fixed", label=int(value))
    if name == "file":
        if not value:
            raise UsageError("a target file must have a path", seen=f"{shown_value(text)} was seen",
                             hint="type for example --targets file:targets.csv")
        return TargetRule("file", path=Path(value))
    if name not in (*TARGETS.names(), NONE):
        raise unknown_name("target rule", text, (*TARGETS.names(), "fixed", "file", NONE),
                           listing=_LISTING)
    if colon:
        raise UsageError(f"the rule {name} must stand alone", seen=f"{shown_value(text)} was seen",
                         hint=f"type --targets {name}")
    return TargetRule(name)
