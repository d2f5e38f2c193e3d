"""The experiment of common corruptions: numbers that belong to the specification alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import Command
from grey_models import CLASSES, Grey, folders
from sanrobust.data.imageset import FileImages
from sanrobust.data.loader import Batch
from sanrobust.errors import DataError, SanrobustError, UsageError
from sanrobust.evaluate import in_order
from sanrobust.experiments.base import Columns
from sanrobust.experiments.corrupt import (CORRUPT, CorruptMeasurement, _severity_words, _wilson,
                                           corruption_errors, corruption_summaries)
from sanrobust.experiments.corrupt import heatmap, names, weather
from sanrobust.experiments.corrupt.apply import corrupted
from sanrobust.experiments.corrupt.names import ALEXNET_CLEAN, BY_NAME, COMMON, EXTRA
from sanrobust.experiments.corrupt.settings import CorruptionSettings
from sanrobust.experiments.rotation import ROTATION
from sanrobust.metrics import wilson
from sanrobust.job import PROBED_IMAGES
from sanrobust.runs import find_runs
from sanrobust.tables import make_table, to_latex, to_markdown, to_text
from sanrobust.tables.files import write_table
from test_corruptions import needs_frost, picture

QUICK = "gaussian_noise,contrast,jpeg_compression"
RIGHT = "grey_models:right"


def batch_of(count: int = 3, side: int = 32) -> Batch:
    levels = np.stack([np.roll(picture(side), 5 * place, 1) for place in range(count)])
    pixels = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255
    return Batch(tuple(f"i{place}" for place in range(count)),
                 torch.arange(count) % CLASSES, pixels)


def measured(batch: Batch, **settings: object) -> Columns:
    of = CorruptMeasurement(CorruptionSettings(**settings))  # type: ignore[arg-type]
    return in_order(of.measure(Grey().eval(), batch), batch.ids)


def test_severity_0_is_the_untouched_image() -> None:
    batch = batch_of()
    clean = pd.DataFrame(measured(batch, corruptions=QUICK)).query("severity == 0")
    upright = pd.DataFrame(ROTATION.prepare(ROTATION.settings()).measure(Grey().eval(), batch))
    upright = upright.query("view == 'none'")
    for column in ("pred", "prob_label"):
        assert clean[column].tolist() == upright[column].tolist()
    assert torch.equal(batch.pixels, (batch.pixels * 255).round().to(torch.uint8).float() / 255)


def test_rows_do_not_depend_on_the_batch_or_its_order() -> None:
    batch = batch_of()
    whole = pd.DataFrame(measured(batch, corruptions=QUICK))
    for places in ([2, 0, 1], [1]):
        part = pd.DataFrame(measured(batch.part(places), corruptions=QUICK))
        for image, rows in part.groupby("image"):
            other = whole[whole["image"] == image]
            assert rows["pred"].tolist() == other["pred"].tolist()
            assert np.allclose(rows["prob_label"], other["prob_label"], atol=1e-6)


def test_a_run_does_not_depend_on_batches_workers_or_threads(command: Command,
                                                             tmp_path: Path) -> None:
    images = folders(tmp_path / "val", list(range(CLASSES)) * 2)
    found = set()
    for place, words in enumerate((("-b", 1), ("-b", 5, "-j", 2), ("--threads", 1))):
        out = tmp_path / str(place)
        result = command("corrupt", "-m", RIGHT, "--data", images, "--out", out, "--corruptions",
                         QUICK, *words)
        assert result.exit_code == 0, result.output
        found.add((out / "corruptions.csv").read_text("utf-8"))
    assert len(found) == 1


def test_an_image_is_decoded_once(command: Command, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    images = folders(tmp_path / "val", list(range(CLASSES)) * 2)
    loads: dict[str, int] = {}
    load = FileImages.load

    def counted(self: FileImages, index: int) -> Image.Image:
        loads[self.refs[index].id] = loads.get(self.refs[index].id, 0) + 1
        return load(self, index)
    monkeypatch.setattr(FileImages, "load", counted)
    command("corrupt", "-m", RIGHT, "--data", images, "--out", tmp_path / "o", "--corruptions",
            f"{QUICK},extra")
    # A few passes before the run look at the first images once more.
    assert list(loads.values()) == [2] * PROBED_IMAGES + [1] * (2 * CLASSES - PROBED_IMAGES)


def corrupt_on_disk(images: Path, folder: Path, corruptions: Sequence[str]) -> None:
    """Write what would be made of a folder's images."""
    for path in sorted(images.glob("*/*.png")):
        image_id = str(path.relative_to(images))
        levels = np.asarray(Image.open(path).convert("RGB").resize((32, 32)))
        for name in corruptions:
            for severity in names.SEVERITIES:
                made = corrupted(levels, name, severity, seed=0, image_id=image_id)
                target = folder / name / str(severity) / image_id
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(made).save(target)


