"""Attacks of images that lie in memory, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sanrobust.attacks import guards
from sanrobust.attacks.budget import BudgetParts, whole_number
from sanrobust.attacks.build import build_attack
from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.targets import TargetRule
from sanrobust.device import exact
from sanrobust.errors import (ModelError, NonFiniteError, SanrobustError, UsageError, first_line,
                              shown_value)
from sanrobust.experiments.base import Columns, stacked
from sanrobust.experiments.budgets import failed_rows, rows_of
from sanrobust.registry import unknown_name
from sanrobust.steady import FixedSizeBatches, pass_size
from sanrobust.trouble import out_of_memory
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.classifier import Classifier

if TYPE_CHECKING:
    import pandas as pd

    from sanrobust.attacks.build import BatchAttack


@dataclass(frozen=True, eq=False)
class Attacked:
    """What an attack has made of images.

    Attributes:
        adversarial: (N, 3, H, W) float32 in [0, 1], on the device of the images; (E, N, 3, H, W)
            for E budgets. An image that failed is as it was.
        table: a row for each budget and image, with the columns of the records of `sanrobust.pgd`:
            ``image``, ``label``, ``eps``, ``clean_pred``, ``adv_pred``, ``broken_by``,
            ``broken_at``, ``linf``, ``l2`` and others; ``error`` says why an image has no numbers.
    """

    adversarial: Tensor
    table: pd.DataFrame

    @property
    def robust_accuracy(self) -> dict[float | None, float]:
        """Accuracy under attack by radius, in percent of the images that did not fail."""
        sound = self.table[self.table["error"].isna()]
        right = sound["adv_pred"] == sound["label"]
        return {None if eps != eps else eps: 100 * float(part.mean())
                for eps, part in right.groupby(sound["eps"].astype(float), dropna=False)}


@dataclass(frozen=True)
class Ready:
    """An attack that can be made; it goes on where one image has no numbers.

    Attributes:
        settings: which it is.
        rule: its targets.
        run: makes it on a batch.
    """

    settings: AttackSettings
    rule: TargetRule
    run: BatchAttack

    @classmethod
    def of(cls, settings: AttackSettings) -> Ready:
        """Return the attack of some settings; raises as `build_attack` and their rule do."""
        rule = settings.rule()
        return cls(settings, rule, build_attack(settings, rule))

    def attacked(self, model: FixedSizeBatches, images: Tensor, labels: Tensor,
                 ids: Sequence[str], *, batch_size: int,
                 followed: Callable[[int], object] = lambda _: None) -> Attacked:
        """Attack images by a model that computes as a command's does; see `attack`.

        Args:
            model: what computes.
            images, labels, ids: as `attack` takes them, and checked.
            batch_size: how many are attacked together.
            followed: told how many images are done, batch by batch.
        """
        made, tables = [], []
        for first in range(0, len(images), batch_size):
            part = slice(first, first + batch_size)
            for adversarial, columns in self._parts(model, images[part], labels[part], ids[part]):
                made.append(adversarial)
                tables.append(columns)
            followed(len(ids[part]))
        adversarial = torch.cat(made, 1)
        return Attacked(adversarial[0] if len(adversarial) == 1 else adversarial, _frame(tables))

    def _parts(self, model: nn.Module, images: Tensor, labels: Tensor, ids: Sequence[str]
               ) -> Iterator[tuple[Tensor, list[Columns]]]:
        """Yield adversarials (E, b, 3, H, W) and the rows of each budget, in the order of images.
        """
        refused = [self.rule.refusal(int(label)) for label in labels]
        if len(ids) == 1 and refused[0] is not None:
            yield self._failed(images, labels, ids, refused[0])
            return
        try:
            if any(refused):
                raise NonFiniteError("each image must have a target", seen="one has none", hint="")
            results = self.run(model, images, labels, ids)
        except NonFiniteError as error:
            if len(ids) == 1:
                yield self._failed(images, labels, ids, f"{error.rule}, but {error.seen}")
                return
            half = len(ids) // 2
            for part in slice(half), slice(half, None):
                yield from self._parts(model, images[part], labels[part], ids[part])
        else:
            yield (torch.stack([result.adversarial for result in results]),
                   [rows_of(result, ids, labels, images) for result in results])

    def _failed(self, images: Tensor, labels: Tensor, ids: Sequence[str], reason: str
                ) -> tuple[Tensor, list[Columns]]:
        budgets = self.settings.strengths or (None,)
        rows = [failed_rows(ids[0], int(labels[0]), reason, (budget,)) for budget in budgets]
        return images.unsqueeze(0).expand(len(budgets), -1, -1, -1, -1), rows


@exact()
def attack(model: nn.Module, images: Tensor, labels: Tensor, *, attack: str = "autoattack",
           eps: float | str | Sequence[float] | None = None, ids: Sequence[str] | None = None,
           batch_size: int = 64, **settings: Any) -> Attacked:
    """Attack images in memory.

    Args:
        model: pixels in [0, 1] to logits (B, K), in eval mode; normalisation is its own business.
        images: (N, 3, H, W) float32 in [0, 1], on the device of the model.
        labels: (N,) whole numbers, the true classes.
        attack: as ``--attack`` of ``sanrobust pgd`` takes it.
        eps: radius, or several, in 1/255 in linf and in the pixel range in l2; None for 8/255
            and 0.5, or for ``budgets`` among the settings.
        ids: names of the images, on which their draws depend; their numbers by default.
        batch_size: how many are attacked together; no number depends on it.
        settings: other keywords of `sanrobust.pgd`: ``norm``, ``iters``, ``step``, ``targets``,
            ``loss``, ``momentum``, ``random_start``, ``restarts``, ``version``, ``queries``,
            ``seed``, ``budgets``, ``options``.

    Raises a `SanrobustError` that says what must hold, as the command does.
    """
    chosen = _settings(attack, eps, settings)
    names = [str(place) for place in range(len(images))] if ids is None else [*map(str, ids)]
    _require_fitting(images, labels, names, batch_size)
    if images.is_inference():  # which no gradient goes through
        images = images.clone()
    labels = labels.to(images.device, torch.int64)
    ready = Ready.of(chosen)
    size = pass_size(max(images.shape[-2:]), images.device)
    guards.check_eval(model)
    guards.check_batch(images, labels, names)
    _require_logits(model, images[:1])
    if isinstance(model, Classifier):  # as the commands do
        fast = accelerate(model, images.device)
        model, size = fast.classifier, fast.pass_size(max(images.shape[-2:]), images.device)
    return ready.attacked(FixedSizeBatches(model, size), images, labels, names,
                          batch_size=batch_size)


def _settings(attack: str, eps: object, given: dict[str, Any]) -> AttackSettings:
    parts = BudgetParts(eps, given.pop("step", None), given.pop("iters", None))
    if parts != BudgetParts():
        if "budgets" in given:
            raise UsageError("budgets must come without eps, step and iters",
                             seen="both were given", hint="leave one of them out")
        given["budgets"] = parts
    known = {field.name for field in fields(AttackSettings)}
    wrong = next((name for name in given if name not in known), None)
    if wrong is not None:
        raise unknown_name("keyword", wrong, sorted({*known, "eps", "step", "iters"}),
                           listing="help(sanrobust.attack)")
    return AttackSettings(attack=attack, **given)


def _require_fitting(images: Tensor, labels: Tensor, ids: Sequence[str], batch_size: int) -> None:
    """Refuse what cannot be a set of images with labels and names; raises UsageError."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        seen = str(tuple(images.shape)) if isinstance(images, Tensor) else shown_value(images)
        raise UsageError("images must be a tensor (N, 3, H, W) with at least one image",
                         seen=f"it is {seen}", hint="stack them, as float32 in [0, 1]")
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] \
            or labels.is_floating_point():
        seen = (f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor)
                else shown_value(labels))
        raise UsageError("labels must be a tensor of whole numbers, one for each image",
                         seen=f"it is {seen}", hint="give for example torch.tensor([3, 0])")
    if len(ids) != len(images) or len(set(ids)) < len(ids):
        raise UsageError("each image must have an id of its own",
                         seen=f"there are {len(images)} images and {len(set(ids))} different ids",
                         hint="leave ids out to number them")
    whole_number(batch_size, "batch_size", least=1, example="batch_size=64")


def _require_logits(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that does not make logits of images (B, 3, H, W); raises ModelError."""
    try:
        with torch.no_grad():
            logits = model(images.clone())
    except (SanrobustError, MemoryError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ModelError("the model must take float32 images (B, 3, H, W)",
                         seen=f"it stopped with: {first_line(error)}",
                         hint="give one in float32, or wrap it so that it converts the pixels and "
                              "its logits") from error
    guards.check_form(logits, len(images))


def _frame(tables: Sequence[Sequence[Columns]]) -> pd.DataFrame:
    """Return the rows of all batches, those of a budget together."""
    import pandas as pd
    return pd.concat([pd.DataFrame(stacked(parts)) for parts in zip(*tables)], ignore_index=True)
