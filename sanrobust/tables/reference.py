"""The paper's own tables, rendered as ours are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sanrobust import paper
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.tables.files import write_table
from sanrobust.tables.table import Table, make_table

_AS_PRINTED = f"The numbers stand as printed in {paper.SOURCE}, "


def paper_tables() -> dict[str, Table]:
    """Return the paper's own tables by the name of their files: Tables 9 and 10."""
    return {each.files: make_table(each, _rows(each.reference.rows()),
                                   note=_AS_PRINTED + each.reference.note())
            for each in EXPERIMENTS if each.reference is not None}


def write_paper_tables(folder: Path) -> list[Path]:
    """Write the paper's tables into ``folder`` in every format and return their paths."""
    return [path for table in paper_tables().values() for path in write_table(table, folder)]


def _rows(reference: pd.DataFrame) -> list[dict[str, object]]:
    rows = reference.to_dict(orient="records")
    return [{"data": paper.DATA, "n": paper.IMAGES, **{str(k): v for k, v in row.items()}}
            for row in rows]
