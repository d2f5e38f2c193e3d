"""The table as a value: unformatted numbers in the column order of its experiment's layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from sanrobust import paper
from sanrobust.choices import FLOAT32
from sanrobust.errors import OutputError, UsageError
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.layout import Layout
from sanrobust.harmless import csv_text

PAPER_PREFIX = "paper_"
MODEL_FACTS = ("preprocessing", "code", "source", "weights")
"""Columns that say which model a row is of: two rows may differ in them and still be compared."""
NOT_SETTINGS = (*MODEL_FACTS, "run_id", "remarks", "note")
"""Columns that may differ between the rows of a table without making them incomparable."""

# A file leaves out these columns where rows of one dataset, or of one model, agree in them...
_TOLD_WHEN_DIFFERENT = {"data_digest": "data", "precision": "data", "preprocessing": "model",
                        "code": "model", "source": "model"}
# ... and these where no row has anything but zeros and empty texts in them.
_TOLD_WHEN_ANY = ("excluded", "reasons", "remarks")
_INTEGERS = ("n", "failed", "iters", "excluded")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of one experiment, derived from records and ready to be rendered.

    Attributes:
        experiment: what was measured; its layout says what the columns are.
        rows: the numbers, in percent and unrounded, in the order in which they are rendered.
        title: what the table shows, a phrase; empty for one that follows from the rows.
        note: what a reader must not miss, for example that the data are a demonstration; every
            rendering carries it.
        intervals: what the columns ``_low`` and ``_high`` bound.
    """

    experiment: Experiment
    rows: pd.DataFrame
    title: str = ""
    note: str = ""
    intervals: str = "95 % Wilson intervals"

    @property
    def layout(self) -> Layout:
        """How it is printed."""
        return self.experiment.layout

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns in their order."""
        return tuple(self.rows.columns)

    @property
    def provenance(self) -> tuple[str, ...]:
        """Columns that say where a row comes from."""
        known = {"model", "data", *self.layout.columns, *self.layout.optional}
        return tuple(name for name in self.columns
                     if name not in known and not name.startswith(PAPER_PREFIX))

    @property
    def settings(self) -> tuple[str, ...]:
        """Provenance columns in which comparable rows agree."""
        return tuple(name for name in self.provenance if name not in NOT_SETTINGS)


def make_table(experiment: Experiment, summaries: Sequence[Mapping[str, object]], *,
               title: str = "", note: str = "") -> Table:
    """Build the table of an experiment.

    Args:
        experiment: what was measured.
        summaries: one mapping per row: ``model``, ``data``, what the experiment's ``summarise``
            returns, and any provenance (weights, seed, run_id, ...), which becomes columns at the
            end.
        title: phrase that replaces the default one.
        note: sentence that every rendering carries.

    Raises OutputError when there is no summary, or one lacks a model or its data.
    """
    if not summaries:
        raise OutputError("a table must have at least one row", seen="there are no results",
                          hint=f"run sanrobust {experiment.name} first")
    rows = pd.DataFrame([{name: _scalar(value) for name, value in summary.items()}
                         for summary in summaries])
    known = ["model", "data", *experiment.layout.columns, *experiment.layout.optional]
    for name in rows.columns.difference(known, sort=False):
        # As pandas reads them, a whole number beside a row without one would turn into a float.
        rows[name] = pd.Series([_scalar(summary.get(name)) for summary in summaries], dtype=object)
    for name in ("model", "data"):
        if name not in rows or rows[name].isna().any():
            raise OutputError(f"every row of a table must have its {name}",
                              seen="one has none", hint=f"add {name!r} to each summary")
    rest = [name for name in rows.columns if name not in known]
    rows = rows[[name for name in known if name in rows.columns] + rest]
    return Table(experiment, _sorted(_typed(rows)), title, note, experiment.layout.intervals)


def with_paper(table: Table) -> Table:
    """Put the paper's numbers beside ours: ``paper_*`` columns, empty where it has none.

    Only rows on ImageNet get them, matched by architecture and, under attack, by budget. Raises
    UsageError when the table has no such row.
    """
    published = table.experiment.reference
    if published is None:
        raise UsageError("the paper must have values of the experiment",
                         seen=f"it has none of {table.experiment.name}", hint="leave out --paper")
    reference, keys = published.rows(), ["_arch", *table.layout.parts]
    reference = reference.rename(columns={"model": "_arch"})
    values = {name: PAPER_PREFIX + name for name in reference.columns if name not in keys}
    reference = reference.rename(columns=values)
    fits = _comparable(table, published.fits)
    rows = table.rows.assign(_arch=table.rows["model"].map(architecture).where(fits))
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


def _comparable(table: Table, fits: Callable[[Mapping[str, object]], bool]) -> pd.Series[bool]:
    """Say which rows the paper's values may stand beside: trained, on ImageNet, measured alike."""
    rows = table.rows
    trained = ~rows["model"].str.rpartition(".")[2].str.startswith("untrained")
    alike = [fits({str(name): value for name, value in row.items()})
             for row in rows.to_dict(orient="records")]
    return (rows["data"] == paper.DATA) & trained & pd.Series(alike, index=rows.index, dtype=bool)


def to_csv(table: Table) -> str:
    """Render a table as CSV: unformatted numbers, missing ones empty, the note as a column.

    Facts of data and model stay where rows of the same one differ in them, counts and remarks where
    a row has any, and the layout's rare columns where there is anything to see in them.
    """
    rows = _told(table.rows, table.layout.rare)
    rows = rows.assign(note=table.note) if table.note else rows
    return csv_text(rows)


def _told(rows: pd.DataFrame, rare: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows without the columns that have nothing to say."""
    quiet = {name for name, of in _TOLD_WHEN_DIFFERENT.items() if name in rows
             and rows.groupby(of, sort=False)[name].nunique(dropna=False).max() < 2}
    if any(value not in (None, FLOAT32) for value in rows.get("precision", ())):
        quiet.discard("precision")
    empty = {name for name in {*_TOLD_WHEN_ANY, *rare.values()}
             if name in rows and not any(pd.notna(value) and value for value in rows[name])}
    quiet |= empty & {*_TOLD_WHEN_ANY}
    quiet |= {name for name, of in rare.items() if of in empty}
    return rows.drop(columns=[name for name in rows.columns if name in quiet])


def architecture(model: str) -> str:
    """Return the architecture of a model's full name, ``arch.tag``, with its options."""
    return model.split(".", 1)[0]


def network(model: str) -> str:
    """Return the architecture of a model's full name without its options."""
    return architecture(model).partition("(")[0]


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
