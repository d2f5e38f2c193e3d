"""Rows and tables that tests render, and readers of what was rendered."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial

from sanrobust.data.views import VIEWS
from sanrobust.experiments import pgd, rotation
from sanrobust.metrics import wilson
from sanrobust.tables import Table, make_table, paper_tables, to_latex, to_markdown, with_paper

rotation_table = partial(make_table, rotation.ROTATION)
pgd_table = partial(make_table, pgd.PGD)

HOSTILE = r"my_net%1&#{}$~^\<a|b>[x]*`"
NOTE = "Demonstration on embedded digits: 100 % toy_data."


def rotation_row(model: str, top1: float = 50.0, *, data: str = "digits", n: int = 200,
                 **more: object) -> dict[str, object]:
    row: dict[str, object] = {"model": model, "data": data, "n": n, "failed": 0}
    for view in VIEWS:
        for measure in ("top1", "top5"):
            name, rate = f"{view}_{measure}", top1 if view == "none" else top1 - 10.5
            row[name] = rate
            row[f"{name}_low"], row[f"{name}_high"] = wilson(round(rate * n / 100), n)
            if view != "none":
                row[f"{name}_drop"] = 10.5
    return {**row, **more}


def pgd_row(model: str, budget: tuple[float | None, float | None, int | None] = (8, 4, 2), *,
            success: float = 30.0, top1: float = 40.0, data: str = "digits",
            **more: object) -> dict[str, object]:
    row: dict[str, object] = {"model": model, "data": data, "n": 200, "failed": 0,
                              "eps": budget[0], "step": budget[1], "iters": budget[2]}
    rates = {"clean_top1": 80.0, "success": success, "success_any": success + 1,
             "top1_adv": top1, "top1_fb": 60.0}
    for name, rate in rates.items():
        row[name] = rate
        row[f"{name}_low"], row[f"{name}_high"] = rate - 5, rate + 5
    return {**row, "mean_linf": 7.5, **more}


def without_comments(latex: str) -> str:
    return re.sub(r"(?<!\\)%.*", "", latex)


def latex_rows(latex: str) -> list[list[str]]:
    """Cells of every row of the tabular, headings included."""
    body = latex.split(r"\toprule")[1].split(r"\bottomrule")[0]
    body = re.sub(r"\\midrule|\\cmidrule\(lr\)\{[\d-]+\}", "", body)
    rows = [row.strip() for row in re.split(r"\\\\\n", body)]
    return [re.split(r"(?<!\\)&", row) for row in rows if row]


def latex_width(cells: list[str]) -> int:
    spans = (re.match(r"\s*\\multicolumn\{(\d+)\}", cell) for cell in cells)
    return sum(int(span.group(1)) if span else 1 for span in spans)


def latex_line(table: Table, label: str) -> list[str]:
    rows = [[cell.strip() for cell in row] for row in latex_rows(to_latex(table))]
    return next(row for row in rows if row[0] == label)


def markdown_line(table: Table, label: str) -> list[str]:
    lines = [line for line in to_markdown(table).splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", lines[0])[1:-1]]


TABLES: Mapping[str, Table] = {
    "the paper's rotation": paper_tables()["rotation"],
    "the paper's attacks": paper_tables()["pgd"],
    "one model": rotation_table([rotation_row("san10-pair.digits")]),
    "hostile names": rotation_table([rotation_row(HOSTILE, weights=HOSTILE, data=HOSTILE)],
                                    title=HOSTILE, note=f"{HOSTILE}\n\n{HOSTILE}"),
    "two datasets": rotation_table([rotation_row("resnet26.digits"),
                                    rotation_row("resnet26.in1k", data="imagenet")]),
    "beside the paper": with_paper(rotation_table([
        rotation_row("resnet26.in1k", data="imagenet"), rotation_row("mine", data="imagenet")])),
    "attacks beside the paper": with_paper(pgd_table([
        pgd_row("resnet26.in1k", budget, data="imagenet") for budget in ((8, 4, 2), (4, 1, 9))])),
    "nothing known": rotation_table([{"model": "x", "data": "d", "n": 0, "failed": 7,
                                      **{f"{v}_top1": math.nan for v in VIEWS}}]),
    "three attacks": pgd_table([pgd_row("a", (8, 4, 2)), pgd_row("a", (8, 2, 4)),
                                pgd_row("b", (8, None, None))]),
    "attack without a budget": pgd_table([pgd_row("a", (None, None, None))]),
    "bracket at the start of a row": rotation_table([rotation_row("a"), rotation_row("[2pt]"),
                                                     rotation_row("*")]),
}
PGD = {"attack": "pgd", "targets": "random", "seed": 0, "random_start": False, "restarts": 1,
       "loss": "ce"}
CW = {"attack": "torchattacks:CW", "targets": "random", "seed": 0, "targeted": True,
      "options": {"c": "1", "steps": "100"}, "norm": "l2", "radius": None, "version": "3.5.1"}
L2 = {**CW, "attack": "torchattacks:PGDL2", "radius": 0.5, "options": {"eps": "0.5"}}
MIXED = pgd_table([
    pgd_row("a", (8, 4, 2), success=30.0, **PGD), pgd_row("b", (8, 4, 2), success=20.0, **PGD),
    pgd_row("a", (None, None, None), success=90.0, **CW),
    pgd_row("a", (None, None, None), success=60.0, **L2)])