def from_files(command: Command, tmp_path: Path, folder: Path, *words: object) -> pd.DataFrame:
    result = command("corrupt", "-m", RIGHT, "--data", tmp_path / "val", "--out", tmp_path / "o",
                     "--corruptions", QUICK, "--corrupted", folder, *words)
    assert result.exit_code in (0, 9), result.output
    return pd.read_csv(tmp_path / "o" / "corruptions.csv")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Six images and their corrupted versions, the folders grouped as in ImageNet-C's archives."""
    images = folders(tmp_path / "val", list(range(CLASSES)))
    corrupt_on_disk(images, tmp_path / "c" / "noise", ["gaussian_noise"])
    corrupt_on_disk(images, tmp_path / "c", ["contrast", "jpeg_compression"])
    return tmp_path / "c"


def test_files_give_what_is_made_here(command: Command, tmp_path: Path, stored: Path) -> None:
    read = from_files(command, tmp_path, stored)
    command("corrupt", "-m", RIGHT, "--data", tmp_path / "val", "--out", tmp_path / "made",
            "--corruptions", QUICK)
    made = pd.read_csv(tmp_path / "made" / "corruptions.csv")
    rates = [name for name in made if name.startswith(("error", "clean", "mean"))]
    assert read[rates].equals(made[rates])


def test_other_files_are_another_run(command: Command, tmp_path: Path, stored: Path) -> None:
    first = from_files(command, tmp_path, stored)["run_id"]
    again = from_files(command, tmp_path, stored)["run_id"]
    path = next((stored / "contrast" / "3").glob("*/*.png"))
    Image.new("RGB", (32, 32)).save(path)
    assert again.equals(first) and not from_files(command, tmp_path, stored)["run_id"].equals(first)


def test_an_image_whose_file_is_missing_or_damaged_failed(command: Command, tmp_path: Path,
                                                          stored: Path) -> None:
    (stored / "contrast" / "3" / "c1" / "1.png").unlink()
    (stored / "jpeg_compression" / "5" / "c2" / "2.png").write_bytes(b"no image")
    table = from_files(command, tmp_path, stored)
    assert set(table["n"]) == {4} and set(table["failed"]) == {2}
    reasons = json.loads(table["reasons"][0])
    assert list(reasons) == ["no file of contrast at severity 3",
                             "jpeg_compression at severity 5: not an image of a known format"]
    (run,) = find_runs(tmp_path / "o", "corrupt").runs
    records = run.records()
    rows = 1 + 3 * len(names.SEVERITIES)
    assert records.groupby("image", observed=True).size().tolist() == [rows] * CLASSES


def test_ids_without_a_class_are_found_by_their_names(command: Command, tmp_path: Path,
                                                      stored: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["file,class_index"]
    for path in sorted((tmp_path / "val").glob("*/*.png")):
        path.rename(flat / path.name)
        lines.append(f"{path.name},{path.parent.name[1:]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    result = command("corrupt", "-m", RIGHT, "--data", flat, "--labels", tmp_path / "labels.csv",
                     "--corruptions", QUICK, "--corrupted", stored, "--out", tmp_path / "o")
    assert result.exit_code == 0 and "No image failed" in result.output


def test_a_folder_without_a_corruption_is_refused(tmp_path: Path, stored: Path) -> None:
    for folder, seen in ((tmp_path / "none", "is none"), (stored, "no folder fog")):
        with pytest.raises(DataError, match=seen):
            CORRUPT.prepare(CorruptionSettings(corruptions="fog", corrupted=folder))


def test_frost_names_its_package_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weather, "PACKAGE", "no_such_package")
    with pytest.raises(UsageError, match=r"pip install 'sanrobust\[corrupt\]'"):
        CORRUPT.prepare(CorruptionSettings())
    CORRUPT.prepare(CorruptionSettings(corruptions="noise,fog"))


