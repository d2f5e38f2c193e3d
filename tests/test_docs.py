"""The documentation: every example does what its page shows, and the pages build."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import sanrobust
from conftest import SOURCES, Command
from doc_pages import READ, RUN, Reader, difference, examples
from sanrobust.experiments.catalog import EXPERIMENTS
from test_words import command_named

DOCS = Path(SOURCES) / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NUMBER = re.compile(r"(?<![\w.-])\d+\.\d")
FOREIGN = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc\s*=\s*["']?(?:https?:)?//"""
                     r"""|<link[^>]*\shref\s*=\s*["']?(?:https?:)?//"""
                     r"""|url\(\s*["']?(?:https?:)?//|@import\s""", re.IGNORECASE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_to_type_prints_what_it_shows(
        page: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    reader = Reader(tmp_path, command)
    for example in examples(page):
        assert example.file or example.language in (*RUN, *READ), (
            f"{page.name}:{example.line}: no test reads a block of {example.language!r}")
        if example.reason:
            continue
        assert example.language not in READ, f"{page.name}:{example.line} does not say why"
        for typed, shown, printed in reader.follow(example):
            if shown and shown.strip():
                problem = difference(shown, printed)
                assert problem is None, f"{page.name}:{example.line}: {typed}\n{problem}"


@pytest.mark.parametrize(("shown", "printed", "alike"), [
    ("top-1\n97.1  *4.2(95.1)", "top-1  97.1   *4.2(95.1)", True),
    ("97.1", "96.2", True), ("97.1", "94.9", False), ("p 0.006", "p 0.016", False),
    ("451 images", "450 images", False), ("*97.1", "97.1", False), ("97.1", "97.1 98.0", False),
    ("a ... d", "a b c d", True), ("a ... d", "a d", True), ("a ... d", "b c d", False),
    ("a ... 5", "a b 15", False), ("a 1.5", "a 11.5", False), ("a-...", "a-b", True),
    ("a-...", "a-b c", False), ("a\n...", "a b", True), ("...\nb", "a b", True),
    ("a b", "a c b", False),
])
def test_output_is_compared_as_said(shown: str, printed: str, alike: bool) -> None:
    assert (difference(shown, printed) is None) == alike


def test_blocks_are_found_with_their_reasons_files_and_outputs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n```console\n$ ls a\nb\n$ ls\n```\n<!-- not run: slow -->\n```python\nx\n"
                    "```\n```text\n1\n```\n```{code-block} python\n:caption: m.py\n\ny = 1\n```\n"
                    "```{toctree}\na\n```\n")
    listing, script, file = examples(page)
    assert list(listing.commands()) == [("ls a", "b\n"), ("ls", "")] and listing.line == 2
    assert (script.reason, script.shown, script.text) == ("slow", "1\n", "x\n")
    assert (file.file, file.content) == ("m.py", "y = 1\n")


def test_commands_that_are_not_run_are_understood() -> None:
    lines = [words for page in PAGES for example in examples(page)
             if example.reason and example.language == "console" for words in example.typed()]
    assert lines
    for words in lines:
        command_named((words[0],)).make_context(words[0], words[1:])


def test_the_pages_build_without_a_warning_have_every_name_and_ask_no_other_server(
        tmp_path: Path) -> None:
    # One test, since each of several processes that share the tests would build the pages again.
    done = subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b",
                           "html", str(DOCS), str(tmp_path)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    every_page_is_reached(tmp_path)
    every_public_name_is_there((tmp_path / "api.html").read_text("utf-8"))
    nothing_foreign_is_asked_for(tmp_path)


def every_page_is_reached(built: Path) -> None:
    index = (built / "index.html").read_text("utf-8")
    for page in PAGES:
        assert (built / f"{page.stem}.html").exists()
        assert page.stem == "index" or f'href="{page.stem}.html"' in index, page.stem


def every_public_name_is_there(api: str) -> None:
    for name in {*sanrobust.__all__, *EXPERIMENTS.own_names()}:
        assert f'id="sanrobust.{name}"' in api, f"{name} must stand in docs/api.md"


def nothing_foreign_is_asked_for(built: Path) -> None:
    for path in built.rglob("*"):
        if path.suffix in (".html", ".css"):
            found = FOREIGN.search(path.read_text("utf-8"))
            assert found is None, f"{path.name}: {found[0]}"


@pytest.mark.parametrize(("text", "foreign"), [
    ('<script src="https://cdn.example/x.js">', True), ("<img src=//a.example/b.png>", True),
    ('<link rel="stylesheet" href="http://a.example/b.css">', True),
    ("body { src: url(https://a.example/font) }", True), ('@import "x.css";', True),
    ('<script src="_static/x.js">', False), ('<a href="https://a.example/">', False),
    ("svg { mask: url('data:image/svg+xml,x') }", False),
])
def test_what_asks_another_server_is_told_from_links(text: str, foreign: bool) -> None:
    assert bool(FOREIGN.search(text)) == foreign


def test_the_drawings_are_what_their_script_draws() -> None:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    assert spec is not None and spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    drawn = dict(draw.drawings())
    assert sorted(drawn) == sorted(path.name for path in (DOCS / "drawings").iterdir())
    for name, text in drawn.items():
        assert (DOCS / "drawings" / name).read_text("utf-8") == text, "run python docs/draw.py"
        assert any(f"drawings/{name}" in page.read_text("utf-8") for page in PAGES), name


@pytest.mark.parametrize("page", [Path(SOURCES) / "README.md", *PAGES],
                         ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]*))?\)", page.read_text("utf-8")):
        if "://" not in target:
            other = page.parent / target if target else page
            assert other.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(other), f"{page.name}: {target}#{anchor}"


def screen(command: str) -> dict[str, list[float]]:
    """The numbers of each network in the table that README shows below a command."""
    text = (Path(SOURCES) / "README.md").read_text("utf-8").partition(f"$ {command}\n")[2]
    return {line.split()[0].lower(): [float(number) for number in NUMBER.findall(line)]
            for line in text.partition("\n$ ")[0].splitlines()
            if re.match(r"(ResNet|SAN)\d", line)}


def rows_of(name: str) -> dict[str, pd.DataFrame]:
    """The rows of each network in a table of photographs, in percent to one decimal."""
    rows = pd.read_csv(Path(SOURCES) / "results" / "cifar10" / name)
    # Written as tables write them: half a tenth is rounded as the binary number lies.
    for each in rows.select_dtypes("float"):
        rows[each] = rows[each].map(lambda value: float(f"{value:.1f}"))
    return dict(iter(rows.groupby(rows["model"].str.removesuffix(".cifar10"))))


def test_the_screen_of_the_readme_is_what_results_hold() -> None:
    rotated, attacked = rows_of("rotation.csv"), rows_of("pgd.csv")
    photographs = "--data photos --data-name cifar10"
    assert screen(f"sanrobust rotate {photographs}") == {
        model: row.loc[:, "none_top1":"updown_top5_drop"].iloc[0].tolist()
        for model, row in rotated.items()}
    assert screen(f"sanrobust pgd {photographs}") == {
        model: [row["clean_top1"].iloc[0], *row[["success", "top1_adv"]].to_numpy().ravel()]
        for model, row in attacked.items()}


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be reached."""
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
