"""The paper's Tables 1 and 3 to 8 out of real modules built by name."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from conftest import Command
from sanrobust import paper
from sanrobust.complexity import report, tables
from sanrobust.complexity.settings import TABLES
from sanrobust.tables.sheet import Sheet, to_latex, to_markdown, to_text
from sanrobust.complexity.tables import (BILLION, DIFFERENT, EQUAL, MILLION, TRUNCATED, TWICE,
                                         agreement)

COMMITTED = Path(__file__).parent.parent / "results"
PRINTED = paper.complexity()


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return tables.compared((*TABLES, *tables.TEXT_ROWS))


def test_the_papers_rows_are_all_there() -> None:
    assert Counter(PRINTED["table"]) == {"3": 9, "4": 9, "5": 7, "6": 7, "7": 13, "8": 4,
                                         "text": 1, "sasa": 6}


def test_printed_figures_have_one_decimal() -> None:
    for name in ("params", "flops", "top1", "top5"):
        assert (PRINTED[name].dropna() == PRINTED[name].dropna().round(1)).all()


def test_one_model_has_one_printed_cost_in_all_tables() -> None:
    costs = PRINTED.groupby("model")[["params", "flops"]].nunique()
    assert (costs <= 1).all(axis=None)


def test_every_printed_figure_comes_out_of_a_network_built_by_name(rows: pd.DataFrame) -> None:
    odd = {(row.model, name): getattr(row, f"{name}_agree") for row in rows.itertuples()
           for name in ("params", "flops") if getattr(row, f"{name}_agree") not in (EQUAL, "")}
    # 2.046 G is 2.05 and then 2.1; 14.19 and 14.18 M are printed as 14.1.
    assert odd == {("san10-pair(transforms=2)", "flops"): TWICE, ("sasa38", "params"): TRUNCATED,
                   ("sasa38(stem=attention)", "params"): TRUNCATED}
    assert (rows["params_agree"] != "").all()
    assert (rows["flops_agree"] == "").sum() == 6


def test_the_odd_rows_are_named_in_every_rendering(rows: pd.DataFrame) -> None:
    sheet = report.compared_sheet(rows)
    for render in (to_text, to_markdown, to_latex):
        text = " ".join(render(sheet).replace("\\", "").split())
        assert "san10-pair(transforms=2) has 2.046 G FLOPs, printed 2.1 (rounded twice)" in text
        assert "sasa38 has 14.191 M parameters, printed 14.1 (truncated)" in text


def test_the_caption_counts_what_is_equal(rows: pd.DataFrame) -> None:
    caption = report.compared_sheet(rows).caption
    assert "54 of 56 printed figures of parameters and 49 of 50 printed figures of FLOPs" in caption


def test_the_committed_files_are_what_the_command_writes(
        rows: pd.DataFrame, tmp_path: Path) -> None:
    layers = report.architecture_rows(tables.architecture())
    written = [*report.write(rows, report.compared_sheet(rows), tmp_path, "complexity"),
               *report.write(layers, report.architecture_sheet(layers), tmp_path, "architecture")]
    for path in written:
        assert path.read_text("utf-8") == (COMMITTED / path.name).read_text("utf-8"), path.name


def test_the_csv_holds_exact_numbers(rows: pd.DataFrame, tmp_path: Path) -> None:
    path, *_ = report.write(rows, report.compared_sheet(rows), tmp_path, "complexity")
    back = pd.read_csv(io.StringIO(path.read_text("utf-8")))
    first = back[back["model"] == "san10-pair"].iloc[0]
    assert (first["params"], first["flops"], first["macs"]) == (10_531_848, 2_155_268_622,
                                                                2_043_668_868)


def test_no_attention_of_pairs_has_parameters_that_depend_on_its_footprint(
        rows: pd.DataFrame) -> None:
    table = rows[rows["table"] == "7"]
    pair = table[table["row"].str.startswith("SAN10-pair")]["params"]
    patch = table[table["row"].str.startswith("SAN10-patch")]["params"]
    assert pair.nunique() == 1 and patch.is_monotonic_increasing and patch.nunique() == 5


@pytest.mark.parametrize(("value", "printed", "found"), [
    (10_531_848, 10.5, EQUAL), (2_450_000, 2.5, EQUAL), (2_045_828, 2.1, TWICE),
    (2_046_000, 2.0, EQUAL), (14_190_632, 14.1, TRUNCATED), (14_190_632, 14.3, DIFFERENT),
    (14_190_632, 14.2, EQUAL), (10_000_000, float("nan"), ""),
])
def test_how_a_printed_figure_comes_out_of_a_value(value: int, printed: float,
                                                   found: str) -> None:
    assert agreement(value, printed, MILLION) == found
    assert agreement(value * 1000, printed, BILLION) == found


@pytest.mark.parametrize("attention", ["pair", "patch"])
def test_the_networks_have_the_layers_of_table_1(attention: str) -> None:
    layers = report.architecture_rows(tables.architecture(attention))
    assert len(layers) == 12 and layers["equal"].all()


def test_a_network_of_another_build_does_not_equal_table_1() -> None:
    layers = tables.architecture()
    changed = replace(layers[4], texts=("[5×5, 64-d sa; 256-d linear] × 1", *layers[4].texts[1:]))
    found = report.architecture_rows([*layers[:4], changed, *layers[5:]])
    assert found["equal"].tolist() == [True] * 4 + [False] + [True] * 7
    assert "11 of 12 layers are equal" in report.architecture_sheet(found).caption


def test_the_command_prints_the_tables_asked_for(command: Command, tmp_path: Path) -> None:
    result = command("complexity", "--table", "8", "--table", "1", "--out", tmp_path)
    assert result.exit_code == 0
    assert re.search(r"absolute +san10-pair\(position=absolute\) +10\.532 +10\.5 +2\.154 +2\.2 ",
                     result.output)
    assert "[7×7, 512-d sa; 2048-d linear] × 3" in result.output
    assert {path.stem for path in tmp_path.iterdir()} == {"complexity-8", "architecture"}


SHEET = Sheet("t", "Costs of φ = ψ ≠ β_1 (100 %).", ("Model", "M"), 1,
              ((("a_b", "1"), ("c", "20")), (("L→R→L", "300"),)))


def test_a_screen_has_aligned_columns() -> None:
    assert to_text(SHEET).splitlines()[:6] == ["Model    M", "a_b      1", "c       20", "",
                                               "L→R→L  300", ""]


def test_markdown_rows_have_as_many_cells_as_headings() -> None:
    pipes = [line for line in to_markdown(SHEET).splitlines() if line.startswith("|")]
    assert len(pipes) == 6 and {len(re.findall(r"(?<!\\)\|", line)) for line in pipes} == {3}
    assert "| a\\_b | 1 |" in pipes


def test_latex_compiles_with_booktabs_alone(rows: pd.DataFrame, tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    layers = report.architecture_rows(tables.architecture())
    sheets = (SHEET, report.compared_sheet(rows), report.architecture_sheet(layers))
    (tmp_path / "main.tex").write_text(
        "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\begin{document}\n"
        + "\n".join(map(to_latex, sheets)) + "\\end{document}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    # A wide float of a two-column article is 469 pt wide and 550 pt high, caption included.
    assert "Overfull" not in done.stdout and "Float too large" not in done.stdout