@pytest.mark.parametrize(("keywords", "told"), [
    ({"corruptions": "fogg"}, "did you mean fog"),
    ({"corruptions": ""}, "no corruption named ''"),
    ({"corruptions": ()}, "there must be a corruption"),
    ({"corruptions": 3}, "corruptions must be names"),
    ({"severities": "0,1"}, "whole numbers from 1 to 5"),
    ({"severities": ()}, "whole numbers from 1 to 5"),
    ({"severities": "1.5"}, "whole numbers from 1 to 5"),
    ({"extra": 1}, "True or False"),
    ({"seed": -1}, "seed must be a whole number"),
    ({"seed": True}, "seed must be a whole number"),
    ({"seed": 1, "corrupted": "c"}, "--seed must go with images that are made here"),
])
def test_settings_that_cannot_be_meant_are_refused(keywords: dict[str, object],
                                                   told: str) -> None:
    with pytest.raises(SanrobustError, match=re.escape(told)):
        CorruptionSettings(**keywords)  # type: ignore[arg-type]


def test_settings_mean_the_same_in_any_order() -> None:
    one = CorruptionSettings(corruptions="fog, noise", severities="5,1", extra=True)
    two = CorruptionSettings(corruptions=["impulse_noise", "fog", "extra", "gaussian_noise",
                                          "shot_noise"], severities=[1, 5])
    assert one.conditions == two.conditions
    assert CorruptMeasurement(one).spec() == CorruptMeasurement(two).spec()
    assert CorruptionSettings().corruptions == COMMON
    assert CorruptionSettings(extra=True).corruptions == tuple(BY_NAME)


# Hendrycks and Dietterich, Table 1 (clean error, mCE, CE of the 15 corruptions) and Table 2
# (relative mCE, relative CE), as printed in paper.pdf of hendrycks/robustness.
TABLE1 = {
    "AlexNet": (43.5, 100.0, [100] * 15),
    "SqueezeNet": (41.8, 104.4, [107, 106, 105, 100, 103, 101, 100, 101, 103, 97, 97, 98, 106, 109,
                                 134]),
    "VGG-11": (31.0, 93.5, [97, 97, 100, 92, 99, 93, 91, 92, 91, 84, 75, 86, 97, 107, 100]),
    "VGG-19": (27.6, 88.9, [89, 91, 95, 89, 98, 90, 90, 89, 86, 75, 68, 80, 97, 102, 94]),
    "VGG-19+BN": (25.8, 81.6, [82, 83, 88, 82, 94, 84, 86, 80, 78, 69, 61, 74, 94, 85, 83]),
    "ResNet-18": (30.2, 84.7, [87, 88, 91, 84, 91, 87, 89, 86, 84, 78, 69, 78, 90, 80, 85]),
    "ResNet-50": (23.9, 76.7, [80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77]),
}
TABLE2 = {
    "AlexNet": (100.0, [100] * 15),
    "SqueezeNet": (117.9, [118, 116, 114, 104, 110, 106, 105, 106, 110, 98, 101, 100, 126, 129,
                           229]),
    "VGG-11": (123.3, [122, 121, 125, 116, 129, 121, 115, 114, 113, 99, 86, 102, 151, 161, 174]),
    "VGG-19": (122.9, [114, 117, 122, 118, 136, 123, 122, 114, 111, 88, 82, 98, 165, 161, 172]),
    "VGG-19+BN": (111.1, [104, 105, 114, 108, 132, 114, 119, 102, 100, 79, 68, 89, 165, 125, 144]),
    "ResNet-18": (103.9, [104, 106, 111, 100, 116, 108, 112, 103, 101, 89, 67, 87, 133, 97, 126]),
    "ResNet-50": (105.0, [104, 107, 107, 97, 126, 107, 110, 101, 97, 79, 62, 89, 146, 111, 132]),
}


