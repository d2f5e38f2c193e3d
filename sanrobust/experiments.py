"""The two experiments of the paper as hooks of the evaluation loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sanrobust.attacks.build import build_attack
from sanrobust.attacks.guards import check_finite
from sanrobust.attacks.result import BudgetResult
from sanrobust.attacks.settings import AttackSettings
from sanrobust.data.imageset import ImageRef
from sanrobust.data.loader import Failure
from sanrobust.data.views import VIEWS, view
from sanrobust.evaluate import Columns, Model, merge
from sanrobust.records import column_names


class Rotation:
    """Zero-shot rotation and flip (paper, section 5.4 and Table 9): five views of every image."""

    name = "rotate"
    gradient = False
    batched = True

    def settings(self) -> Mapping[str, object]:
        """Return the views in their order."""
        return {"views": list(VIEWS)}

    def check(self, refs: Sequence[ImageRef], *, num_classes: int) -> tuple[str, ...]:
        """Accept every dataset without a remark: views need nothing of the labels."""
        del refs, num_classes
        return ()

    @torch.no_grad()
    def measure(self, model: Model, pixels: Tensor, labels: Tensor, ids: Sequence[str]) -> Columns:
        """Return one row per image and view, images in the order of ``ids``."""
        per_view = [self._measure_view(model, name, pixels, labels, ids) for name in VIEWS]
        columns: Columns = {}
        for place in range(len(ids)):
            merge(columns, _rows_of(per_view, place))
        return columns

    @staticmethod
    def _measure_view(model: Model, name: str, pixels: Tensor, labels: Tensor,
                      ids: Sequence[str]) -> Columns:
        logits = model(view(name, pixels))
        check_finite(logits)
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
        chosen = labels.unsqueeze(1)
        return {
            "image": list(ids),
            "label": labels.tolist(),
            "view": [name] * len(ids),
            "pred": logits.argmax(dim=1).tolist(),
            "top5_hit": (top5 == chosen).any(dim=1).tolist(),
            "prob_label": logits.softmax(dim=1).gather(1, chosen).squeeze(1).tolist(),
            "error": [None] * len(ids),
        }

    def failed(self, failure: Failure) -> Columns:
        """Return one row per view that says why the image has no prediction."""
        count = len(VIEWS)
        return {
            "image": [failure.id] * count, "label": [failure.label] * count, "view": list(VIEWS),
            "pred": [None] * count, "top5_hit": [None] * count, "prob_label": [None] * count,
            "error": [failure.reason] * count,
        }


class TargetedPgd:
    """White-box targeted PGD (paper, section 5.4 and Table 10), or an attack of torchattacks.

    Args:
        settings: the attack and everything that can change its numbers.

    Raises DataError for a targets file that does not read, UsageError for an attack or option
    that does not exist.
    """

    name = "pgd"
    gradient = True

    def __init__(self, settings: AttackSettings) -> None:
        self.batched = settings.adapted is None
        self._settings = settings
        self._rule = settings.rule()
        self._attack = build_attack(settings, self._rule)

    def settings(self) -> Mapping[str, object]:
        """Return the attack's settings; a targets file enters by its hash."""
        return self._settings.as_dict(self._rule)

    def check(self, refs: Sequence[ImageRef], *, num_classes: int) -> tuple[str, ...]:
        """Refuse targets that cannot serve these images; say which targets serve none."""
        ids = [ref.id for ref in refs]
        self._rule.check(ids, [ref.label for ref in refs], num_classes)
        return self._rule.remarks(ids)

    def measure(self, model: Model, pixels: Tensor, labels: Tensor, ids: Sequence[str]) -> Columns:
        """Return one row per image and budget, images in the order of ``ids``."""
        split = self._rule.split(labels.tolist())
        rows: dict[int, Columns] = {
            position: self.failed(Failure(ids[position], int(labels[position]), reason))
            for position, reason in split.excluded}
        if split.kept:
            kept = list(split.kept)
            results = self._attack(model, pixels[kept], labels[kept], [ids[i] for i in kept])
            tables = [_attack_columns(result, labels[kept], [ids[i] for i in kept])
                      for result in results]
            for place, position in enumerate(kept):
                rows[position] = _rows_of(tables, place)
        columns: Columns = {}
        for position in range(len(ids)):
            merge(columns, rows[position])
        return columns

    def failed(self, failure: Failure) -> Columns:
        """Return one row per budget that says why the image has no prediction."""
        budgets = [budget.as_dict() for budget in self._settings.budgets] or [{}]
        count = len(budgets)
        columns: Columns = {name: [None] * count for name in column_names(self.name)}
        columns.update(
            image=[failure.id] * count, label=[failure.label] * count,
            error=[failure.reason] * count,
            **{name: [budget.get(name) for budget in budgets] for name in ("eps", "step", "iters")})
        return columns


def _attack_columns(result: BudgetResult, labels: Tensor, ids: Sequence[str]) -> Columns:
    """Return the records of one budget on a batch, in the order of ``ids``."""
    count, budget = len(ids), result.budget
    return {
        "image": list(ids),
        "label": labels.tolist(),
        "target": _listed(result.targets, count),
        "eps": [result.eps] * count,
        "step": [budget.step if budget else None] * count,
        "iters": [budget.iters if budget else None] * count,
        "clean_pred": result.clean_pred.tolist(),
        "adv_pred": result.adv_pred.tolist(),
        "hit": _listed(result.hit, count),
        "hit_any": _listed(result.hit_any, count),
        "linf": result.linf.tolist(),
        "target_loss": _listed(result.target_loss, count),
        # An attack that takes no gradients has nan, and nothing to tell.
        "zero_gradient": [None if math.isnan(sum(parts)) else parts
                          for parts in result.zero_gradient.tolist()],
        "error": [None] * count,
    }


def _listed(values: Tensor | None, count: int) -> list[object]:
    return [None] * count if values is None else list(values.tolist())


def _rows_of(tables: Sequence[Columns], place: int) -> Columns:
    columns: Columns = {}
    for rows in tables:
        merge(columns, {name: [values[place]] for name, values in rows.items()})
    return columns
