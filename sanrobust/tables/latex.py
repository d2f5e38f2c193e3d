"""Tables as LaTeX in the paper's layout; the only package they need is booktabs."""

from __future__ import annotations

import re

from sanrobust.experiments.layout import Head
from sanrobust.tables.caption import caption
from sanrobust.tables.grid import Cell, Grid, Line, grid
from sanrobust.tables.table import Table

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "°": r"$^\circ$", "ε": r"$\epsilon$", "ρ": r"$\rho$", "±": r"$\pm$", "×": r"$\times$",
    "[": "{[}", "]": "{]}", "*": "{*}", "−": "$-$", "–": "--", "—": "---",
}


def escape(text: str) -> str:
    """Return ``text`` such that LaTeX prints it as it is."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """Render a table as a LaTeX ``table*`` that a document with booktabs can ``\\input``.

    Rules separate the groups of the paper, the best value of a group is bold, and the caption
    says what the numbers rest on. The wide float spans both columns of a two-column page.
    """
    layout = grid(table)
    numbers = sum(len(head.measures) for head in layout.heads)
    body = ["    \\midrule\n".join(
        "".join(f"    {_row(line)} \\\\\n" for line in group) for group in layout.groups)]
    return "".join([
        "% needs \\usepackage{booktabs}\n"
        "\\begin{table*}[t]\n"
        "  \\centering\n"
        f"  {_size(layout)}\n",
        f"  \\begin{{tabular}}{{{'l' * len(layout.stubs)}{'c' * numbers}}}\n"
        "    \\toprule\n",
        *_headings(layout),
        "    \\midrule\n",
        *body,
        "    \\bottomrule\n"
        "  \\end{tabular}\n",
        f"  \\caption{{{_math(escape(caption(table, layout)))}}}\n",
        f"  \\label{{tab:{table.experiment.files}}}\n"
        "\\end{table*}\n",
    ])


def _size(layout: Grid) -> str:
    """Return the type size that fits the table into the width of a two-column page."""
    lines = [line for group in layout.groups for line in group]
    drops = any(cell.drop is not None for line in lines for cell in line.cells)
    wide = len(layout.stubs) > 1 or any(line.role != "single" for line in lines)
    size, gap = ("scriptsize", 2) if drops and wide else ("footnotesize", 3)
    return f"\\{size}\\setlength{{\\tabcolsep}}{{{gap}pt}}"


def _headings(layout: Grid) -> list[str]:
    titles = [*layout.stubs, *(_spanning(head.title, head) for head in layout.heads)]
    lines = [titles]
    blank = [""] * len(layout.stubs)
    if any(head.detail for head in layout.heads):
        lines.append([*blank, *(_spanning(head.detail, head) for head in layout.heads)])
    labels = [measure.label for head in layout.heads for measure in head.measures]
    text = [f"    {' & '.join(line)} \\\\\n" for line in lines]
    return [*text, f"    {_rules(layout)}\n", f"    {' & '.join([*blank, *labels])} \\\\\n"]


def _spanning(text: str, head: Head) -> str:
    return f"\\multicolumn{{{len(head.measures)}}}{{c}}{{{_math(escape(text))}}}"


def _rules(layout: Grid) -> str:
    rules, first = [], len(layout.stubs) + 1
    for head in layout.heads:
        last = first + len(head.measures) - 1
        rules.append(f"\\cmidrule(lr){{{first}-{last}}}")
        first = last + 1
    return " ".join(rules)


def _math(escaped: str) -> str:
    """Set the paper's n in italics, where it stands for the number of iterations."""
    return re.sub(r"\bn = (\d+)", r"$n = \1$", re.sub(r"\bn is the number", "$n$ is the number",
                                                      escaped))


def _row(line: Line) -> str:
    label, *others = map(escape, line.stubs)
    if line.role == "ours":
        label += " (ours)"
    elif line.role == "beside":
        label = f"\\quad {label}"
    return " & ".join([label, *others, *map(_cell, line.cells)])


def _cell(cell: Cell) -> str:
    value, drop = cell.printed(), cell.printed_drop("")
    if not value:
        return "--"
    text = f"\\textbf{{{_signs(value)}}}" if cell.bold else _signs(value)
    return text if drop is None else f"{text}({_signs(drop) or '--'})"


def _signs(number: str) -> str:
    return number.replace("-", "$-$").replace("+", "$+$")
