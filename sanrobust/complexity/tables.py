"""The paper's tables of parameters and FLOPs with our figures beside the printed ones.

Ours are counted in the paper's own convention on real modules built by name; nothing is taken
over from the paper but what is printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import lru_cache

import pandas as pd
import torch
from torch import nn

from sanrobust import paper
from sanrobust.complexity.counter import count
from sanrobust.complexity.models import Counted, count_model
from sanrobust.complexity.settings import IMG_SIZE
from sanrobust.kernels.plain import Window
from sanrobust.zoo import catalog
from sanrobust.zoo.build import build
from sanrobust.zoo.san import San, SanBlock

EQUAL, TWICE, TRUNCATED, DIFFERENT = "equal", "rounded twice", "truncated", "different"
MILLION, BILLION = 10 ** 6, 10 ** 9
TEXT_ROWS = ("text", "sasa")
"""Printed costs outside the tables, which a count of all tables brings along."""

_FIGURES = (("params", MILLION, "M parameters"), ("flops", BILLION, "G FLOPs"))
_TENTH, _HUNDREDTH = Decimal("0.1"), Decimal("0.01")
_NETWORKS = ("san10", "san15", "san19")


def agreement(value: int, printed: float, unit: int) -> str:
    """Return how a figure printed with one decimal comes out of ``value``, in ``unit``.

    ``equal`` where it is the value rounded, ``rounded twice`` where it is the value rounded to
    two decimals and then to one, ``truncated`` where its further decimals were cut off, otherwise
    ``different``; empty where nothing is printed.
    """
    if math.isnan(printed):
        return ""
    exact, shown = Decimal(value) / unit, Decimal(str(printed))
    twice = exact.quantize(_HUNDREDTH, ROUND_HALF_UP).quantize(_TENTH, ROUND_HALF_UP)
    ways = {EQUAL: exact.quantize(_TENTH, ROUND_HALF_UP), TWICE: twice,
            TRUNCATED: exact.quantize(_TENTH, ROUND_DOWN)}
    return next((way for way, result in ways.items() if result == shown), DIFFERENT)


def compared(tables: Sequence[str]) -> pd.DataFrame:
    """Return the rows of ``tables`` with our counts, one per printed row and in its order.

    Args:
        tables: values of the column ``table`` of `sanrobust.paper.complexity`.

    Columns are table, row (method and variant), model, params, flops (both exact), macs (the
    flops of the other convention), printed_params (in millions), printed_flops (in billions),
    params_agree and flops_agree (what `agreement` says).
    """
    printed = paper.complexity()
    rows = printed[printed["table"].isin(list(tables))]
    return pd.DataFrame([_row(row) for _, row in rows.iterrows()])


def disagreements(rows: pd.DataFrame) -> list[str]:
    """Return a clause for each figure of `compared` that is not simply equal, each once."""
    clauses = []
    for _, row in rows.iterrows():
        for name, unit, word in _FIGURES:
            if row[f"{name}_agree"] not in ("", EQUAL):
                clauses.append(f"{row['model']} has {row[name] / unit:.3f} {word}, printed "
                               f"{row[f'printed_{name}']:.1f} ({row[f'{name}_agree']})")
    return list(dict.fromkeys(clauses))


def _row(row: pd.Series) -> dict[str, object]:
    model = str(row["model"])
    flops, macs = _counted(model)
    return {
        "table": row["table"], "row": f"{row['method']} {row['variant']}".strip(), "model": model,
        "params": flops.cost.parameters, "flops": flops.cost.flops, "macs": macs.cost.flops,
        "printed_params": row["params"], "printed_flops": row["flops"],
        "params_agree": agreement(flops.cost.parameters, row["params"], MILLION),
        "flops_agree": agreement(flops.cost.flops, row["flops"], BILLION),
    }


@lru_cache(maxsize=None)
def _counted(model: str) -> tuple[Counted, Counted]:
    return (count_model(model, img_size=IMG_SIZE, convention="paper"),
            count_model(model, img_size=IMG_SIZE, convention="mac"))


@dataclass(frozen=True)
class Layer:
    """One row of Table 1 as our networks have it.

    Attributes:
        layers: what kind of layer, as the paper calls it.
        output: height, width and channels behind it.
        texts: what it is made of in each of SAN10, SAN15 and SAN19.
    """

    layers: str
    output: str
    texts: tuple[str, ...]


def architecture(attention: str = "pair") -> list[Layer]:
    """Return Table 1 read off our networks of ``attention``: real modules and their outputs."""
    with torch.device("meta"):
        networks = [build(catalog.find(f"{name}-{attention}", tag="untrained").architecture)
                    for name in _NETWORKS]
    columns = [_described(network) for network in networks]
    return [Layer(each[0][0], each[0][1], tuple(text for _, _, text in each))
            for each in zip(*columns, strict=True)]


def _described(network: nn.Module) -> list[tuple[str, str, str]]:
    """Describe a SAN layer by layer: kind, output and text in the words of Table 1."""
    assert isinstance(network, San)
    outputs = {stage.name: stage.output or () for stage in
               count(network, img_size=IMG_SIZE).stages}
    rows = [("Input", _size((3, IMG_SIZE, IMG_SIZE)), f"{network.conv_in.out_channels}-d linear")]
    for stage, pooled in enumerate(network.config.pools):
        size = _size(outputs[f"stage {stage}"])
        linear = f"{network.get_submodule(f'conv{stage}').out_channels}-d linear"
        pool = "2×2, stride 2 max pool → " if pooled else ""
        rows += [("Transition", size, pool + linear),
                 ("SA Block", size, _blocks(network.get_submodule(f"layer{stage}")))]
    classes = network.fc.out_features
    return [*rows, ("Classification", _size((*outputs["head"], 1, 1)),
                    f"global average pool → {classes}-d linear → softmax")]


def _blocks(layer: nn.Module) -> str:
    blocks = list(layer.children())
    texts = set()
    for block in blocks:
        assert isinstance(block, SanBlock)
        window = block.sam.window
        assert isinstance(window, Window)
        side, values = window.footprint, block.bn2.num_features
        texts.add(f"[{side}×{side}, {values}-d sa; {block.conv.out_channels}-d linear]")
    return f"{' or '.join(sorted(texts))} × {len(blocks)}"


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{height}×{width}×{channels}"
