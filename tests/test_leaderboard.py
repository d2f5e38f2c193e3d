"""Models of several folders on one page: ranked where they were measured alike, apart elsewhere."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import sanrobust
from conftest import Command
from made_runs import SPEC, make_run
from pages import Element, read, require_harmless, require_labelled
from report_folder import typed
from sanrobust.errors import DataError, OutputError
from sanrobust.reporting.page import Page
from sanrobust.summary import gather

MODELS = ("resnet26.digits", "resnet38.digits", "san10-pair.digits")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders: in each a model that the other has not, and one measured on fewer images."""
    one, two = (tmp_path_factory.mktemp("results") for _ in range(2))
    few = ("--num-samples", 20)
    typed("rotate", "-m", MODELS[0], "-m", MODELS[1], *few, "--out", one)
    typed("rotate", "-m", MODELS[2], *few, "--out", two)
    typed("rotate", "-m", MODELS[0], "--num-samples", 7, "--out", two)
    typed("pgd", "-m", MODELS[0], "-m", MODELS[2], *few, "--out", two)
    typed("accuracy", "-m", MODELS[0], *few, "--out", one)
    return one, two


@pytest.fixture(scope="module")
def board(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return sanrobust.leaderboard(folders, to=tmp_path_factory.mktemp("board"))


@pytest.fixture(scope="module")
def page(board: Page) -> Element:
    return read(board.page)


def test_a_board_is_harmless_and_labelled(page: Element) -> None:
    require_harmless(page)
    require_labelled(page)


def test_models_measured_alike_are_ranked_by_one_measure(page: Element,
                                                         folders: tuple[Path, Path]) -> None:
    rows = pd.concat([gather(folder, "rotate").frame for folder in folders])
    rows = rows[rows["n"] == 20].sort_values("cw90_top1", ascending=False, kind="stable")
    table = page.all("div", id="rotate-1")[0]
    values = [float(cell.attributes["data-v"])
              for cell in table.all("td", data_k="cw90_top1")]
    assert values == rows["cw90_top1"].tolist() and len(values) == 3
    ranks = [row.children[1].text for body in table.all("tbody") for row in body.all("tr")]
    bounds = list(zip(rows["cw90_top1_low"], rows["cw90_top1_high"]))
    for rank, (low, high) in zip(ranks, bounds):
        first = 1 + sum(other_low > high for other_low, _ in bounds)
        last = 3 - sum(other_high < low for _, other_high in bounds)
        assert rank == (str(first) if first == last else f"{first} to {last}")


def test_who_was_measured_as_nobody_else_stands_apart_with_what_differs(page: Element) -> None:
    apart = page.all("div", id="rotate-apart")[0]
    (row,) = apart.all("tbody")[0].all("tr")
    assert MODELS[0] in row.text and "number of images: 7 and 20" in row.text
    alone = page.all("div", id="accuracy-apart")[0]
    assert MODELS[0] in alone.text and not page.all("div", id="accuracy-1")


def test_what_is_known_of_each_model_is_listed(page: Element) -> None:
    rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")]
            for body in page.all("div", id="coverage")[0].all("tbody") for row in body.all("tr")}
    assert rows[MODELS[1]] == ["digits, 20", "–", "–"]
    assert rows[MODELS[0]] == ["digits, 20; digits, 7", "digits, 20", "digits, 20"] \
        or rows[MODELS[0]] == ["digits, 7; digits, 20", "digits, 20", "digits, 20"]


def test_a_board_of_its_json_is_the_same(board: Page, tmp_path: Path) -> None:
    again = sanrobust.leaderboard([board.page.parent], to=tmp_path)
    assert [path.read_bytes() for path in again.files] == [
        path.read_bytes() for path in board.files]
    assert len(board.files) == 1 + len(MODELS)


def test_the_json_has_the_rows_of_the_tables(board: Page, folders: tuple[Path, Path]) -> None:
    path = next(each for each in board.files if each.name.startswith(MODELS[1]))
    facts = json.loads(path.read_text("utf-8"))
    (standing,) = facts["standings"]
    (row,) = standing["rows"]
    table = gather(folders[0], "rotate").frame.set_index("model")
    for name, value in row.items():
        if name.endswith(("_top1", "_low", "_high", "_drop", "_top5")):
            assert value == table.loc[MODELS[1], name]
    assert str(folders[0]) not in path.read_text("utf-8")


@pytest.mark.parametrize(("change", "told"), [
    (lambda text: text.replace('"n": 20', '"n": 21'), "changed"), (lambda text: text[:-30], "not"),
    (lambda text: "[]", "changed"), (lambda text: "[" * 99999, "not"),
    (lambda text: "7", "changed"),
])
def test_json_that_was_changed_is_refused(board: Page, tmp_path: Path, change: object, told: str
                                          ) -> None:
    place = Path(shutil.copytree(board.page.parent, tmp_path / "board"))
    path = next(place.glob("*.json"))
    path.write_text(change(path.read_text("utf-8")), encoding="utf-8")  # type: ignore[operator]
    with pytest.raises(DataError, match="as it was written") as error:
        sanrobust.leaderboard([place], to=tmp_path / "to")
    assert path.name in str(error.value) and told in str(error.value)
    assert not (tmp_path / "to").exists()


def test_other_budgets_stand_in_one_ranking_by_the_one_that_most_have(
        command: Command, folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(folders[1], tmp_path / "out"))
    assert command("pgd", "-m", MODELS[0], "--num-samples", 20, "--eps", 16, "--step", 4,
                   "--iters", 8, "--out", out).exit_code == 0
    page = read(sanrobust.leaderboard([out], to=tmp_path / "board").page)
    text = " ".join(page.all("section", id="section-pgd")[0].text.split())
    assert "Ranked by attack n = 4 (ε = 8, ρ = 2): top-1 (higher is better)" in text


def test_of_a_model_measured_twice_the_last_rows_count(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for out in (one, two):
        make_run(out, "abcd")
        make_run(out, "abcd", spec=replace(SPEC, model="n.t"))
    page = read(sanrobust.leaderboard([one, two], to=tmp_path / "board").page)
    table = page.all("div", id="rotate-1")[0]
    assert len(table.all("tbody")) == 2
    other = make_run(two, "abcd", spec=replace(SPEC, weights="99"))
    page = read(sanrobust.leaderboard([one, two], to=tmp_path / "board").page)
    table = page.all("div", id="rotate-1")[0]
    assert len(table.all("tbody")) == 3 and other.complete


def test_damage_is_named_and_hides_no_other(command: Command, tmp_path: Path) -> None:
    make_run(tmp_path / "out", "abcd")
    bad = make_run(tmp_path / "out", "abcd", spec=replace(SPEC, model="bad.t"))
    (bad.folder / "run.json").write_text("{", encoding="utf-8")
    other = make_run(tmp_path / "out", "abcd", spec=replace(SPEC, model="other.t"))
    (path,) = (other.folder / "records").iterdir()
    path.write_bytes(b"PAR1")
    result = command("leaderboard", tmp_path / "out", "--to", tmp_path / "to")
    told = result.stderr.splitlines()[-1]
    assert result.exit_code == 6 and bad.name in told and other.name in told
    assert f"wrote 1 file beside the page, in {tmp_path / 'to'}: 1 .json" in result.stderr
    assert "m.t" in (tmp_path / "to" / "index.html").read_text("utf-8")


def test_a_folder_without_any_complete_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        make_run(tmp_path, "ab", block=2)
    with pytest.raises(OutputError, match="complete run"):
        sanrobust.leaderboard([tmp_path], to=tmp_path / "to")
