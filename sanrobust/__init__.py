"""Robustness of image classifiers: rotation, flip and targeted PGD, for notebooks too.

``create_model(name)``, ``rotate(...)``, ``pgd(...)`` and the values they take are loaded when
first used, so that importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sanrobust.api import pgd, rotate
    from sanrobust.attacks.budget import Budget
    from sanrobust.choices import DataChoice
    from sanrobust.errors import SanrobustError
    from sanrobust.preprocessing import Preprocessing
    from sanrobust.zoo.classifier import Classifier
    from sanrobust.zoo.resolve import create_model

__all__ = ["Budget", "Classifier", "DataChoice", "Preprocessing", "SanrobustError", "create_model",
           "pgd", "rotate"]

_HOMES = {
    "Budget": "sanrobust.attacks.budget",
    "DataChoice": "sanrobust.choices",
    "Preprocessing": "sanrobust.preprocessing",
    "SanrobustError": "sanrobust.errors",
    "Classifier": "sanrobust.zoo.classifier",
    "create_model": "sanrobust.zoo.resolve",
    "pgd": "sanrobust.api",
    "rotate": "sanrobust.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sanrobust' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
