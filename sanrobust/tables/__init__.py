"""Tables of results: a value with fixed columns, rendered as CSV, LaTeX and Markdown."""

from __future__ import annotations

from sanrobust.tables.files import RENDERERS, table_files, write_table
from sanrobust.tables.latex import to_latex
from sanrobust.tables.markdown import to_markdown
from sanrobust.tables.reference import paper_tables, write_paper_tables
from sanrobust.tables.table import Table, make_table, to_csv, with_paper
from sanrobust.tables.text import to_text

__all__ = ["RENDERERS", "Table", "make_table", "paper_tables", "table_files", "to_csv", "to_latex",
           "to_markdown", "to_text", "with_paper", "write_paper_tables", "write_table"]
