"""Robustness of image classifiers: rotation, flip and targeted PGD, for notebooks too.

``create_model(name)``, ``rotate(...)`` and ``pgd(...)`` are loaded when first used, so that
importing the package stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sanrobust.api import pgd, rotate
    from sanrobust.zoo.classifier import Classifier
    from sanrobust.zoo.resolve import create_model

__all__ = ["Classifier", "create_model", "pgd", "rotate"]

_HOMES = {
    "Classifier": "sanrobust.zoo.classifier",
    "create_model": "sanrobust.zoo.resolve",
    "pgd": "sanrobust.api",
    "rotate": "sanrobust.api",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sanrobust' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