@pytest.mark.parametrize("network", TABLE1)
def test_the_papers_tables_follow_from_their_own_rows(network: str) -> None:
    clean, mce, printed = TABLE1[network]
    relative_mce, relative = TABLE2[network]
    errors = [ce * BY_NAME[name].alexnet / 100 for name, ce in zip(COMMON, printed, strict=True)]
    pairs = [corruption_errors(name, error, clean)
             for name, error in zip(COMMON, errors, strict=True)]
    # Table 1 rounds each CE to whole percents, so their mean is within a half of the printed one.
    assert np.mean([ce for ce, _ in pairs]) == pytest.approx(mce, abs=0.5)
    for name, (_, found), wanted in zip(COMMON, pairs, relative, strict=True):
        alexnet = BY_NAME[name].alexnet
        # What half a percent of CE and 0.05 points of both clean errors make of it, and rounding.
        slack = (0.5 * alexnet / 100 + 0.05 + 0.05 * wanted / 100) * 100 / (alexnet - ALEXNET_CLEAN)
        assert found == pytest.approx(wanted, abs=slack + 0.5), name
    assert np.mean([each for _, each in pairs]) == pytest.approx(relative_mce, abs=1.0)


def made_records(right: dict[str, int], images: int = 20) -> pd.DataFrame:
    """Records in which the first images are right: as many as named for clean and for noise."""
    conditions = [("none", 0), *((name, severity) for name in BY_NAME
                                 for severity in names.SEVERITIES)]
    rows = [{"image": f"{image:02}", "label": 1, "corruption": name, "severity": severity,
             "pred": int(image < right.get(name, images) - severity), "error": None}
            for image in range(images) for name, severity in conditions]
    return pd.DataFrame(rows)


def test_a_summary_has_means_over_severities_and_groups() -> None:
    records = made_records({"none": 18, "fog": 10})
    rows = corruption_summaries(records, corruptions=tuple(BY_NAME), relative=True)
    fog, = (row for row in rows if row["corruption"] == "fog")
    assert [row["corruption"] for row in rows] == list(BY_NAME)
    assert fog["clean_top1"] == 90 and fog["clean_error"] == 10
    assert [fog[f"error_{severity}"] for severity in names.SEVERITIES] == [55, 60, 65, 70, 75]
    assert fog["error"] == pytest.approx(65) and fog["noise_error"] == pytest.approx(15)
    assert fog["weather_error"] == pytest.approx((3 * 15 + 65) / 4)
    assert fog["mean_error"] == pytest.approx((14 * 15 + 65) / 15)
    assert fog["ce"] == pytest.approx(100 * 65 / 81.9324)
    assert fog["relative_ce"] == pytest.approx(100 * 55 / (81.9324 - 43.5))
    common = [row["ce"] for row in rows if row["corruption"] in COMMON]
    assert fog["mce"] == pytest.approx(np.mean(common))
    assert (fog["error_1_low"], fog["error_1_high"]) == pytest.approx(wilson(11, 20))
    assert (fog["error_low"], fog["error_high"]) == pytest.approx(wilson(13, 20))


def test_a_summary_leaves_out_what_the_records_do_not_hold() -> None:
    records = made_records({})
    chosen = records[records["corruption"].isin(["none", "fog", *EXTRA])]
    row = corruption_summaries(chosen, corruptions=("fog", *EXTRA), relative=True)[0]
    assert "weather_error" not in row and "mce" not in row and "extra_error" in row
    assert row["mean_error"] == row["error"]
    common = records[~records["corruption"].isin(EXTRA)]
    assert "mce" not in corruption_summaries(common)[0]


