"""A folder of results as one page: its numbers and its pictures."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import sanrobust
from conftest import SOURCES, Command
from grey_models import folders
from made_runs import SPEC, make_run
from pages import Element, read, require_harmless, require_labelled
from report_folder import NINE, measure, typed
from sanrobust.data.replayed import open_saved
from sanrobust.errors import OutputError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.paper import DISPLAY_NAMES
from sanrobust.reporting import provenance
from sanrobust.reporting.page import Page
from sanrobust.runs import find_runs
from sanrobust.summary import gather
from sanrobust.tables import to_markdown

RESNET, SAN = "resnet26.digits", "san10-pair.digits"
MOST_BYTES = 2_000_000


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measure(tmp_path_factory.mktemp("measured"), [RESNET, SAN], 12)


@pytest.fixture(scope="module")
def made(measured: Path) -> Page:
    return sanrobust.report(measured)


@pytest.fixture(scope="module")
def page(made: Page) -> Element:
    return read(made.page)


def test_a_page_is_harmless_and_labelled(page: Element, made: Page) -> None:
    require_harmless(page)
    require_labelled(page)
    beside = {path.name for path in made.files}
    for link in page.all("a"):
        address = link.attributes["href"]
        if address.startswith("#"):
            assert page.all(id=address[1:])
        else:
            assert address in beside and (made.page.parent / address).stat().st_size > 0


def test_the_page_of_one_run_follows_from_its_records_alone(tmp_path: Path) -> None:
    make_run(tmp_path, "abcd")
    first, again = (sanrobust.report(tmp_path).page.read_bytes() for _ in range(2))
    assert first == again


@pytest.mark.slow
def test_all_files_follow_from_the_records_alone(measured: Path, made: Page, tmp_path: Path
                                                 ) -> None:
    again = sanrobust.report(str(measured), to=tmp_path)
    assert again.page.read_bytes() == made.page.read_bytes()
    assert [path.read_bytes() for path in again.files] == [
        path.read_bytes() for path in made.files]


def lines(page: Element, experiment: str) -> Iterator[tuple[str, str, list[Element]]]:
    """Yield the model, the attack and the cells of each line of an experiment's table."""
    table = page.all("div", id=experiment)[0]
    several = len(table.all("thead")[0].children[0].all("th", scope="col")) > 1
    for row in (each for body in table.all("tbody") for each in body.all("tr")):
        (name,) = row.all("th")
        cells = row.all("td")
        yield name.text, cells[0].text if several else "", cells[several:]


@pytest.mark.parametrize("experiment", ["rotate", "pgd", "spatial", "accuracy", "corrupt"])
def test_each_number_is_that_of_the_table(command: Command, measured: Path, page: Element,
                                          tmp_path: Path, experiment: str) -> None:
    kind = EXPERIMENTS.get(experiment)
    out = Path(shutil.copytree(measured, tmp_path / "out"))
    assert command("table", experiment, "--out", out).exit_code == 0
    written = pd.read_csv(out / f"{kind.files}.csv")
    assert written.equals(pd.read_csv(measured / "report" / f"{kind.files}.csv"))
    names = {DISPLAY_NAMES[model.split(".")[0]]: model for model in (RESNET, SAN)}
    parts = list(kind.layout.parts)
    order = [tuple(np.inf if pd.isna(value) else value for value in part)
             for part in written[parts].itertuples(index=False)]
    place = {part: number for number, part in enumerate(sorted(set(order), key=kind.layout.order))}
    count = 0
    for label, attack, cells in lines(page, experiment):
        rows = written[written["model"] == names[label]]
        if attack:
            rows = rows[rows["attack"].str.startswith(attack[:3].lower())]
        for cell in cells:
            key = cell.attributes["data-k"]
            number, colon, name = key.rpartition(":")
            chosen = rows if not colon else rows[[
                place[order[index]] == int(number) for index in rows.index]]
            if "data-v" not in cell.attributes:
                assert chosen.empty or chosen[name].isna().all()
                continue
            (value,) = set(chosen[name])
            digits = 3 if name in ("nll", "brier") else 1
            assert float(cell.attributes["data-v"]) == value
            assert cell.text.strip().startswith(f"{value:.{digits}f}")
            if f"{name}_low" in chosen:
                (low,), (high,) = set(chosen[f"{name}_low"]), set(chosen[f"{name}_high"])
                assert cell.all("small")[0].text == f"[{low:.{digits}f}, {high:.{digits}f}]"
            if cell.all("svg"):
                drawn = " ".join(path.attributes["d"] for path in cell.all("path"))
                low, high, at = (round(each, 1) for each in (low, high, value))
                assert drawn == f"M0 4H100 M{low} 4H{high} M{at} 0V8"
            if f"{name}_drop" in chosen:
                assert f"({set(chosen[f'{name}_drop']).pop():.1f})" in cell.text
            count += 1
    assert count >= 2 * len([each for each in written if f"{each}_low" in written][:2])


