"""Robustness of image classifiers: rotation, flip, targeted PGD and more, for notebooks too.

``create_model(name)``, a function for each experiment such as ``rotate(...)`` and ``pgd(...)``, and
the values they take are loaded when first used, so that importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sanrobust.attacks.budget import Budget
    from sanrobust.api import check
    from sanrobust.choices import DataConfig
    from sanrobust.comparing import compare
    from sanrobust.comparison import Comparison
    from sanrobust.errors import SanrobustError
    from sanrobust.preprocessing import Preprocessing
    from sanrobust.reporting.leaderboard import leaderboard
    from sanrobust.reporting.report import report
    from sanrobust.result import Result
    from sanrobust.validity.report import Validity
    from sanrobust.zoo.classifier import Classifier
    from sanrobust.zoo.resolve import create_model

    from sanrobust.tensors import Attacked, attack

    pgd: Callable[..., Result]
    rotate: Callable[..., Result]

__all__ = ["Attacked", "Budget", "Classifier", "Comparison", "DataConfig", "Preprocessing",
           "Result", "SanrobustError", "Validity", "attack", "check", "compare", "create_model",
           "leaderboard", "pgd", "report", "rotate"]

_HOMES = {
    "Attacked": "sanrobust.tensors",
    "attack": "sanrobust.tensors",
    "Comparison": "sanrobust.comparison",
    "Validity": "sanrobust.validity.report",
    "check": "sanrobust.api",
    "compare": "sanrobust.comparing",
    "leaderboard": "sanrobust.reporting.leaderboard",
    "report": "sanrobust.reporting.report",
    "Budget": "sanrobust.attacks.budget",
    "DataConfig": "sanrobust.choices",
    "Preprocessing": "sanrobust.preprocessing",
    "Result": "sanrobust.result",
    "SanrobustError": "sanrobust.errors",
    "Classifier": "sanrobust.zoo.classifier",
    "create_model": "sanrobust.zoo.resolve",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    experiments = import_module("sanrobust.experiments.catalog").EXPERIMENTS
    if name not in experiments:
        raise AttributeError(f"module 'sanrobust' has no attribute {name!r}")
    function: object = import_module("sanrobust.api").function_of(experiments.get(name))
    globals()[name] = function
    return function
