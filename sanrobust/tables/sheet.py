"""A plain table of texts, rendered for a screen, as Markdown and as LaTeX."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from sanrobust.tables.latex import escape as escape_latex
from sanrobust.tables.lines import aligned, pipes
from sanrobust.tables.markdown import escape as escape_markdown

_WIDTH = 100
_MINUS = re.compile(r"-(?=\d)")
_SIGNS = {"φ": r"$\varphi$", "ψ": r"$\psi$", "β": r"$\beta$", "≠": r"$\neq$", "→": r"$\to$"}


@dataclass(frozen=True)
class Sheet:
    """Lines of cells in groups.

    Attributes:
        name: of the LaTeX label.
        caption: sentences that stand with the table.
        headings: of the columns.
        stubs: how many columns at the left are words; numbers fill the others.
        groups: lines that belong together.
    """

    name: str
    caption: str
    headings: tuple[str, ...]
    stubs: int
    groups: tuple[tuple[tuple[str, ...], ...], ...]


def to_text(sheet: Sheet) -> str:
    """Render for a screen of fixed-width letters; a group ends with an empty line."""
    lines = [line for group in sheet.groups for line in group]
    widths = [max(map(len, column)) for column in zip(sheet.headings, *lines, strict=True)]
    body = "\n\n".join("\n".join(aligned(line, widths, sheet.stubs) for line in group)
                       for group in sheet.groups)
    return "\n".join([aligned(sheet.headings, widths, sheet.stubs), body, "",
                      textwrap.fill(sheet.caption, _WIDTH, break_on_hyphens=False)])


def to_markdown(sheet: Sheet) -> str:
    """Render as a pipe table under its caption; an empty row stands between two groups."""
    lines: list[Sequence[str]] = []
    for group in sheet.groups:
        lines += [[""] * len(sheet.headings)] if lines else []
        lines += [[escape_markdown(cell) for cell in line] for line in group]
    headings = [escape_markdown(heading) for heading in sheet.headings]
    return f"{escape_markdown(sheet.caption)}\n\n{pipes(headings, lines, sheet.stubs)}\n"


def to_latex(sheet: Sheet) -> str:
    """Render as a LaTeX ``table*`` whose only package is booktabs."""
    columns = "l" * sheet.stubs + "r" * (len(sheet.headings) - sheet.stubs)
    body = "    \\midrule\n".join("".join(f"    {_latex_row(line, sheet.stubs)}" for line in group)
                                  for group in sheet.groups)
    return ("% needs \\usepackage{booktabs}\n"
            "\\begin{table*}[p]\n"
            "  \\centering\n"
            "  \\scriptsize\\setlength{\\tabcolsep}{2pt}\\renewcommand{\\arraystretch}{0.9}\n"
            f"  \\begin{{tabular}}{{{columns}}}\n"
            "    \\toprule\n"
            f"    {_latex_row(sheet.headings, len(sheet.headings))}"
            "    \\midrule\n"
            f"{body}"
            "    \\bottomrule\n"
            "  \\end{tabular}\n"
            f"  \\caption{{\\scriptsize {_latex(sheet.caption)}}}\n"
            f"  \\label{{tab:{sheet.name}}}\n"
            "\\end{table*}\n")


def _latex_row(cells: Sequence[str], stubs: int) -> str:
    numbers = (_MINUS.sub("$-$", _latex(cell)) for cell in cells[stubs:])
    return " & ".join([*map(_latex, cells[:stubs]), *numbers]) + " \\\\\n"


def _latex(text: str) -> str:
    escaped = escape_latex(text)
    for sign, command in _SIGNS.items():
        escaped = escaped.replace(sign, command)
    return escaped
