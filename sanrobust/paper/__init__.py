"""The paper's tables as data; 9 and 10 with the column names of our own tables.

All numbers stand as printed, also the five drops that are not the difference of the printed
accuracies (`ODD_DROPS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import IO

import pandas as pd

SOURCE = ("Zhao, Jia and Koltun, Exploring Self-attention for Image Recognition, CVPR 2020, "
          "arXiv:2004.13621")
DATA = "imagenet"
IMAGES = 50_000

ODD_DROPS = ("its top-1 drops of SAN15-patch fit a baseline of 78.2 instead of the printed 78.0, "
             "and its top-5 drop of ResNet50 at 180° is 0.1 above the printed difference")
"""Where Table 9 does not agree with itself: four drops and one (this may be rounding)."""

GROUPS: tuple[tuple[str, ...], ...] = (
    ("resnet26", "san10-pair", "san10-patch"),
    ("resnet38", "san15-pair", "san15-patch"),
    ("resnet50", "san19-pair", "san19-patch"),
)
"""Architectures that the paper compares with each other, in the order of its tables."""

DISPLAY_NAMES: Mapping[str, str] = MappingProxyType({
    "resnet26": "ResNet26", "san10-pair": "SAN10-pair", "san10-patch": "SAN10-patch",
    "resnet38": "ResNet38", "san15-pair": "SAN15-pair", "san15-patch": "SAN15-patch",
    "resnet50": "ResNet50", "san19-pair": "SAN19-pair", "san19-patch": "SAN19-patch",
})
"""How the paper writes each architecture."""


def rotation() -> pd.DataFrame:
    """Return Table 9: one row per model, accuracies in percent and drops in points.

    Columns are model, then per view of none, cw90, cw180, cw270 and updown ``V_top1`` and
    ``V_top5``, with ``V_top1_drop`` and ``V_top5_drop`` behind them where the view is not none.
    """
    return _read("rotation.csv")


def pgd() -> pd.DataFrame:
    """Return Table 10: one row per model and budget, rates in percent.

    Columns are model, clean_top1, eps and step (in 1/255), iters, success and top1_adv.
    """
    return _read("pgd.csv")


def complexity() -> pd.DataFrame:
    """Return every network with a printed cost, Tables 3 to 8 in their order and two more.

    Columns are table, method, variant and model (the name by which we build it); top1 and top5 in
    percent, of the validation set in Table 3 and of a part of the training set elsewhere; params
    in millions and flops in billions; nan where nothing is printed. Of the two more, ``text`` is
    the SAN10 with the attention of Ramachandran et al. (Section 5.3), and ``sasa`` are that
    paper's own networks (Stand-Alone Self-Attention in Vision Models, NeurIPS 2019).
    """
    with _open("complexity.csv") as stream:
        return pd.read_csv(stream, dtype={"table": str, "variant": str}, na_values=[""],
                           keep_default_na=False).fillna({"variant": ""})


def architecture() -> pd.DataFrame:
    """Return Table 1: one row per layer with its output and its text in each network."""
    return _read("architecture.csv")


def _read(name: str) -> pd.DataFrame:
    with _open(name) as stream:
        return pd.read_csv(stream)


def _open(name: str) -> IO[str]:
    return resources.files(__name__).joinpath(name).open(encoding="utf-8")