def test_failed_images_count_as_wrong_in_the_rates_over_all() -> None:
    records = made_records({})
    records.loc[records["image"] == "03", ["pred", "error"]] = [None, "damaged"]
    row = corruption_summaries(records, corruptions=tuple(BY_NAME))[0]
    assert (row["n"], row["failed"]) == (19, 1)
    assert row["mean_error_all"] == pytest.approx((row["mean_error"] * 19 + 100) / 20)
    assert row["clean_error_all"] == pytest.approx((row["clean_error"] * 19 + 100) / 20)


def table_of(right: dict[str, int], models: int = 1, **settings: object):  # type: ignore
    facts = {"corruptions": list(BY_NAME), "severities": [1, 2, 3, 4, 5], "seed": 0,
             "preprocessing": json.dumps({"img_size": 224}), **settings}
    rows = [{"model": f"m{number}", "data": "imagenet", **row, **facts, "run_id": f"r{number}"}
            for number in range(models)
            for row in corruption_summaries(made_records(right), corruptions=tuple(BY_NAME),
                                            relative=True)]
    return make_table(CORRUPT, rows)


def test_a_table_on_imagenet_has_mce_and_says_what_it_is_relative_to() -> None:
    table = table_of({"fog": 10}, relative_to="AlexNet")
    markdown, latex, text = to_markdown(table), to_latex(table), to_text(table, width=100)
    for rendered in (markdown, latex, text):
        assert "rel. mCE" in rendered and "files of ImageNet-C" in " ".join(rendered.split())
    assert "strengths are those of ImageNet-C" in markdown and "JPEG of quality 85" in markdown
    assert "| m0 | fog | 65.0 [43.3, 81.9] | 55.0 [34.2, 74.2] |" in markdown
    assert "corrupted: mCE" in markdown and max(map(len, text.splitlines())) <= 100


@needs_frost
def test_a_table_of_other_data_says_that_mce_has_no_reference(command: Command,
                                                              tmp_path: Path) -> None:
    images = folders(tmp_path / "val", list(range(CLASSES)))
    result = command("corrupt", "-m", RIGHT, "--data", images, "--out", tmp_path / "o")
    text = " ".join(result.stdout.split())
    assert result.exit_code == 0 and "There is no mCE" in text and "rel. mCE" not in text
    assert "15 common corruptions at severities 1 to 5" in text and "CIFAR-10-C" in text
    assert sorted(path.suffix for path in (tmp_path / "o").glob("corruptions*")) == [
        ".csv", ".md", ".png", ".svg", ".tex"]


def test_a_heat_map_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    table = table_of({"fog": 3}, models=2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_table(table, tmp_path / name)
    for kind in ("svg", "png"):
        one, two = ((tmp_path / name / f"corruptions.{kind}").read_bytes() for name in "ab")
        assert one == two


def test_a_heat_map_of_many_models_shows_their_mean() -> None:
    few, many = (heatmap.draw(table_of({"fog": 3}, models=models).rows)
                 for models in (2, heatmap.MOST_PANELS + 1))
    assert few is not None and many is not None
    table = table_of({"fog": 3})
    failed = heatmap.draw(table.rows.assign(failed=5))
    assert failed is not None and failed.axes[0].get_title() == "m0\n20 of 25 images"
    titles = [[axes.get_title() for axes in figure.axes if axes.get_title()]
              for figure in (few, many)]
    assert titles == [["m0", "m1"], ["mean of 13 models"]]


def test_settings_and_experiment_load_nothing_heavy() -> None:
    code = ("import sys; from sanrobust.experiments.corrupt import CORRUPT; CORRUPT.settings(); "
            "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'scipy'}; "
            "sys.exit(bool(heavy & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("severities", "words"), [
    ((1, 2, 3, 4, 5), "severities 1 to 5"), ((1, 3), "severities 1 and 3"),
    ((1, 2, 4), "severities 1, 2 and 4"), ((2,), "severity 2")])
def test_severities_are_told_as_people_say_them(severities: tuple[int, ...], words: str) -> None:
    assert _severity_words(severities) == words


def test_no_images_have_no_interval() -> None:
    assert all(np.isnan(each) for each in _wilson(0.5, 0))
    assert _wilson(0.25, 40) == pytest.approx(wilson(10, 40))
