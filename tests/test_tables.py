from __future__ import annotations

import io
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanrobust import paper
from sanrobust.errors import OutputError, UsageError
from sanrobust.metrics import VIEWS, wilson
from sanrobust.tables import (Table, paper_tables, pgd_table, rotation_table, to_csv, to_latex,
                              to_markdown, to_text, with_paper, write_table)
from sanrobust.tables.grid import printed
from sanrobust.tables.latex import escape as escape_latex
from sanrobust.tables.markdown import escape as escape_markdown

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
    names = ["mine", "san19-pair", "san10-patch.x", "resnet26"]
    latex = to_latex(rotation_table([rotation_row(name) for name in names]))
    body = latex.split(r"\midrule", 1)[1]
    groups = [re.findall(r"^ +(\S+) &", group, re.M) for group in body.split(r"\midrule")]
    assert groups == [["ResNet26", "SAN10-patch"], ["SAN19-pair"], ["mine"]]


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


def test_a_tag_shows_only_where_it_tells_two_rows_apart() -> None:
    alone = rotation_table([rotation_row("san10-pair.digits")])
    both = rotation_table([rotation_row("san10-pair.digits"), rotation_row("san10-pair.other")])
    assert "| SAN10-pair |" in to_markdown(alone)
    assert "| SAN10-pair (digits) |" in to_markdown(both)


def test_rows_of_one_model_say_in_which_setting_they_differ() -> None:
    text = to_markdown(rotation_table([rotation_row("m", seed=0), rotation_row("m", seed=1)]))
    assert "| m (seed 0) |" in text and "| m (seed 1) |" in text


def test_identical_runs_are_told_apart_by_their_id_or_number() -> None:
    by_id = to_markdown(rotation_table([rotation_row("m", run_id="a"),
                                        rotation_row("m", run_id="b")]))
    by_number = to_markdown(rotation_table([rotation_row("m"), rotation_row("m")]))
    assert "| m (run\\_id a) |" in by_id and "| m (2) |" in by_number


def test_two_runs_of_one_model_with_one_budget_each_share_a_line() -> None:
    table = pgd_table([pgd_row("m", (8, 4, 2), run_id="a"), pgd_row("m", (8, 2, 4), run_id="b")])
    assert len(markdown_line(table, "m")) == 6 and "–" not in markdown_line(table, "m")


def test_runs_with_other_settings_never_share_a_line() -> None:
    table = pgd_table([pgd_row("m", (8, 4, 2), loss="ce"), pgd_row("m", (8, 2, 4), loss="dlr")])
    assert markdown_line(table, r"m (loss dlr)")[2:] == ["–", "–", "30.0", "40.0"]


def test_settings_given_as_lists_are_compared_by_value() -> None:
    table = pgd_table([pgd_row("m", (8, 4, 2), parts=[1, 2]),
                       pgd_row("m", (8, 2, 4), parts=[1, 2])])
    assert len(markdown_line(table, "m")) == 6
    assert '"[1, 2]"' in to_csv(table)


def test_caption_says_what_the_numbers_rest_on() -> None:
    text = to_markdown(rotation_table([
        rotation_row("resnet26", failed=2, weights="0" * 64, seed=0),
        rotation_row("san10-pair", n=100, weights="digits", seed=1)])).split("\n\n")[0]
    assert "Data: digits, 200 images (ResNet26); 100 images (SAN10-pair)." in text
    assert "Images that failed: 2 of 202 (ResNet26)." in text
    assert "Weights: 000000000000 (ResNet26); digits (SAN10-pair)." in text
    assert "Not the same in all rows: seed: 0 (ResNet26); 1 (SAN10-pair)." in text


def test_caption_gives_the_range_of_the_half_widths() -> None:
    assert "95 % Wilson intervals: 5.0 points." in to_markdown(pgd_table([pgd_row("m")]))
    row = pgd_row("m", top1_adv_low=37.0, top1_adv_high=43.0)
    assert "95 % Wilson intervals: 3.0 to 5.0 points." in to_markdown(pgd_table([row]))


