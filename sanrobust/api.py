"""The experiments as functions for scripts and notebooks; each returns its table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from sanrobust.attacks.budget import TABLE10, Budget, as_budgets
from sanrobust.attacks.settings import ADAPTED, AttackSettings
from sanrobust.choices import DataChoice, HowToRun, ModelChoice
from sanrobust.errors import FailedImagesError, UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.progress import Reporter
from sanrobust.run import run_pgd, run_rotation
from sanrobust.summary import Summary

if TYPE_CHECKING:
    import pandas as pd

Model = str | nn.Module
Models = Model | Sequence[Model]
Data = str | os.PathLike[str] | DataChoice | None
BudgetLike = Budget | tuple[float, float, int] | Mapping[str, float]


def rotate(models: Models | None = None, *, data: Data = None, checkpoint: str | Path | None = None,
           preprocessing: Preprocessing | None = None, out: str | Path = "results",
           batch_size: int | Literal["auto"] | None = None, workers: int = 0, device: str = "auto",
           threads: int | None = None, fresh: bool = False,
           retry_failed: bool = False) -> pd.DataFrame:
    """Measure zero-shot rotation and flip (paper, Table 9) and return the table.

    Args:
        models: names, classifiers, networks of torch, or several of them; None for the paper's
            nine.
        data: registered name, folder, or a `DataChoice`; None for the embedded digits.
        checkpoint: file with the weights of the one model named.
        preprocessing: how images become the models' pixels; None for each model's own.
        out: folder of records and tables.
        batch_size: images per batch, ``auto`` to fit it to memory, None for a default by size.
        workers: processes that decode images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        threads: of the CPU; None for torch's own number.
        fresh: measure again beside earlier runs.
        retry_failed: measure images again that are recorded as failed.

    Returns:
        One row per model asked for, in percent, unrounded.

    Raises a `SanrobustError` with what to do, as the command does; where many images failed the
    table comes with a warning.
    """
    how = HowToRun(out=_as_path(out), batch_size=batch_size, workers=workers, device=device,
                   threads=threads, fresh=fresh, retry_failed=retry_failed)
    return _frame(run_rotation(_models(models, checkpoint, preprocessing), _data(data), how,
                               Reporter()))


def pgd(models: Models | None = None, *, data: Data = None, checkpoint: str | Path | None = None,
        preprocessing: Preprocessing | None = None, budgets: Sequence[BudgetLike] = TABLE10,
        targets: str = "random", loss: str = "ce", random_start: bool = False, restarts: int = 1,
        seed: int = 0, attack: str = "pgd", options: Mapping[str, object] | None = None,
        out: str | Path = "results", batch_size: int | Literal["auto"] | None = None,
        workers: int = 0, device: str = "auto", threads: int | None = None,
        fresh: bool = False, retry_failed: bool = False) -> pd.DataFrame:
    """Attack with white-box targeted PGD (paper, Table 10) or another attack; return the table.

    Args:
        models, data, checkpoint, preprocessing, out, batch_size, workers, device, threads, fresh,
            retry_failed: as in `rotate`.
        budgets: radius, step (both in 1/255) and number of steps, each a `Budget` or three
            numbers; all run in one pass. Not read by an attack of torchattacks.
        targets: ``random``, ``least-likely``, ``second``, ``fixed:C`` or ``file:CSV``.
        loss: ``ce``, ``margin`` or ``dlr``.
        random_start: start uniformly in the ball.
        restarts: number of random starts, of which the best for the attacker counts.
        seed: of targets and starts.
        attack: ``pgd``, or ``torchattacks:NAME``.
        options: keywords of an attack of torchattacks, in its own units.

    Returns:
        One row per model and budget asked for, in percent, unrounded.

    Raises a `SanrobustError` with what to do, as the command does; where many images failed the
    table comes with a warning.
    """
    settings = AttackSettings(
        attack=attack, budgets=() if str(attack).startswith(ADAPTED) else _budgets(budgets),
        targets=targets, loss=loss, random_start=random_start, restarts=restarts, seed=seed,
        options=tuple((str(key), str(value)) for key, value in (options or {}).items()))
    how = HowToRun(out=_as_path(out), batch_size=batch_size, workers=workers, device=device,
                   threads=threads, fresh=fresh, retry_failed=retry_failed)
    return _frame(run_pgd(_models(models, checkpoint, preprocessing), _data(data), how, Reporter(),
                          settings=settings))


def _budgets(values: Sequence[BudgetLike]) -> tuple[Budget, ...]:
    budgets = as_budgets(values)
    if not budgets:
        raise UsageError("there must be a budget to attack with", seen="the list of them is empty",
                         hint="leave it out for the two of Table 10")
    return budgets


def _frame(summary: Summary) -> pd.DataFrame:
    problem = summary.problem
    if isinstance(problem, FailedImagesError):
        warnings.warn(str(problem), stacklevel=3)
    elif problem is not None:
        raise problem
    return summary.frame


def _models(models: Models | None, checkpoint: str | Path | None,
            preprocessing: Preprocessing | None) -> ModelChoice:
    several = (models,) if isinstance(models, (str, nn.Module)) else (models or ())
    if not isinstance(several, Sequence) or not all(isinstance(each, (str, nn.Module))
                                                    for each in several):
        raise UsageError("models must be names, classifiers or networks of torch",
                         seen=f"one is {models!r}"[:200],
                         hint="give for example 'resnet26.digits' or a torch.nn.Module")
    if not several and models is not None:
        raise UsageError("there must be a model to measure", seen="the list of models is empty",
                         hint="leave it out for the paper's nine")
    if not isinstance(preprocessing, Preprocessing | None):
        raise UsageError("preprocessing must be a Preprocessing", seen=f"it is {preprocessing!r}",
                         hint="give for example sanrobust.Preprocessing(img_size=32)")
    overrides = {} if preprocessing is None else dict(vars(preprocessing))
    return ModelChoice(models=tuple(several), checkpoint=_as_path(checkpoint),
                       overrides=overrides)


def _data(data: Data) -> DataChoice:
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    return data if isinstance(data, DataChoice) else DataChoice(data=data)


def _as_path(value: Any) -> Any:
    """Pass a path on as it was given: the choices turn text into paths and refuse the rest."""
    return value
