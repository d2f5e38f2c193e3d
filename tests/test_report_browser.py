"""The pages in a browser: nothing leaves, nothing fails, tables sort and filter, axe-core agrees.

Chromium is no part of the toolkit; where it is installed these tests run (`.ci/run` installs it).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sanrobust
from conftest import Command
from report_folder import NINE, measure, typed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SIZES = [(390, "dark"), (390, "light"), (1280, "dark"), (1280, "light")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and a leaderboard of two models on a few digits."""
    place = tmp_path_factory.mktemp("pages")
    out = place / "out"
    models = ("-m", "resnet26.digits", "-m", "san10-pair.digits", "-m", "resnet38.digits")
    few = (*models, "--num-samples", 12, "--out", out)
    typed("rotate", *few)
    typed("pgd", *few, "--save-adversarial")
    typed("accuracy", *few)
    return {"report": sanrobust.report(out).page,
            "leaderboard": sanrobust.leaderboard([out], to=place / "board").page}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


class Visit:
    """A page that was opened, with all that it asked for and said."""

    def __init__(self, browser: Browser, path: Path, size: tuple[int, str] = SIZES[0]) -> None:
        width, scheme = size
        context = browser.new_context(viewport={"width": width, "height": 900},
                                      color_scheme="dark" if scheme == "dark" else "light")
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(path.as_uri())

    def column(self, table: str, place: int) -> list[str]:
        """The words in a column of the rows that are shown, in their order."""
        found: list[str] = self.page.evaluate(
            """([name, place]) => [...document.querySelectorAll(`#${name} tbody:not([hidden])`)]
               .map((body) => body.rows[0].cells[place].firstChild.textContent)""", [table, place])
        return found


@pytest.mark.parametrize(("name", "size"), [
    *(("report", size) for size in SIZES), *(("leaderboard", size) for size in SIZES[1:3])])
def test_a_page_asks_for_nothing_and_fits_and_axe_finds_no_fault(
        browser: Browser, pages: dict[str, Path], size: tuple[int, str], name: str) -> None:
    looked_at = require_sound(browser, pages[name], size)
    assert {"color-contrast", "label", "button-name"} <= looked_at
    assert name == "leaderboard" or {"image-alt", "svg-img-alt"} <= looked_at


@pytest.mark.slow
def test_the_page_of_nine_networks_does_so_too(browser: Browser, tmp_path: Path) -> None:
    page = sanrobust.report(measure(tmp_path / "out", NINE, 24)).page
    assert page.stat().st_size < 2_000_000
    for size in SIZES:
        require_sound(browser, page, size)


def require_sound(browser: Browser, path: Path, size: tuple[int, str]) -> set[str]:
    """Fail unless a page asks for nothing, fits the screen and has no fault that axe-core finds.

    Returns the rules that it passed.
    """
    from axe_playwright_python.sync_playwright import Axe
    visit = Visit(browser, path, size)
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach((each) => each.open = true)")
    # Nothing but tables, in their own boxes, may be wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 27)"
    assert dark == (size[1] == "dark")
    found = Axe().run(page).response
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    assert [url for url in visit.asked if not url.startswith("data:")] == [path.as_uri()]
    assert visit.said == []
    return {each["id"] for each in found["passes"]}


def test_a_policy_that_is_broken_would_be_said(browser: Browser, pages: dict[str, Path],
                                               tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"
    text = pages["report"].read_text("utf-8")
    spoilt.write_text(text.replace("<main", '<img src="https://example.invalid/x.png"><main'),
                      encoding="utf-8")
    visit = Visit(browser, spoilt)
    assert any("Content Security Policy" in each for each in visit.said)


def test_tables_sort_by_keyboard_both_ways_and_say_so(browser: Browser, pages: dict[str, Path]
                                                      ) -> None:
    visit = Visit(browser, pages["report"], (1280, "light"))
    before = visit.column("rotate", 0)
    assert before == ["ResNet26", "SAN10-pair", "ResNet38"]
    buttons = visit.page.locator("#rotate thead button")
    numbers = [float(each) for each in visit.column("rotate", 3)]
    button = buttons.nth(3)
    button.focus()
    visit.page.keyboard.press("Enter")
    assert [float(each) for each in visit.column("rotate", 3)] == sorted(numbers, reverse=True)
    heading = visit.page.locator("#rotate th[aria-sort]")
    assert heading.get_attribute("aria-sort") == "descending"
    visit.page.keyboard.press("Space")
    assert [float(each) for each in visit.column("rotate", 3)] == sorted(numbers)
    assert heading.get_attribute("aria-sort") == "ascending" and heading.count() == 1
    for _ in range(2):
        buttons.nth(0).click()
    assert visit.column("rotate", 0) == sorted(before)


def test_rows_are_filtered(browser: Browser, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["report"])
    box = visit.page.get_by_label("Show rows with of: Zero-shot", exact=False).first
    box.fill("RESNET38 9")
    assert visit.column("rotate", 0) == ["ResNet38"]
    assert visit.page.locator("#rotate output").inner_text() == "1 of 3 rows"
    box.fill("")
    assert len(visit.column("rotate", 0)) == 3


def test_lines_beside_a_row_move_with_it(browser: Browser, command: Command, tmp_path: Path
                                         ) -> None:
    from dataclasses import replace

    from made_runs import SPEC, make_run
    for model in ("resnet26.in1k", "resnet38.in1k", "resnet50.in1k"):
        make_run(tmp_path, "abcd", spec=replace(SPEC, model=model, data="imagenet"))
    visit = Visit(browser, sanrobust.report(tmp_path).page)
    for _ in range(2):
        visit.page.locator("#rotate thead button").nth(0).click()
    rows = visit.page.locator("#rotate tbody tr th").all_inner_texts()
    assert rows == [f"ResNet{depth} (ours)" if not other else other for depth in (26, 38, 50)
                    for other in ("", "paper", "difference")]


@pytest.mark.parametrize("name", ["report", "leaderboard"])
def test_no_table_is_cut_off_on_paper(browser: Browser, pages: dict[str, Path], name: str) -> None:
    """A4 upright has 718 pixels between margins of a centimetre, and Letter has 740."""
    visit = Visit(browser, pages[name], (718, "light"))
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    visit.page.emulate_media(media="print")
    boxes = visit.page.locator(".scroll")
    assert boxes.count() >= 3
    for number in range(boxes.count()):
        place = boxes.nth(number)
        assert place.evaluate("(each) => each.scrollWidth <= each.clientWidth"), \
            place.get_attribute("aria-labelledby")


def test_everything_is_printed(browser: Browser, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["report"])
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.page.locator("details:not([open])").count() == 0
    visit.page.emulate_media(media="print")
    assert not visit.page.locator("nav").is_visible()
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == \
        "rgb(255, 255, 255)"
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert visit.page.locator("details[open]").count() == 0
