from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest

from sanrobust import paper
from sanrobust.data.views import VIEWS
from sanrobust.tables import paper_tables, write_paper_tables

COMMITTED = Path(__file__).parent.parent / "results" / "paper"


def test_both_tables_hold_the_nine_models_in_the_order_of_the_paper() -> None:
    names = [name for group in paper.GROUPS for name in group]
    assert list(paper.DISPLAY_NAMES) == names
    assert paper.rotation()["model"].tolist() == names
    assert paper.pgd()["model"].tolist() == [name for name in names for _ in range(2)]


def test_attacks_are_the_two_budgets_of_the_paper() -> None:
    budgets = paper.pgd()[["eps", "step", "iters"]].drop_duplicates()
    assert budgets.values.tolist() == [[8, 4, 2], [8, 2, 4]]


def test_printed_drops_are_differences_but_for_the_five_known_ones() -> None:
    table = paper.rotation().set_index("model")
    odd = {}
    for view in list(VIEWS)[1:]:
        for measure in ("top1", "top5"):
            name = f"{view}_{measure}"
            excess = table[f"{name}_drop"] - (table[f"none_{measure}"] - table[name])
            # Printed numbers have one decimal: anything below half of it is binary rounding.
            odd.update({(model, name): round(value, 1)
                        for model, value in excess.items() if abs(value) > 0.05})
    assert odd == {**{("san15-patch", f"{view}_top1"): 0.2 for view in list(VIEWS)[1:]},
                   ("resnet50", "cw180_top5"): 0.1}


@pytest.mark.parametrize(("model", "column", "value"), [
    ("resnet50", "cw180_top1", 52.9), ("san10-pair", "cw180_top1", 54.7),
    ("san19-pair", "cw180_top1_drop", 18.9), ("san19-patch", "updown_top5", 79.5),
])
def test_rotation_numbers_are_those_the_text_quotes(model: str, column: str, value: float) -> None:
    assert paper.rotation().set_index("model").loc[model, column] == value


@pytest.mark.parametrize(("model", "success", "top1"), [
    ("resnet50", 82.5, 11.8), ("san19-pair", 63.7, 21.8), ("san19-patch", 62.0, 24.8),
    ("resnet26", 98.2, 1.0), ("san10-patch", 85.8, 9.6),
])
def test_attack_numbers_are_those_the_text_quotes(model: str, success: float, top1: float) -> None:
    row = paper.pgd().query("model == @model and iters == 4").iloc[0]
    assert (row["success"], row["top1_adv"]) == (success, top1)


def test_clean_accuracy_is_the_same_in_both_tables() -> None:
    clean = paper.pgd().groupby("model", sort=False)["clean_top1"].unique().map(list)
    assert clean.tolist() == [[value] for value in paper.rotation()["none_top1"]]


def test_every_rate_is_a_percentage_with_one_decimal() -> None:
    for table in (paper.rotation(), paper.pgd()):
        values = table.drop(columns="model").to_numpy(dtype=float)
        assert ((values >= 0) & (values <= 100)).all()
        assert (values == values.round(1)).all()


def test_changing_a_loaded_table_leaves_the_next_one_as_it_is() -> None:
    table = paper.rotation()
    table.loc[0, "none_top1"] = 0.0
    assert paper.rotation().loc[0, "none_top1"] == 73.6


def test_the_committed_files_are_what_the_renderers_write(tmp_path: Path) -> None:
    written = write_paper_tables(tmp_path)
    assert sorted(path.name for path in written) == sorted(
        path.name for path in COMMITTED.iterdir() if path.suffix in (".csv", ".md", ".tex"))
    for path in written:
        assert path.read_text(encoding="utf-8") == (
            COMMITTED / path.name).read_text(encoding="utf-8")


def test_rendered_csv_gives_the_packaged_numbers_back(tmp_path: Path) -> None:
    for name, packaged in (("rotation", paper.rotation()), ("pgd", paper.pgd())):
        write_paper_tables(tmp_path)
        back = pd.read_csv(io.StringIO((tmp_path / f"{name}.csv").read_text(encoding="utf-8")))
        assert (back[packaged.columns] == packaged).all(axis=None)


def test_every_rendering_names_the_source() -> None:
    assert all(paper.SOURCE in table.note for table in paper_tables().values())
