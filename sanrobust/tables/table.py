"""The table as a value: unformatted numbers in a fixed column order, one layout per experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from sanrobust import paper
from sanrobust.errors import OutputError, UsageError
from sanrobust.metrics import VIEWS

Layout = Literal["rotation", "pgd"]

PAPER_PREFIX = "paper_"
BUDGET = ("eps", "step", "iters")
PGD_RATES = ("success", "success_any", "top1_adv", "top1_fb")
MODEL_FACTS = ("preprocessing", "code", "source", "weights")
"""Columns that say which model a row is of: two rows may differ in them and still be compared."""
NOT_SETTINGS = (*MODEL_FACTS, "run_id", "remarks", "note")
"""Columns that may differ between the rows of a table without making them incomparable."""

# A file leaves out these columns where rows of one dataset, or of one model, agree in them...
_TOLD_WHEN_DIFFERENT = {"data_digest": "data", "precision": "data", "preprocessing": "model",
                        "code": "model", "source": "model"}
# ... and these where no row has anything but zeros and empty texts in them.
_TOLD_WHEN_ANY = ("excluded", "reasons", "no_gradient", "remarks")
_INTEGERS = ("n", "failed", "iters", "excluded")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one experiment, derived from records and ready to be rendered.

    Attributes:
        layout: ``rotation`` (one row per model) or ``pgd`` (one row per model and budget).
        rows: the numbers, in percent and unrounded, in the order in which they are rendered.
        title: what the table shows, a phrase; empty for one that follows from the rows.
        note: what a reader must not miss, for example that the data are a demonstration; every
            rendering carries it.
        intervals: what the columns ``_low`` and ``_high`` bound.
    """

    layout: Layout
    rows: pd.DataFrame
    title: str
    note: str = ""
    intervals: str = "95 % Wilson intervals"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns in their order."""
        return tuple(self.rows.columns)

    @property
    def provenance(self) -> tuple[str, ...]:
        """Columns that say where a row comes from."""
        known = {"model", "data", *standard_columns(self.layout), *optional_columns(self.layout)}
        return tuple(name for name in self.columns
                     if name not in known and not name.startswith(PAPER_PREFIX))

    @property
    def settings(self) -> tuple[str, ...]:
        """Provenance columns in which comparable rows agree."""
        return tuple(name for name in self.provenance if name not in NOT_SETTINGS)


def rotation_table(summaries: Sequence[Mapping[str, object]], *, title: str = "",
                   note: str = "") -> Table:
    """Build the table of rotation and flip (layout of the paper's Table 9).

    Args:
        summaries: one mapping per model: ``model``, ``data``, what `rotation_summary` returns,
            and any provenance (weights, seed, run_id, ...), which becomes columns at the end.
        title: phrase that replaces the default one.
        note: sentence that every rendering carries.

    Raises OutputError when there is no summary, or one lacks a model or its data.
    """
    return _table("rotation", summaries, title, note)


def pgd_table(summaries: Sequence[Mapping[str, object]], *, title: str = "",
              note: str = "") -> Table:
    """Build the table of targeted PGD (layout of the paper's Table 10).

    Args:
        summaries: one mapping per model and budget: ``model``, ``data``, what `pgd_summaries`
            returns, and any provenance, which becomes columns at the end.
        title: phrase that replaces the default one.
        note: sentence that every rendering carries.

    Raises OutputError when there is no summary, or one lacks a model or its data.
    """
    return _table("pgd", summaries, title, note)


def with_paper(table: Table) -> Table:
    """Put the paper's numbers beside ours: ``paper_*`` columns, empty where it has none.

    Only rows on ImageNet get them, matched by architecture and, under attack, by budget. Raises
    UsageError when the table has no such row.
    """
    reference = paper.rotation() if table.layout == "rotation" else paper.pgd()
    keys = ["_arch"] if table.layout == "rotation" else ["_arch", *BUDGET]
    reference = reference.rename(columns={"model": "_arch"})
    values = {name: PAPER_PREFIX + name for name in reference.columns if name not in keys}
    reference = reference.rename(columns=values)
    rows = table.rows.assign(_arch=table.rows["model"].map(architecture).where(_comparable(table)))
    numbers = {name: "Float64" for name in keys[1:]}
    rows, reference = rows.astype(numbers), reference.astype(numbers)
    merged = rows.merge(reference, on=keys, how="left").drop(columns="_arch")
    if merged[list(values.values())].isna().all(axis=None):
        seen = ", ".join(sorted({f"{row.model} on {row.data}" for row in table.rows.itertuples()}))
        raise UsageError("the paper's values stand beside trained networks of the paper, measured "
                         "on ImageNet under its own budgets", seen=f"the table has {seen}",
                         hint="measure with --data imagenet, or add --data-name imagenet to a "
                              "folder that holds its validation images; or leave out --paper")
    return replace(table, rows=_typed(merged))


def _comparable(table: Table) -> pd.Series[bool]:
    """Say which rows the paper's values may stand beside: trained, on ImageNet, by its attack."""
    rows = table.rows
    trained = ~rows["model"].str.rpartition(".")[2].str.startswith("untrained")
    by_pgd = rows["attack"] == "pgd" if "attack" in rows else True
    return (rows["data"] == paper.DATA) & trained & by_pgd


def to_csv(table: Table) -> str:
    """Render a table as CSV: unformatted numbers, missing ones empty, the note as a column.

    Columns that have nothing to say are left out: see `told`.
    """
    rows = told(table.rows)
    rows = rows.assign(note=table.note) if table.note else rows
    return rows.to_csv(index=False, lineterminator="\n")


def told(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without the columns that have nothing to say.

    Facts of data and model stay where rows of the same one differ in them, counts and remarks
    where a row has any, and the parts of a gradient that were zero where one was zero as a whole.
    """
    quiet = {name for name, of in _TOLD_WHEN_DIFFERENT.items() if name in rows
             and rows.groupby(of, sort=False)[name].nunique(dropna=False).max() < 2}
    quiet |= {name for name in _TOLD_WHEN_ANY
              if name in rows and not any(pd.notna(value) and value for value in rows[name])}
    quiet |= {"zero_gradient"} if "no_gradient" in quiet else set()
    return rows.drop(columns=[name for name in rows.columns if name in quiet])


def architecture(model: str) -> str:
    """Return the architecture of a model's full name, ``arch.tag``, with its options."""
    return model.split(".", 1)[0]


def network(model: str) -> str:
    """Return the architecture of a model's full name without its options."""
    return architecture(model).partition("(")[0]


def rates(layout: Layout) -> list[str]:
    """Return the names of the rates that a layout has."""
    if layout == "rotation":
        return [f"{view}_{measure}" for view in VIEWS for measure in ("top1", "top5")]
    return ["clean_top1", *PGD_RATES]


def standard_columns(layout: Layout) -> list[str]:
    """Return the columns behind ``model`` and ``data``: values, intervals, counts."""
    if layout == "rotation":
        values = [column for name in rates(layout) for column in
                  ((name,) if name.startswith(f"{VIEWS[0]}_") else (name, f"{name}_drop"))]
        extra = []
    else:
        values = ["clean_top1", *BUDGET, *PGD_RATES]
        extra = ["mean_linf"]
    intervals = [f"{name}_{bound}" for name in rates(layout) for bound in ("low", "high")]
    return ["n", *values, *intervals, "failed", *extra]


def optional_columns(layout: Layout) -> list[str]:
    """Return the columns behind the standard ones that only some rows have."""
    gradients = [] if layout == "rotation" else ["zero_gradient", "no_gradient"]
    return ["excluded", "reasons", *(f"{name}_all" for name in rates(layout)), *gradients]


def _table(layout: Layout, summaries: Sequence[Mapping[str, object]], title: str,
           note: str) -> Table:
    if not summaries:
        raise OutputError("a table must have at least one row", seen="there are no results",
                          hint="run sanrobust rotate or sanrobust pgd first")
    rows = pd.DataFrame([{name: _scalar(value) for name, value in summary.items()}
                         for summary in summaries])
    facts = {"model", "data", *standard_columns(layout), *optional_columns(layout)}
    for name in rows.columns.difference([*facts], sort=False):
        # As pandas reads them, a whole number beside a row without one would turn into a float.
        rows[name] = pd.Series([_scalar(summary.get(name)) for summary in summaries], dtype=object)
    for name in ("model", "data"):
        if name not in rows or rows[name].isna().any():
            raise OutputError(f"every row of a table must have its {name}",
                              seen="one has none", hint=f"add {name!r} to each summary")
    known = ["model", "data", *standard_columns(layout), *optional_columns(layout)]
    rest = [name for name in rows.columns if name not in known]
    rows = rows[[name for name in known if name in rows.columns] + rest]
    return Table(layout, _sorted(_typed(rows)), title, note)


def _scalar(value: object) -> object:
    """Return a value that fits a cell; settings that are lists or mappings become JSON."""
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    integers = {name: "Int64" for name in _INTEGERS if name in rows}
    floats = {name: "float64" for name in ("eps", "step") if name in rows}
    return rows.astype({**integers, **floats})


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort as the paper does within each dataset, other models behind; otherwise keep order.

    Variants of a network come behind the network itself.
    """
    places = {name: place for place, name in enumerate(paper.DISPLAY_NAMES)}
    models = rows["model"]
    order = rows.assign(
        _data=pd.factorize(rows["data"])[0],
        _rank=models.map(lambda model: places.get(network(model), len(places))),
        _variant=models.map(lambda model: architecture(model) != network(model)))
    keys = ["_data", "_rank", "_variant"]
    return order.sort_values(keys, kind="stable").drop(columns=keys).reset_index(drop=True)
