"""What experiments under attack share: the rows of an attack's records, and budgets in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sanrobust.experiments.base import Columns, Records
from sanrobust.experiments.layout import Part

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sanrobust.attacks.budget import Budget as AttackBudget
    from sanrobust.attacks.result import BudgetResult

BUDGET = ("eps", "step", "iters")
Budget = tuple[float | None, float | None, int | None]

RECORDS = Records(
    columns={"image": "string", "label": "int32", "target": "int32", "eps": "float64",
             "step": "float64", "iters": "int32", "clean_pred": "int32", "adv_pred": "int32",
             "hit": "bool", "hit_any": "bool", "linf": "float32", "target_loss": "list<float>",
             "zero_gradient": "list<float>", "error": "string", "l2": "float32",
             "broken_by": "string", "broken_at": "int32", "loss": "list<float>"},
    key=("image", *BUDGET),
    read=("image", "label", *BUDGET, "clean_pred", "adv_pred", "hit", "hit_any", "linf",
          "zero_gradient", "error", "l2", "broken_by"))
"""The form of the records of an attack."""


def failed_rows(image: str, label: int, reason: str, budgets: Sequence[AttackBudget | None]
                ) -> Columns:
    """Return the records of an image without numbers, one per budget; None is of no budget."""
    count = len(budgets)
    columns: Columns = {name: [None] * count for name in RECORDS.columns}
    columns.update(
        image=[image] * count, label=[label] * count, error=[reason] * count,
        **{name: [budget and getattr(budget, name) for budget in budgets] for name in BUDGET})
    return columns


def rows_of(result: BudgetResult, ids: Sequence[str], labels: Tensor, images: Tensor) -> Columns:
    """Return the records of one budget on a batch of images (B, 3, H, W)."""
    count, budget = len(ids), result.budget
    nothing: list[None] = [None] * count
    return {
        "image": ids,
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
        "l2": _lengths(result.adversarial, images),
        "broken_by": list(result.broken_by or nothing),
        "broken_at": list(result.broken_at or nothing),
        "loss": list(result.losses or nothing),
        "zero_gradient": [None if math.isnan(sum(parts)) else parts
                          for parts in result.zero_gradient.tolist()],
        "error": [None] * count,
    }


def _lengths(adversarial: Tensor, images: Tensor) -> list[float]:
    """Return the L2 length of each change in the pixel range."""
    from sanrobust.attacks.norms import NORMS
    return list(NORMS.get("l2").size(adversarial - images).tolist())


def _listed(values: Tensor | None, count: int) -> Sequence[object]:
    return [None] * count if values is None else list(values.tolist())


def budgets_of(records: pd.DataFrame) -> list[Budget]:
    """Return each row's budget with None, which equals itself, for what the attack lacks."""
    import pandas as pd
    columns = (records[name].astype("Float64") for name in BUDGET)
    return [(None if pd.isna(eps) else float(eps), None if pd.isna(step) else float(step),
             None if pd.isna(iters) else int(iters)) for eps, step, iters in zip(*columns)]


def budget_order(budget: Sequence[float | str | None]) -> tuple[float, ...]:
    """Sort as in Table 10: by eps, then by the number of iterations; what is unknown last."""
    eps, step, iters = (math.inf if part is None else float(part) for part in budget)
    return eps, iters, step


def budget_text(part: Part) -> tuple[str, str]:
    """Return a budget's heading and its detail; what an attack does not have is left out."""
    eps, step, iters = map(float, part)
    title = f"attack n = {iters:g}" if math.isfinite(iters) else "attack"
    return title, ", ".join(f"{sign} = {repr(value).removesuffix('.0')}"
                            for sign, value in {"ε": eps, "ρ": step}.items()
                            if math.isfinite(value))


def budget_words(part: Part) -> str:
    """Return a budget in words; see `budget_text`."""
    title, detail = budget_text(part)
    return ", ".join(word for word in (title.removeprefix("attack").strip(), detail) if word)
