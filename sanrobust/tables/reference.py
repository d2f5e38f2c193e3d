"""The paper's own tables, rendered as ours are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sanrobust import paper
from sanrobust.files import write_text
from sanrobust.tables.latex import to_latex
from sanrobust.tables.markdown import to_markdown
from sanrobust.tables.table import Table, pgd_table, rotation_table, to_csv

RENDERERS = {"csv": to_csv, "md": to_markdown, "tex": to_latex}
"""Renderer by the suffix of the file it fills."""

_AS_PRINTED = f"The numbers stand as printed in {paper.SOURCE}, "


def paper_tables() -> dict[str, Table]:
    """Return the paper's Tables 9 (``rotation``) and 10 (``pgd``) as tables of ours."""
    return {
        "rotation": rotation_table(_rows(paper.rotation()),
                                   note=f"{_AS_PRINTED}Table 9; {paper.ODD_DROPS}."),
        "pgd": pgd_table(_rows(paper.pgd()), note=f"{_AS_PRINTED}Table 10."),
    }


def write_table(table: Table, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.csv``, ``NAME.md`` and ``NAME.tex`` into ``folder`` and return their paths.

    Raises OutputError when a file cannot be written.
    """
    paths = [folder / file for file in table_files(name)]
    for path, render in zip(paths, RENDERERS.values()):
        write_text(path, render(table))
    return paths


def table_files(name: str) -> list[str]:
    """Return the names of the files that `write_table` writes."""
    return [f"{name}.{suffix}" for suffix in RENDERERS]


def write_paper_tables(folder: Path) -> list[Path]:
    """Write the paper's tables into ``folder`` in every format and return their paths."""
    return [path for name, table in paper_tables().items()
            for path in write_table(table, folder, name)]


def _rows(reference: pd.DataFrame) -> list[dict[str, object]]:
    rows = reference.to_dict(orient="records")
    return [{"data": paper.DATA, "n": paper.IMAGES, **{str(k): v for k, v in row.items()}}
            for row in rows]
