"""The experiments as functions for scripts and notebooks; each returns its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sanrobust.attacks.budget import TABLE10, Budget
from sanrobust.attacks.settings import AttackSettings
from sanrobust.choices import DataChoice, HowToRun, ModelChoice
from sanrobust.progress import Reporter
from sanrobust.run import run_pgd, run_rotation
from sanrobust.zoo.classifier import Classifier

if TYPE_CHECKING:
    import pandas as pd

Models = str | Classifier | Sequence[str | Classifier]


def rotate(models: Models = (), *, data: str | DataChoice | None = None,
           out: str | Path = "results", batch_size: int | Literal["auto"] | None = None,
           workers: int = 0, device: str = "auto", fresh: bool = False) -> pd.DataFrame:
    """Measure zero-shot rotation and flip (paper, Table 9) and return the table.

    Args:
        models: names or classifiers; empty for the paper's nine.
        data: registered name, folder, or a `DataChoice`; None for the embedded digits.
        out: folder of records and tables.
        batch_size: images per batch, ``auto`` to fit it to memory, None for a default by size.
        workers: processes that decode images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        fresh: measure again beside earlier runs.

    Returns:
        One row per model of all complete runs under ``out``, in percent, unrounded.

    Raises a `SanrobustError` with what to do, as the command does.
    """
    how = HowToRun(out=Path(out), batch_size=batch_size, workers=workers, device=device,
                   fresh=fresh)
    return run_rotation(_models(models), _data(data), how, Reporter()).frame


def pgd(models: Models = (), *, data: str | DataChoice | None = None,
        budgets: Sequence[Budget] = TABLE10, targets: str = "random", loss: str = "ce",
        random_start: bool = False, restarts: int = 1, seed: int = 0,
        out: str | Path = "results", batch_size: int | Literal["auto"] | None = None,
        workers: int = 0, device: str = "auto", fresh: bool = False) -> pd.DataFrame:
    """Attack with white-box targeted PGD (paper, Table 10) and return the table.

    Args:
        models, data, out, batch_size, workers, device, fresh: as in `rotate`.
        budgets: radius, step (both in 1/255) and number of steps; all run in one pass.
        targets: ``random``, ``least-likely``, ``second``, ``fixed:C`` or ``file:CSV``.
        loss: ``ce``, ``margin`` or ``dlr``.
        random_start: start uniformly in the ball.
        restarts: number of random starts, of which the best for the attacker counts.
        seed: of targets and starts.

    Returns:
        One row per model and budget of all complete runs under ``out``, in percent, unrounded.

    Raises a `SanrobustError` with what to do, as the command does.
    """
    settings = AttackSettings(budgets=tuple(budgets), targets=targets, loss=loss,
                              random_start=random_start, restarts=restarts, seed=seed)
    how = HowToRun(out=Path(out), batch_size=batch_size, workers=workers, device=device,
                   fresh=fresh)
    return run_pgd(_models(models), _data(data), how, Reporter(), settings=settings).frame


def _models(models: Models) -> ModelChoice:
    if isinstance(models, (str, Classifier)):
        return ModelChoice(models=(models,))
    return ModelChoice(models=tuple(models))


def _data(data: str | DataChoice | None) -> DataChoice:
    return data if isinstance(data, DataChoice) else DataChoice(data=data)