def test_a_table_says_what_was_done_as_its_other_files_do(page: Element, measured: Path) -> None:
    for experiment in ("rotate", "pgd", "spatial", "accuracy", "corrupt"):
        kind = EXPERIMENTS.get(experiment)
        text = page.all("p", id=f"{experiment}-notes")[0].text
        markdown = to_markdown(gather(measured, experiment).table)
        caption = re.sub(r"\\(.)", r"\1", markdown.splitlines()[0])
        assert " ".join(text.split()).startswith(caption), kind.name


@pytest.mark.parametrize("experiment", ["rotate", "pgd", "spatial", "accuracy", "corrupt"])
def test_models_are_held_against_each_other_as_by_compare(measured: Path, page: Element,
                                                          experiment: str) -> None:
    made = sanrobust.compare(shutil.copytree(measured, measured.parent / f"copy-{experiment}",
                                             dirs_exist_ok=True), experiment)
    box = page.all("div", id=f"{experiment}-paired")[0]
    headings = [each.text for each in box.all("button")]
    shown = [dict(zip(headings, (cell.text for cell in row.children)))
             for row in box.all("tbody") for row in row.all("tr")]
    assert len(shown) == len(made.rows) > 0
    for row, found in zip(shown, made.rows):
        assert row["Measure"] == found.measure
        assert float(row["diff."]) == pytest.approx(found.found.difference, abs=0.0501)
        assert (int(row["1st only"]), int(row["2nd only"])) == (found.found.only_a,
                                                                found.found.only_b)
        assert float(row["Holm's p"]) == pytest.approx(found.holm, rel=0.06, abs=6e-4)


def test_losses_of_images_that_are_done_early_are_kept(tmp_path: Path) -> None:
    from sanrobust.reporting import curves
    assert curves._kept([[3, 2], [5, 4, 1], [7]]).tolist() == [[3, 2, 2], [5, 4, 1], [7, 7, 7]]
    assert curves._thinned(5).tolist() == [0, 1, 2, 3, 4]
    many = curves._thinned(5001)
    assert len(many) <= 61 and (many[0], many[-1]) == (0, 5000)
    typed("pgd", "-m", "resnet26.digits", "--num-samples", 20, "--attack", "autoattack",
          "--version", "apgd-ce,apgd-t", "--iters", 4, "--eps", "2,8", "--out", tmp_path)
    (run,) = find_runs(tmp_path, "pgd").runs
    records = run.records()
    records = records[records["eps"] == 8]
    found = {words: losses for words, losses in curves._of_run(run)}
    assert found and all("ε = 8" in words for words in found)
    for words, losses in found.items():
        own = records[records["broken_by"] == words.rpartition(" by ")[2]]
        assert len(own) == len(losses) > 0
        for kept, recorded in zip(losses, own["loss"]):
            assert kept[:len(recorded)].tolist() == list(recorded)
            assert (kept[len(recorded):] == recorded[-1]).all()


def test_classes_are_those_of_the_accuracy_table(page: Element, measured: Path) -> None:
    rows = pd.read_csv(measured / "accuracy.csv").set_index("model")
    table = page.all("div", id="accuracy-classes")[0]
    for body in table.all("tbody"):
        (row,) = body.all("tr")
        for model, cell in zip((RESNET, SAN), row.all("td"), strict=True):
            found = {str(each["name"]): each for each in json.loads(rows.loc[model, "per_class"])}
            assert float(cell.attributes["data-v"]) == found[row.all("th")[0].text]["top1"]