def test_paper_tables_claim_no_intervals_and_no_iterate() -> None:
    for table in paper_tables().values():
        text = to_markdown(table)
        assert "Wilson" not in text and "last iterate" not in text and "50000 images" in text


def test_markdown_lists_intervals_and_the_other_definitions() -> None:
    text = to_markdown(pgd_table([pgd_row("m")]))
    assert "| m | n = 2, ε = 8, ρ = 4 | 80.0 [75.0, 85.0] | 30.0 [25.0, 35.0] | 31.0 " in text
    assert "| 60.0 [55.0, 65.0] |" in text


def test_ours_paper_and_difference_stand_below_each_other() -> None:
    table = with_paper(rotation_table([rotation_row("san10-pair.x", 75.0, data="imagenet")]))
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
    written = write_table(table, tmp_path, "rotation")
    assert [path.name for path in written] == ["rotation.csv", "rotation.md", "rotation.tex"]
    assert written[2].read_text(encoding="utf-8") == to_latex(table)


@pytest.mark.parametrize(("value", "text"), [(49.06, "49.1"), (-0.04, "0.0"), (100.0, "100.0"),
                                             (-3.21, "-3.2"), (math.nan, "")])
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


PGD = {"attack": "pgd", "targets": "random", "seed": 0, "random_start": False, "restarts": 1,
       "loss": "ce"}
CW = {"attack": "torchattacks:CW", "targets": "random", "seed": 0, "targeted": True,
      "options": {"c": "1", "steps": "100"}, "norm": "l2", "radius": None, "version": "3.5.1"}
L2 = {**CW, "attack": "torchattacks:PGDL2", "radius": 0.5, "options": {"eps": "0.5"}}
MIXED = pgd_table([
    pgd_row("a", (8, 4, 2), success=30.0, **PGD), pgd_row("b", (8, 4, 2), success=20.0, **PGD),
    pgd_row("a", (None, None, None), success=90.0, **CW),
    pgd_row("a", (None, None, None), success=60.0, **L2)])


def test_the_attack_is_a_column_where_there_are_several() -> None:
    text = to_text(MIXED, width=200)
    lines = [line.split() for line in text.splitlines() if line.startswith(("a  ", "b  "))]
    assert [line[1] for line in lines] == ["PGD", "PGD", "CW", "PGDL2"]
    assert "l2 ε = 0.5" in text and "| Method | Attack |" in to_markdown(MIXED)
    assert "Attack" not in to_text(TABLES["three attacks"]).splitlines()[1]


def test_no_star_is_given_across_attacks() -> None:
    starred = [line for line in to_text(MIXED, width=200).splitlines() if "*" in line]
    assert {tuple(line.split()[:2]) for line in starred} == {("a", "PGD"), ("b", "PGD")}


def test_a_caption_says_what_each_attack_did() -> None:
    words = " ".join(to_text(MIXED).split())
    assert words.count("Attack (") == 3 and "Robustness to adversarial attacks." in words
    assert "Attack (PGD): White-box PGD in the L-inf ball, targeted at a random wrong" in words
    assert "c = 1, steps = 100" in words and "Not the same in all rows" not in words
    alone = pgd_table([pgd_row("a", (None, None, None), **CW)])
    assert "white-box targeted PGD" not in to_markdown(alone)
    assert to_markdown(alone).startswith("Robustness to CW")
    assert "1/255" not in to_markdown(alone).partition("Data:")[0]


def test_a_name_of_many_letters_stays_out_of_the_rows() -> None:
    many = {f"option{number}": str(number) for number in range(30)}
    rows = [pgd_row("a", (None, None, None), **{**CW, "options": options})
            for options in (many, {**many, "option3": "4"}, {})]
    lines = to_text(pgd_table(rows), width=200).partition("Robustness")[0].splitlines()
    assert max(map(len, lines)) < 120


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
