"""Tables as values and in each format."""

from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanrobust import paper
from sanrobust.errors import OutputError, UsageError
from sanrobust.data.views import VIEWS
from sanrobust.tables import (Table, paper_tables, to_csv, to_latex, to_markdown, to_text,
                              with_paper, write_table)
from sanrobust.tables.entries import entries
from sanrobust.tables.grid import printed
from sanrobust.tables.latex import escape as escape_latex
from sanrobust.tables.markdown import escape as escape_markdown
from table_cases import (MIXED, NOTE, PGD, TABLES, latex_line, latex_rows, latex_width,
                         markdown_line, pgd_row, pgd_table, rotation_row, rotation_table,
                         without_comments)

every_table = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))


@every_table
def test_latex_rows_have_as_many_columns_as_the_tabular(table: Table) -> None:
    latex = to_latex(table)
    columns = re.search(r"\\begin\{tabular\}\{([lc]+)\}", latex)
    assert columns
    assert {latex_width(row) for row in latex_rows(latex)} == {len(columns.group(1))}


@every_table
def test_latex_braces_dollars_and_environments_balance(table: Table) -> None:
    text = re.sub(r"\\[{}$\\&%#_]", "", without_comments(to_latex(table)))
    assert text.count("{") == text.count("}")
    assert text.count("$") % 2 == 0
    for name in ("tabular", "table*"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1


@every_table
def test_markdown_rows_have_as_many_cells_as_their_heading(table: Table) -> None:
    for block in to_markdown(table).split("\n\n"):
        if block.startswith("| "):
            cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(cells) == 1


@every_table
def test_csv_reads_back_as_the_same_numbers(table: Table) -> None:
    back = pd.read_csv(io.StringIO(to_csv(table)), dtype=str)
    numbers = [name for name in table.columns if pd.api.types.is_numeric_dtype(table.rows[name])]
    expected = table.rows[numbers].astype("float64")
    pd.testing.assert_frame_equal(back[numbers].map(float), expected, check_exact=True)


def test_latex_compiles_with_booktabs_alone(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    inputs = "\n\\clearpage\n".join(to_latex(table) for table in TABLES.values())
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        f"{inputs}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_rotation_csv_has_the_agreed_columns() -> None:
    table = rotation_table([rotation_row("m", weights="w", seed=0, run_id="r")])
    rates = [f"{view}_{measure}" for view in VIEWS for measure in ("top1", "top5")]
    values = rates[:2] + [name for rate in rates[2:] for name in (rate, f"{rate}_drop")]
    intervals = [f"{rate}_{bound}" for rate in rates for bound in ("low", "high")]
    assert to_csv(table).splitlines()[0] == ",".join(
        ["model", "data", "n", *values, *intervals, "failed", "weights", "seed", "run_id"])


def test_pgd_csv_has_the_agreed_columns_and_one_row_per_budget() -> None:
    lines = to_csv(pgd_table([pgd_row("m", (8, 4, 2), run_id="r"),
                              pgd_row("m", (8, 2, 4), run_id="r")])).splitlines()
    assert lines[0].startswith("model,data,n,clean_top1,eps,step,iters,success,success_any,"
                               "top1_adv,top1_fb,clean_top1_low,clean_top1_high,success_low,")
    assert lines[0].endswith(",top1_fb_high,failed,mean_linf,run_id")
    assert len(lines) == 3


def test_csv_numbers_are_unrounded_and_without_separators() -> None:
    text = to_csv(rotation_table([rotation_row("m", 200 / 3, n=50_000)]))
    assert "m,digits,50000,66.66666666666667," in text


def test_csv_leaves_unknown_numbers_empty_and_counts_whole() -> None:
    table = pgd_table([pgd_row("a", (8, None, None), success_any=math.nan), pgd_row("b")])
    row = to_csv(table).splitlines()[1]
    assert row.startswith("a,digits,200,80.0,8.0,,,30.0,,40.0,")
    assert to_csv(table).splitlines()[2].startswith("b,digits,200,80.0,8.0,4.0,2,")


@pytest.mark.parametrize("render", [to_csv, to_latex, to_markdown])
def test_every_rendering_carries_the_note(render: object) -> None:
    assert callable(render)
    for table in (rotation_table([rotation_row("m")], note=NOTE),
                  pgd_table([pgd_row("m")], note=NOTE)):
        assert NOTE in re.sub(r"\\([_%])", r"\1", render(table))


def test_latex_cells_are_those_of_the_paper() -> None:
    line = latex_line(paper_tables()["rotation"], "ResNet26")
    assert line[:5] == ["ResNet26", "73.6", "91.7", "49.1(24.5)", "72.7(19.0)"]


def test_markdown_cells_have_the_drop_in_brackets() -> None:
    line = markdown_line(paper_tables()["rotation"], "ResNet26")
    assert line[:5] == ["ResNet26", "73.6", "91.7", "49.1 (24.5)", "72.7 (19.0)"]


def test_attack_heading_states_each_budget() -> None:
    latex = to_latex(paper_tables()["pgd"])
    assert r"\multicolumn{2}{c}{attack $n = 2$} & \multicolumn{2}{c}{attack $n = 4$}" in latex
    assert r"{$\epsilon$ = 8, $\rho$ = 4} & \multicolumn{2}{c}{$\epsilon$ = 8, $\rho$ = 2}" in latex


def test_an_attack_without_a_budget_has_a_bare_heading() -> None:
    text = to_markdown(TABLES["attack without a budget"])
    assert "| attack: s. rate | attack: top-1 |" in text and "| a | – | 80.0 " in text


def test_budgets_stand_in_the_order_of_the_paper_however_given() -> None:
    table = pgd_table([pgd_row("a", budget) for budget in ((8, None, None), (8, 2, 4), (8, 4, 2),
                                                           (0.5, 0.25, 3))])
    heading = to_markdown(table).split("\n\n")[1].splitlines()[0]
    assert re.findall(r"attack[^:]*(?=: top-1)", heading) == [
        "attack n = 3 (ε = 0.5, ρ = 0.25)", "attack n = 2 (ε = 8, ρ = 4)",
        "attack n = 4 (ε = 8, ρ = 2)", "attack (ε = 8)"]


def test_models_stand_in_the_groups_of_the_paper_and_others_behind() -> None:
    names = ["mine", "san19-pair", "san10-patch", "resnet26"]
    latex = to_latex(rotation_table([rotation_row(name) for name in names]))
    body = latex.split(r"\midrule", 1)[1]
    groups = [re.findall(r"^ +(\S+) &", group, re.M) for group in body.split(r"\midrule")]
    assert groups == [["ResNet26", "SAN10-patch"], ["SAN19-pair"], ["mine"]]


@pytest.mark.parametrize(("data", "models", "labels"), [
    ("digits", ("resnet26.digits", "san10-pair.digits"), ("ResNet26", "SAN10-pair")),
    ("cifar10", ("resnet26.cifar10", "san10-pair.cifar10-adv"),
     ("ResNet26", "SAN10-pair (cifar10-adv)")),
    ("cifar10", ("resnet26.cifar10-adv",), ("ResNet26 (cifar10-adv)",)),
    ("mine", ("resnet26.digits",), ("ResNet26",)),
    ("mine", ("resnet26.digits", "san10-pair.x"), ("ResNet26 (digits)", "SAN10-pair (x)")),
    ("digits", ("resnet26.digits", "resnet26.x"), ("ResNet26 (digits)", "ResNet26 (x)"))])
def test_weights_of_another_kind_are_told(data: str, models: tuple[str, ...],
                                          labels: tuple[str, ...]) -> None:
    table = rotation_table([rotation_row(model, data=data) for model in models])
    assert tuple(entry.label for entry in entries(table)) == labels


def test_highest_accuracy_and_lowest_success_of_a_group_are_bold() -> None:
    table = pgd_table([pgd_row("san10-pair", success=30, top1=40),
                       pgd_row("san10-patch", success=20, top1=50),
                       pgd_row("san15-pair", success=1, top1=99)])
    assert markdown_line(table, "SAN10-patch")[2:] == ["**20.0**", "**50.0**"]
    assert markdown_line(table, "SAN10-pair")[2:] == ["30.0", "40.0"]


def test_a_model_alone_in_its_group_is_not_bold() -> None:
    assert "**" not in to_markdown(rotation_table([rotation_row("san15-pair"),
                                                   rotation_row("san10-pair")]))


def test_equal_print_is_equally_bold() -> None:
    table = rotation_table([rotation_row("san10-pair", 70.04), rotation_row("san10-patch", 69.96),
                            rotation_row("resnet26", 69.94)])
    bold = [latex_line(table, name)[1] for name in ("SAN10-pair", "SAN10-patch", "ResNet26")]
    assert bold == [r"\textbf{70.0}", r"\textbf{70.0}", "69.9"]


def test_models_on_different_data_are_not_compared() -> None:
    assert "\\textbf" not in to_latex(TABLES["two datasets"])


def test_data_column_appears_with_the_second_dataset() -> None:
    assert latex_line(TABLES["two datasets"], "ResNet26")[1] == "digits"
    assert "& Data &" not in to_latex(TABLES["one model"])


def test_unknown_numbers_are_a_dash() -> None:
    table = TABLES["three attacks"]
    assert latex_line(table, "b") == ["b", r"\textbf{80.0}", "--", "--", "--", "--", "30.0", "40.0"]
    assert markdown_line(table, "b")[2] == "–"


def test_zero_images_render_as_dashes_and_say_so() -> None:
    text = to_markdown(TABLES["nothing known"])
    assert "| x | – |" in text
    assert "0 images" in text and "Images that failed: 7 of 7 (x)" in text


def test_ours_paper_and_difference_stand_below_each_other() -> None:
    table = with_paper(rotation_table([rotation_row("san10-pair.in1k", 75.0, data="imagenet")]))
    assert latex_line(table, "SAN10-pair (ours)")[1:4] == ["75.0", "75.0", "64.5(10.5)"]
    assert latex_line(table, r"\quad paper")[1:4] == ["74.9", "92.1", "51.8(23.1)"]
    assert latex_line(table, r"\quad difference")[1:4] == ["$+$0.1", "$-$17.1", "$+$12.7"]
    assert paper.SOURCE in to_markdown(table)


def test_paper_values_of_an_attack_match_by_budget() -> None:
    table = with_paper(pgd_table([pgd_row("resnet26", (8, 2, 4), data="imagenet"),
                                  pgd_row("resnet26", (8, 3, 4), data="imagenet")]))
    assert table.rows["paper_success"].tolist()[0] == 98.2
    assert math.isnan(table.rows["paper_success"].tolist()[1])
    assert markdown_line(table, "↳ paper")[1:] == ["73.6", "98.2", "1.0", "–", "–"]


def test_rows_on_other_data_get_no_paper_values() -> None:
    table = with_paper(rotation_table([rotation_row("resnet26", data="digits"),
                                       rotation_row("resnet26", data="imagenet")]))
    assert table.rows["paper_none_top1"].isna().tolist() == [True, False]
    assert to_csv(table).splitlines()[0].endswith(",paper_updown_top5,paper_updown_top5_drop")


def test_comparison_without_any_imagenet_row_is_refused() -> None:
    with pytest.raises(UsageError, match="the table has resnet26 on digits"):
        with_paper(rotation_table([rotation_row("resnet26")]))


def test_a_table_without_rows_is_refused() -> None:
    with pytest.raises(OutputError, match="at least one row"):
        rotation_table([])


@pytest.mark.parametrize("name", ["model", "data"])
def test_a_row_without_its_model_or_data_is_refused(name: str) -> None:
    row = rotation_row("m")
    del row[name]
    with pytest.raises(OutputError, match=f"must have its {name}"):
        rotation_table([rotation_row("other"), row])


def test_write_table_makes_every_format(tmp_path: Path) -> None:
    table = TABLES["one model"]
    written = write_table(table, tmp_path)
    assert [path.name for path in written] == ["rotation.csv", "rotation.md", "rotation.tex"]
    assert written[2].read_text(encoding="utf-8") == to_latex(table)


@pytest.mark.parametrize(("value", "text"), [(49.06, "49.1"), (-0.04, "0.0"), (100.0, "100.0"),
                                             (-3.21, "-3.2"), (math.nan, ""),
                                             (-1.7587e31, "-1.8e+31"), (123456.7, "123456.7"),
                                             (math.inf, "inf")])
def test_numbers_are_printed_with_one_decimal(value: float, text: str) -> None:
    assert printed(value) == text


def test_differences_are_printed_with_their_sign() -> None:
    assert [printed(value, signed=True) for value in (1.0, -1.0, -0.01)] == ["+1.0", "-1.0", "+0.0"]


@given(st.text(alphabet=r"ab \{}$&#_%~^<>|[]*`-.", max_size=20))
def test_escaped_latex_has_no_live_character(text: str) -> None:
    escaped = escape_latex(text)
    bare = re.sub(r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)"
                  r"\{\}|\\[{}$&#_%]|\{[][*]\}", "", escaped)
    assert not set(bare) & set("\\{}$&#_%~^<>|[]*")


@given(st.text(alphabet=r"ab \`*_|<>[]#~$", max_size=20))
def test_escaped_markdown_gives_the_text_back(text: str) -> None:
    escaped = escape_markdown(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_|<>\[\]]", escaped)
    assert re.sub(r"\\(.)", r"\1", escaped) == " ".join(text.split())


def test_the_screen_shows_every_number_of_the_paper_in_aligned_columns() -> None:
    table = paper_tables()["rotation"]
    lines = to_text(table, width=200).splitlines()
    rows = [line for line in lines if line.startswith(("ResNet", "SAN"))]
    assert len(rows) == 9 and "49.1(24.5)" in rows[0] and "*78.2" in rows[-1]
    # Right-aligned columns end at the same places in every row and under their headings.
    ends = [{match.end() for match in re.finditer(r"\S+", line)} for line in [*rows, lines[1]]]
    assert all(found - {len("Method")} >= ends[-1] - {len("Method")} for found in ends[:-1])


def test_the_screen_widens_columns_for_long_headings() -> None:
    lines = to_text(paper_tables()["pgd"]).splitlines()
    assert lines[0].split() == ["clean", "attack", "n", "=", "2", "attack", "n", "=", "4"]
    assert lines[0].index("attack n = 4") > lines[0].index("attack n = 2") + len("attack n = 2")


def test_the_attack_is_a_column_where_there_are_several() -> None:
    text = to_text(MIXED, width=200)
    lines = [line.split() for line in text.splitlines() if line.startswith(("a  ", "b  "))]
    assert [line[1] for line in lines] == ["PGD", "PGD", "CW", "PGDL2"]
    assert "l2 ε = 0.5" in text and "| Method | Attack |" in to_markdown(MIXED)
    assert "Attack" not in to_text(TABLES["three attacks"]).splitlines()[1]


def test_no_star_is_given_across_attacks() -> None:
    starred = [line for line in to_text(MIXED, width=200).splitlines() if "*" in line]
    assert {tuple(line.split()[:2]) for line in starred} == {("a", "PGD"), ("b", "PGD")}


def test_a_table_too_wide_for_its_screen_is_cut_between_headings() -> None:
    table = paper_tables()["rotation"]
    for width in (60, 80, 100, 135):
        body = to_text(table, width=width).partition("Zero-shot")[0]
        assert max(map(len, body.splitlines())) <= width
        panels = body.strip("\n").split("\n\n\n")
        assert all(panel.count("SAN19-patch") == 1 for panel in panels)
        assert sum(panel.count("clockwise") for panel in panels) == 3
    assert "49.1(24.5)" in to_text(table, width=10)


def test_columns_that_have_nothing_to_say_are_not_written() -> None:
    facts = {"data_digest": "a" * 64, "preprocessing": "{}", "code": None, "source": "x",
             "remarks": "", "weights": "w"}
    alike = to_csv(rotation_table([rotation_row("m", **facts),
                                   rotation_row("n", **{**facts, "source": "y"})]))
    assert not set(pd.read_csv(io.StringIO(alike))) & {*facts} - {"weights"}
    other = {**facts, "data_digest": "b" * 64, "remarks": '["m: it is random"]'}
    apart = to_csv(rotation_table([rotation_row("m", **facts), rotation_row("m", **other)]))
    assert {"data_digest", "remarks"} < set(pd.read_csv(io.StringIO(apart)))


def test_whole_numbers_stay_whole_beside_rows_without_them() -> None:
    rows = pd.read_csv(io.StringIO(to_csv(MIXED)), dtype=str)
    assert rows["restarts"].dropna().tolist() == ["1", "1"]


def test_budgets_that_differ_by_little_are_told_apart() -> None:
    table = pgd_table([pgd_row("a", (eps, 1.0, 1), **PGD) for eps in (1.0, 1.0000001)])
    assert "ε = 1, ρ = 1" in to_text(table) and "ε = 1.0000001, ρ = 1" in to_text(table)


def test_a_name_from_outside_stays_on_its_line() -> None:
    table = rotation_table([rotation_row("x\ny\x1b[2J", data="d\ne"), rotation_row("z", data="f")])
    for render in (to_text, to_markdown, to_latex):
        assert "x?y?[2J" in render(table).replace("{[}", "[").replace("\\[", "[")
        assert "\x1b" not in render(table)