def pixels(image: Element) -> np.ndarray:
    content = base64.b64decode(image.attributes["src"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def test_the_gallery_follows_its_rule(page: Element, measured: Path) -> None:
    gallery = page.all("section", id="gallery")[0]
    walls = dict(zip((each.text for each in gallery.all("h3")),
                     gallery.all("div", class_="wall"), strict=True))
    assert len(walls) == 4
    for run in find_runs(measured, "pgd").runs:
        saved = open_saved(run.folder)
        wanted = []
        for rows in saved.saved:  # budgets stand in the order of the table, the weakest first
            wanted += [row for row in rows if row.clean_pred == row.label != row.adv_pred][:1]
        label = DISPLAY_NAMES[str(run.spec["model"]).split(".")[0]]
        attack = "AutoAttack" if run.settings["attack"] == "autoattack" else "PGD"
        (wall,) = (each for title, each in walls.items() if title.startswith(f"{label}, {attack}"))
        shots = wall.all("figure")
        assert len(shots) == min(3, len(wanted))
        for shot, row in zip(shots, wanted):
            text = shot.all("figcaption")[0].text
            assert text.startswith(f"{row.image}, label {row.label}: before {row.label}, after "
                                   f"{row.adv_pred}")
            clean, attacked, difference = map(pixels, shot.all("img"))
            exact = saved.pixels(row).permute(1, 2, 0).numpy()
            assert np.abs(attacked - exact * 255).max() <= 0.5 + 1e-4
            # Both pictures are rounded to 8 bits, the difference is not rounded before.
            assert np.abs(np.clip(127.5 + 10 * (attacked - clean), 0, 255) - difference).max() < 11


def test_images_that_are_not_the_ones_measured_are_not_shown(tmp_path: Path) -> None:
    images, out = folders(tmp_path / "val", list(range(6))), tmp_path / "out"
    sanrobust.pgd("grey_models:right", data=str(images), budgets=[(90, 30, 3)], targets="none",
                  out=out, save_adversarial=True)
    (run,) = find_runs(out, "pgd").runs
    header = json.loads((run.folder / "run.json").read_text("utf-8"))
    assert "command" not in header or not header["command"]  # made in Python

    def shown() -> tuple[int, str]:
        gallery = read(sanrobust.report(out).page).all("section", id="gallery")[0]
        return len(gallery.all("img")), gallery.text

    count, text = shown()
    assert count == 3 and "is not at hand" in text


@pytest.mark.parametrize("change", ["nothing", "another image", "no images"])
def test_originals_are_compared_with_what_was_recorded(
        command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    images, out = folders(tmp_path / "val", list(range(6))), tmp_path / "out"
    result = command("pgd", "-m", "grey_models:right", "--data", images, "--eps", 90, "--step", 30,
                     "--iters", 3, "--targets", "none", "--save-adversarial", "--out", out)
    assert result.exit_code == 0, result.output
    if change == "another image":
        for path in images.rglob("*.png"):
            Image.new("RGB", (40, 40), (7, 8, 9)).save(path)
    elif change == "no images":
        shutil.rmtree(images)
    gallery = read(sanrobust.report(out).page).all("section", id="gallery")[0]
    assert len(gallery.all("img")) == (9 if change == "nothing" else 3)


def test_attention_is_drawn_of_models_that_attend(page: Element) -> None:
    looks = page.all("section", id="attention")[0].all("figure")
    assert len(looks) == 1 and looks[0].text.startswith(SAN)


def test_the_figures_are_files_too(made: Page) -> None:
    names = {path.name for path in made.files}
    for stem in ("spatial_angles", "pgd_radii", "pgd_steps", "corruptions",
                 "corruptions_severities", "accuracy"):
        assert {f"{stem}.png", f"{stem}.pdf"} <= names
    assert made.page.stat().st_size < MOST_BYTES / 2


def test_what_is_not_asked_for_is_not_there(measured: Path, tmp_path: Path) -> None:
    (tmp_path / "pgd_radii.png").write_bytes(b"of an earlier report")
    runs = [run.name for run in find_runs(measured, "pgd").runs if run.settings["attack"] == "pgd"]
    made = sanrobust.report(measured, to=tmp_path, runs=runs, images=0, attention=False)
    assert not (tmp_path / "pgd_radii.png").exists() and (tmp_path / "pgd_steps.png").exists()
    page = read(made.page)
    sections = {each.attributes["id"] for each in page.all("section")}
    assert sections == {"section-pgd", "validity", "provenance", "again", "cite"}
    assert "AutoAttack" not in page.all("div", id="pgd")[0].text


def test_the_papers_values_stand_beside_ours_where_they_fit(measured: Path, page: Element,
                                                            tmp_path: Path) -> None:
    make_run(tmp_path, "abcd", spec=replace(SPEC, model="resnet26.in1k", data="imagenet"))
    table = read(sanrobust.report(tmp_path).page).all("div", id="rotate")[0]
    ours, paper, difference = table.all("tr")[2:]
    assert ours.text.startswith("ResNet26 (ours)100.0")
    assert paper.text.startswith("paper73.6") and difference.text.startswith("difference+26.4")
    # Of digits they stand apart.
    assert "not comparable" in page.all("section", id="section-rotate")[0].text


def test_verdicts_of_a_folder_are_shown(measured: Path, tmp_path: Path) -> None:
    make_run(tmp_path, "abcd")
    (tmp_path / "check.csv").write_text("verdict,what,numbers\nred,<b>masked</b>,{}\n", "utf-8")
    section = read(sanrobust.report(tmp_path).page).all("section", id="validity")[0]
    assert "<b>masked</b>" in section.text and not section.all("b")
    assert "numbers" not in section.text and "{}" not in section.text
    (tmp_path / "check.csv").write_text("a,b\n1\n", encoding="utf-8")
    with pytest.raises(OutputError, match="check.csv"):
        sanrobust.report(tmp_path)


def test_what_is_not_shown_is_named(command: Command, tmp_path: Path) -> None:
    make_run(tmp_path, "abcd")
    with pytest.raises(OutputError):  # it is stopped half-way
        make_run(tmp_path, "ab", spec=replace(SPEC, model="half.t"), block=2)
    bad = make_run(tmp_path, "abcd", spec=replace(SPEC, model="bad.t"))
    (bad.folder / "run.json").write_text("{", encoding="utf-8")
    hostile = tmp_path / "runs" / "<img src=x>-1"
    hostile.mkdir()
    (hostile / "run.json").write_text("{", encoding="utf-8")
    result = command("report", tmp_path)
    assert result.exit_code == 6 and bad.name in result.stderr
    page = read(tmp_path / "report" / "index.html")
    require_harmless(page)
    text = page.text
    assert bad.name in text and "half.t" in text and "<img src=x>-1" in text
    assert "m.t" in page.all("div", id="rotate")[0].text


def header_with(out: Path, command: object) -> None:
    from sanrobust.records import write_header_file
    run = make_run(out, "abcd")
    write_header_file(run.folder / "run.json", {**run.header, "command": command})


@pytest.mark.parametrize("hostile", ["rm -rf ~", "sanrobust rotate; rm -rf ~", "sanrobust 'a",
                                     "sanrobust $(id)", ["id -u"], "sanrobust\nid"])
def test_a_command_that_is_not_ours_is_not_shown(tmp_path: Path, hostile: object) -> None:
    header_with(tmp_path, hostile)
    shown = read(sanrobust.report(tmp_path).page).all("section", id="again")[0].text
    assert str(hostile) not in shown and "none of sanrobust" in shown


def test_a_command_of_ours_is_shown(tmp_path: Path) -> None:
    header_with(tmp_path, "sanrobust rotate -m 'san10-pair(relation=dot)'")
    shown = read(sanrobust.report(tmp_path).page).all("section", id="again")[0].text
    assert "sanrobust rotate -m 'san10-pair(relation=dot)'" in shown
    assert f"sanrobust report {tmp_path}" in shown


def test_how_to_cite_is_what_the_citation_file_says() -> None:
    text = " ".join((Path(SOURCES) / "CITATION.cff").read_text("utf-8").split())
    for words in (f"title: {provenance.TITLE}", f"name: {provenance.AUTHORS}",
                  f"title: {provenance.PAPER_TITLE}", f"year: {provenance.PAPER_YEAR}",
                  f"collection-title: {provenance.PAPER_VENUE}"):
        assert words in text
    for given, family in provenance.PAPER_AUTHORS:
        assert f"family-names: {family} given-names: {given}" in text
    assert all("Koltun" in each.bibtex or "sanrobust" in each.bibtex
               for each in provenance.references("1.2"))


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    from jinja2 import UndefinedError

    from sanrobust.reporting.page import render
    with pytest.raises(UndefinedError):
        render("report.html", title="x")


def test_large_pictures_are_made_smaller_and_a_gallery_keeps_within_its_bytes(
        monkeypatch: pytest.MonkeyPatch, measured: Path, tmp_path: Path) -> None:
    import torch

    from sanrobust.reporting import gallery
    from sanrobust.reporting.images import picture
    kind, content = picture(torch.rand(3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert kind == "image/jpeg" and Image.open(io.BytesIO(content)).size == (128, 128)
    assert len(content) < 15_000
    made = gather(measured, "pgd")
    whole = gallery.gallery([(made.table, made.runs)], 4)
    monkeypatch.setattr(gallery, "MOST_BYTES", gallery._bytes(whole.walls, 4) - 1)
    less = gallery.gallery([(made.table, made.runs)], 4)
    assert max(len(wall.shots) for wall in less.walls) < max(
        len(wall.shots) for wall in whole.walls)
    assert "the first 4 images" in whole.rule and "the first 4 images" not in less.rule


@pytest.mark.slow
def test_the_page_of_nine_networks_is_harmless_and_labelled(tmp_path: Path) -> None:
    page = read(sanrobust.report(measure(tmp_path / "out", NINE, 24)).page)
    require_harmless(page)
    require_labelled(page)
    assert len(page.all("section", id="attention")[0].all("figure")) == 6
