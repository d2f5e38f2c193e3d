"""Names that other programs would obey: formulae, HTML, LaTeX, in every file that we write."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from torch import nn

import sanrobust
from grey_models import Grey, grey
from pages import Element, read, require_harmless
from sanrobust.data.replayed import open_saved
from sanrobust.harmless import csv_text, guarded, unguarded
from sanrobust.runs import all_runs
from table_cases import without_comments

NAMES = ('=HYPERLINK("http:x","y")', r"$\frac{$", "<script>alert(1)<\\script>", "'=x", "@SUM(A1)",
         "+cmd|' C calc'!A0", "-2+3", r"\input{x}", "<img src=x onerror=alert(1)>",
         "a|b](javascript:alert(1))", "&lt;b&gt;", "\uff1d1+1", "{{ 7*7 }}{% raw %}", '"><svg>')
FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
NUMBER = re.compile(r"-?[\d.]+(e-?\d+)?")
PLAIN = sanrobust.Preprocessing(img_size=32, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.mark.parametrize("text", [*NAMES, "", "'", "''", "''=", "x", "'x", "-", "--1", "\t1", "1="])
def test_what_is_guarded_comes_back_and_is_no_formula(text: str) -> None:
    cell = guarded(text)
    assert unguarded(cell) == text
    assert not FORMULA.match(cell)


@pytest.mark.parametrize("value", ["-3.1", "+2", "-1e-9", "7", -3.1, 7, None, True, float("nan")])
def test_numbers_stay_as_they_are(value: object) -> None:
    assert guarded(value) is value


def test_columns_keep_their_types() -> None:
    rows = pd.DataFrame({"a": pd.Series([1, None], dtype=object), "b": [-0.5, float("nan")],
                         "c": pd.Series([1, pd.NA], dtype="Int64"), "=d": ["-1", "=1"]})
    assert csv_text(rows) == "a,b,c,'=d\n1,-0.5,1,-1\n,,,'=1\n"
    assert "=d" in rows


class Outputs:
    """All files of a folder whose model, data, class and images have hostile names."""

    def __init__(self, names: Sequence[str], place: Path) -> None:
        self.names, (model, data, folder, file) = names, names
        self.out, self.images = place / "out", place / "images"
        for label, each in enumerate(sorted([folder, "zz"])):
            for number in range(2):
                grey(self.images / each / f"{file}{number}.png", label)
        # The second one is always wrong, so that classes are named too.
        models = [self.model(model), self.model("other", shift=1)]
        few = {"data": sanrobust.DataConfig(data=str(self.images), name=data),
               "preprocessing": PLAIN, "out": self.out}
        sanrobust.rotate(models, **few)
        sanrobust.accuracy(models, **few)
        sanrobust.pgd(models, targets="none", budgets=[(4, 2, 3), (8, 4, 3), (90, 30, 3)],
                      save_adversarial=True, **few)
        sanrobust.compare(self.out, "rotate")
        self.page = sanrobust.report(self.out, attention=False).page
        self.board = sanrobust.leaderboard([self.out], to=place / "board").page

    @staticmethod
    def model(name: str, shift: int = 0) -> nn.Module:
        made: nn.Module = type(name, (Grey,), {})(classes=2, shift=shift)
        return made

    def files(self, suffix: str) -> list[Path]:
        found = sorted(self.out.rglob(f"*.{suffix}"))
        assert found
        return found


# Every name in one of four places; `make check-slow` has every name in each.
COUNT = len(NAMES)
CASES = [pytest.param([NAMES[(first + place) % COUNT] for place in range(4)], id=str(first),
                      marks=[pytest.mark.slow] if first % 4 else []) for first in range(COUNT)]


@pytest.fixture(scope="module", params=CASES)
def outputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    return Outputs(request.param, tmp_path_factory.mktemp("hostile"))


def test_no_cell_of_a_csv_is_a_formula_and_names_come_back(outputs: Outputs) -> None:
    seen = set()
    for path in outputs.files("csv"):
        for row in csv.reader(io.StringIO(path.read_text("utf-8"), newline="")):
            assert not any(FORMULA.match(cell) and not NUMBER.fullmatch(cell) for cell in row), path
            seen.update(map(unguarded, row))
    model, data, *_ = outputs.names
    assert {model, data} <= seen


def test_names_do_nothing_in_latex_and_markdown(outputs: Outputs) -> None:
    for suffix, special in (("tex", "\\{}$&#^_%~"), ("md", "`*_|<>[]#~$&")):
        dangerous = [name for name in outputs.names if set(name) & set(special)]
        for path in outputs.files(suffix):
            text = path.read_text("utf-8")
            assert not any(name in text for name in dangerous), path
            if suffix == "tex":
                # A brace or dollar too many would reach to the end of the document.
                plain = re.sub(r"\\[{}$]", "", without_comments(text))
                assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
                assert r"\input" not in plain and r"\frac" not in plain


def test_names_are_text_in_figures(outputs: Outputs) -> None:
    for path in outputs.files("svg"):
        root = ElementTree.fromstring(path.read_bytes())
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert not tags & {"script", "img", "foreignObject", "a", "b"}


def words(page: Element) -> str:
    return page.all("body")[0].text


def test_names_are_text_on_pages(outputs: Outputs) -> None:
    for path in (outputs.page, outputs.board):
        page = read(path)
        require_harmless(page)
        model, data, *_ = outputs.names
        assert model in words(page) and data in words(page)
    assert all(name in words(read(outputs.page)) for name in outputs.names)


def test_saved_images_have_the_names_that_they_had(outputs: Outputs) -> None:
    own = {path.relative_to(outputs.images).as_posix() for path in outputs.images.rglob("*.png")}
    runs = [run for run in all_runs(outputs.out) if run.experiment == "pgd"]
    assert len(runs) == 2
    for run in runs:
        assert {ref.id for ref in open_saved(run.folder).refs} == own
        assert set(run.records()["image"]) == own


def test_a_targets_file_may_be_an_index_of_saved_images(outputs: Outputs, tmp_path: Path
                                                        ) -> None:
    index = outputs.files("csv")
    path = next(each for each in index if each.name == "index.csv")
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline="")))
    targets = tmp_path / "targets.csv"
    with targets.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "target"])
        writer.writerows({row["image"]: 1 - int(row["label"]) for row in rows}.items())
    made = sanrobust.pgd(Grey(classes=2), data=str(outputs.images), preprocessing=PLAIN,
                         targets=f"file:{targets}", budgets=[(8, 4, 2)], out=tmp_path / "o")
    assert made["n"].tolist() == [4]
