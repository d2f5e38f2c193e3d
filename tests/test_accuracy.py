"""Accuracy on clean images: by hand, by torchmetrics, and as the other experiments count it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import sanrobust
from conftest import Command
from grey_models import CLASSES, folders
from sanrobust import metrics
from sanrobust.data.imageset import ArrayImages, ImageRef
from sanrobust.data.loader import Batch, FailedImage
from sanrobust.experiments.accuracy.scoring import LabelSets, read_label_sets
from sanrobust.errors import DataError, SanrobustError, UsageError
from sanrobust.experiments.accuracy import (ACCURACY, AccuracyMeasurement, AccuracySettings,
                                            accuracy_summary, class_accuracies)
from sanrobust.preprocessing import Preprocessing
from sanrobust.reasons import EXCLUDED
from sanrobust.runs import find_runs
from sanrobust.tables import make_table, to_csv, to_latex, to_markdown, to_text

RIGHT, WRONG = "grey_models:right", "grey_models:wrong"
LABELS = list(range(CLASSES))


class Table(nn.Module):
    """A model whose logits are known: the pixels of an image hold its number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, pixels: Tensor) -> Tensor:
        return self.logits[pixels[:, 0, 0, 0].long()]


def image_set(labels: list[int], names: tuple[str, ...] | None = None,
              classes: int | None = None) -> ArrayImages:
    refs = tuple(ImageRef(f"i{number}", label) for number, label in enumerate(labels))
    return ArrayImages("made", refs, classes, np.zeros((len(refs), 1, 1), np.uint8), classes=names)


def records(logits: Tensor, labels: list[int], settings: Mapping[str, object] | None = None,
            names: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Records of a model with these logits."""
    measurement = AccuracyMeasurement(AccuracySettings(**(settings or {})))  # type: ignore
    images = image_set(labels, names)
    measurement.check(images, num_classes=logits.shape[1], preprocessing=Preprocessing())
    pixels = torch.arange(len(labels)).float().reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    batch = Batch(tuple(ref.id for ref in images.refs), torch.tensor(labels), pixels)
    return pd.DataFrame(measurement.measure(Table(logits), batch))


def random_case(images: int = 400, classes: int = 7, seed: int = 0) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = 2 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 2
    return logits, labels.tolist()


@pytest.fixture
def torchmetrics() -> ModuleType:
    return pytest.importorskip("torchmetrics", reason="torchmetrics, of the extra dev, is missing")


@pytest.mark.parametrize("bins", [1, 10, 15, 100])
def test_the_calibration_error_is_that_of_torchmetrics(torchmetrics: ModuleType, bins: int) -> None:
    logits, labels = random_case()
    theirs = torchmetrics.functional.classification.multiclass_calibration_error(
        logits.double().softmax(1), torch.tensor(labels), num_classes=7, n_bins=bins)
    ours = accuracy_summary(records(logits, labels), bins=bins)["ece"]
    # They add up in float32, whatever they are given.
    assert ours == pytest.approx(100 * float(theirs), abs=1e-4)


def test_certainty_is_in_the_last_bin(torchmetrics: ModuleType) -> None:
    error = torchmetrics.functional.classification.binary_calibration_error
    confidences, hits = torch.tensor([1.0, 1.0, 0.95, 0.95]), torch.tensor([0, 1, 1, 1])
    ours = metrics.calibration_error(metrics.reliability(
        pd.Series(confidences.numpy()), pd.Series(hits.bool().numpy()), 10))
    below = error(confidences.clamp(max=1 - 1e-6), hits, n_bins=10)
    assert ours == pytest.approx(100 * float(below), abs=1e-3) == 22.5
    # torchmetrics has one bin more, for confidences of exactly 1.
    assert 100 * float(error(confidences, hits, n_bins=10)) == pytest.approx(27.5, abs=1e-3)


def test_rates_and_classes_are_those_of_torchmetrics(torchmetrics: ModuleType) -> None:
    logits, labels = random_case()
    of = torchmetrics.functional.classification
    frame, target = records(logits, labels), torch.tensor(labels)
    summary = accuracy_summary(frame)
    for name, k in (("top1", 1), ("top5", 5)):
        theirs = of.multiclass_accuracy(logits, target, num_classes=7, average="micro", top_k=k)
        assert summary[name] == pytest.approx(100 * float(theirs), abs=1e-4)
    table = class_accuracies(frame)
    each = of.multiclass_accuracy(logits, target, num_classes=7, average="none")
    assert table["top1"].tolist() == pytest.approx((100 * each).tolist(), abs=1e-4)
    confusion = of.multiclass_confusion_matrix(logits, target, num_classes=7)
    for row in table.to_dict(orient="records"):
        taken = {str(index): int(count) for index, count in enumerate(confusion[row["class"]])
                 if count and index != row["class"]}
        assert row["taken_for"] == taken and row["n"] == int(confusion[row["class"]].sum())
        assert list(row["taken_for"].values()) == sorted(taken.values(), reverse=True)


def test_the_likelihood_and_its_interval_are_those_of_torch_and_scipy() -> None:
    from scipy import stats
    logits, labels = random_case()
    losses = nn.functional.cross_entropy(logits.double(), torch.tensor(labels), reduction="none")
    summary = accuracy_summary(records(logits, labels))
    assert summary["nll"] == pytest.approx(float(losses.mean()), abs=1e-12)
    low, high = stats.t.interval(0.95, len(labels) - 1, float(losses.mean()),
                                 float(stats.sem(losses.numpy())))
    assert (summary["nll_low"], summary["nll_high"]) == pytest.approx((low, high))
    assert summary["nll_worst"] == pytest.approx(float(losses.max()))
    squares = (logits.double().softmax(1) - nn.functional.one_hot(torch.tensor(labels), 7)) ** 2
    assert summary["brier"] == pytest.approx(float(squares.sum(1).mean()), abs=1e-12)


def test_a_bin_has_its_upper_edge_and_certainty_is_in_the_last_one() -> None:
    table = metrics.reliability(pd.Series([0.25, 0.2500001, 0.5, 1.0]),
                                pd.Series([True, False, True, True]), 4)
    assert table["n"].tolist() == [1, 2, 0, 1]
    assert table["accuracy"].tolist()[:2] == [100, 50] and np.isnan(table["accuracy"][2])
    assert metrics.calibration_error(table) == pytest.approx((75 + 2 * 12.499995 + 0) / 4)


def test_no_image_gives_no_number() -> None:
    measurement = AccuracyMeasurement(AccuracySettings())
    frame = pd.DataFrame(measurement.failed(FailedImage("a", 0, "damaged")))
    summary = accuracy_summary(frame)
    assert (summary["n"], summary["failed"], summary["top1_all"]) == (0, 1, 0.0)
    assert all(np.isnan(summary[name]) for name in ("top1", "ece", "nll", "brier"))
    table = make_table(ACCURACY, [{"model": "m", "data": "d", "bins": 15, **summary}])
    for render in (to_text, to_csv, to_markdown, to_latex):
        assert "nan" not in render(table)
    assert ACCURACY.plots[0].draw(table.rows) is None


# Three classes; the second image is right only when class 0 does not count.
LOGITS = torch.tensor([[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 4.0]])
TRUTH = [0, 1, 2]


def test_a_part_of_the_classes_is_scored_as_if_the_others_were_not_there() -> None:
    frame = records(LOGITS, TRUTH, {"classes": (1, 2)})
    reasons = frame.set_index("image")["error"]
    assert reasons["i0"].startswith(EXCLUDED) and reasons[["i1", "i2"]].isna().all()
    kept = frame[frame["error"].isna()]
    assert kept["pred"].tolist() == [1, 2] and kept["num_classes"].tolist() == [2, 2]
    assert kept["confidence"].tolist() == pytest.approx(
        [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-4.0))])
    summary = accuracy_summary(frame)
    assert (summary["n"], summary["excluded"], summary["failed"]) == (2, 1, 0)
    assert accuracy_summary(records(LOGITS, TRUTH))["top1"] == pytest.approx(200 / 3)
    assert summary["top1"] == 100


def test_every_way_to_name_classes_means_the_same(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("two\n\n one \n", "utf-8")
    names, plain = ("zero", "one", "two"), ["label", "pred", "confidence", "error"]
    expected = records(LOGITS, TRUTH, {"classes": "1,2"}, names)
    for wanted in (f"file:{path}", "two,one", ["one", 2], "2, 1"):
        frame = records(LOGITS, TRUTH, {"classes": wanted}, names)
        pd.testing.assert_frame_equal(frame[plain], expected[plain])
    present = records(LOGITS[1:], TRUTH[1:], {"classes": "present"}, names)
    assert present["confidence"].tolist() == expected["confidence"].tolist()[:2]


def test_a_name_goes_before_an_index() -> None:
    frame = records(LOGITS, TRUTH, {"classes": "0,1"}, ("2", "1", "0"))
    assert frame["error"].isna().tolist() == [True, True, False]
    assert frame["label"].tolist() == [1, 2, 0]  # the excluded one comes last


REAL_FORMS = {
    "real.json": json.dumps([[1, 2], [0], []]),
    "map.json": json.dumps({"val/ILSVRC2012_val_00000001.JPEG": [2, 1],
                            "val/ILSVRC2012_val_00000002.JPEG": 0}),
    "map.csv": "image,label,x\nval/ILSVRC2012_val_00000001.JPEG,1,a\n"
               "val/ILSVRC2012_val_00000001.JPEG,2,b\nval/ILSVRC2012_val_00000002.JPEG,0,c\n",
}


@pytest.mark.parametrize("name", REAL_FORMS)
def test_any_real_label_is_right_and_images_without_one_are_left_out(tmp_path: Path,
                                                                     name: str) -> None:
    path = tmp_path / name
    path.write_text(REAL_FORMS[name], "utf-8")
    measurement = AccuracyMeasurement(AccuracySettings(real_labels=path))
    ids = tuple(f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3))
    images = ArrayImages("v", tuple(ImageRef(image, 0) for image in ids), 3,
                         np.zeros((3, 1, 1), np.uint8))
    notes = measurement.check(images, num_classes=3, preprocessing=Preprocessing())
    assert notes == ("note: 1 of 3 images have no label that is scored and are left out",)
    logits = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 9.0]])
    pixels = torch.arange(3.0).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    frame = pd.DataFrame(measurement.measure(Table(logits), Batch(ids, torch.zeros(3).long(),
                                                                  pixels)))
    assert frame["top1_hit"].tolist() == [True, False, None] and frame["brier"].isna().all()
    probabilities = logits[0].double().softmax(0)
    assert frame["prob_label"][0] == pytest.approx(float(probabilities[1] + probabilities[2]))
    assert frame["log_likelihood"][0] == pytest.approx(np.log(frame["prob_label"][0]))
    assert str(frame["error"][2]).startswith(EXCLUDED)
    summary = accuracy_summary(frame)
    assert (summary["n"], summary["excluded"], summary["top1"]) == (2, 1, 50.0)
    table = make_table(ACCURACY, [{"model": "m", "data": "v", **measurement.spec(), **summary}])
    text = " ".join(to_text(table).split())
    assert "right is any of an image's ReaL labels (SHA-256 " in text and "Brier the" not in text


def test_real_labels_count_only_within_the_classes(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"i0": [0, 1], "i1": [0], "i2": [2]}), "utf-8")
    frame = records(LOGITS, TRUTH, {"classes": "1,2", "real_labels": path})
    assert frame["image"].tolist() == ["i0", "i2", "i1"]
    assert frame["top1_hit"].tolist() == [True, True, None]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.json", "[[1], [2,]]", "does not read"), ("a.json", '{"i0": ["x"]}', "has ['x']"),
    ("a.json", '{"i0": [true]}', "has [True]"), ("a.json", "[[-1]]", "has [-1]"),
    ("a.json", "[" * 100_000, "does not read"), ("a.csv", "image;label\ni0;1\n", "lacks image"),
    ("a.csv", "image,label\ni0,x\n", "has 'x' for i0"), ("a.json", '{"i0": [7]}', "one is 7"),
    ("a.json", "[[1], [2], [0]]", "named as ImageNet's validation images"),
    ("a.json", '{"other": [1]}', "ReaL labels must be of images that are measured"),
])
def test_real_labels_that_cannot_serve_are_refused(tmp_path: Path, name: str, content: str,
                                                   words: str) -> None:
    path = tmp_path / name
    path.write_text(content, "utf-8")
    with pytest.raises(DataError) as told:
        records(LOGITS, TRUTH, {"real_labels": path})
    assert words in str(told.value)


@pytest.mark.parametrize(("settings", "words"), [
    ({"bins": 0}, "from 1 to 1000"), ({"bins": True}, "it is True"), ({"bins": 1.5}, "it is 1.5"),
    ({"classes": "1"}, "two classes or more"), ({"classes": ""}, "two classes or more"),
    ({"classes": "1,,2"}, "two classes or more"), ({"classes": 7}, "it is 7"),
    ({"classes": (1, 1)}, "two classes or more"), ({"classes": "1,x"}, "'x' is none of its 3"),
    ({"classes": "1,3"}, "'3' is none of its 3"),
    ({"classes": "file:/nowhere"}, "must be a readable file"),
    ({"real_labels": Path("/nowhere")}, "must be a readable file"),
])
def test_what_cannot_be_meant_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SanrobustError) as told:
        records(LOGITS, TRUTH, settings)
    assert words in str(told.value)


def test_classes_must_leave_an_image_and_two_classes() -> None:
    with pytest.raises(UsageError, match="leaves 1"):
        records(LOGITS[:1], [0], {"classes": "present"})
    with pytest.raises(DataError, match="none of made has one"):
        records(LOGITS[:1], [0], {"classes": "1,2"})


def test_files_enter_the_specification_by_their_content(tmp_path: Path) -> None:
    def spec(folder: str, text: str) -> Mapping[str, object]:
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "c.txt"
        path.write_text(text, "utf-8")
        return AccuracyMeasurement(AccuracySettings(classes=f"file:{path}")).spec()

    assert spec("a", "1\n2") == spec("b", "1\n2") != spec("a", "1\n0")
    assert AccuracyMeasurement(AccuracySettings()).spec() == {"bins": 15}
    several = [AccuracyMeasurement(AccuracySettings(classes=each)).spec()
               for each in ("10,2", (2, 10), "2,10,2")]
    assert several == [{"bins": 15, "classes": ["2", "10"]}] * 3
    with pytest.raises(DataError, match="SHA-256|readable"):
        read_label_sets(tmp_path / "none")
    assert LabelSets({"a": frozenset({1})}, False, "").of("./a") == {1}


def test_top1_and_top5_are_those_of_rotate_image_by_image(command: Command, tmp_path: Path
                                                          ) -> None:
    for name in ("rotate", "accuracy"):
        assert command(name, "-m", "san10-pair", "-m", "resnet26", "--num-samples", 150, "--out",
                       tmp_path).exit_code == 0
    for rotate, accuracy in zip(find_runs(tmp_path, "rotate").runs,
                                find_runs(tmp_path, "accuracy").runs, strict=True):
        views = rotate.records()
        theirs = views[views["view"] == "none"].set_index("image")
        ours = accuracy.records().set_index("image").loc[theirs.index]
        assert ours["pred"].tolist() == theirs["pred"].tolist()
        assert ours["top5_hit"].tolist() == theirs["top5_hit"].tolist()
        assert ours["top1_hit"].tolist() == (theirs["pred"] == theirs["label"]).tolist()
        np.testing.assert_allclose(ours["prob_label"], theirs["prob_label"].astype(float),
                                   rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", ["san10-patch", "resnet26"])
def test_records_do_not_depend_on_batches_workers_or_stops(command: Command, tmp_path: Path,
                                                           model: str) -> None:
    def measured(folder: str, *words: object) -> pd.DataFrame:
        command("accuracy", "-m", model, "--num-samples", 50, "--classes", "present", "--threads",
                1, "--out", tmp_path / folder, *words)
        run, = find_runs(tmp_path / folder, "accuracy").runs
        return run.records().astype(object)

    first = measured("a")
    for folder, words in (("b", ("-b", 7)), ("c", ("-b", 50, "-j", 1))):
        pd.testing.assert_frame_equal(measured(folder, *words), first)
    chunk = max((tmp_path / "b").rglob("*.parquet"))
    chunk.unlink()
    pd.testing.assert_frame_equal(measured("b", "-b", 3).sort_values("image", ignore_index=True),
                                  first.sort_values("image", ignore_index=True))


def test_a_batch_of_images_alone_or_in_another_order_gives_the_same_rows() -> None:
    logits, labels = random_case(60)
    whole = records(logits, labels).set_index("image")
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1)).tolist()
    parts = [records(logits[[place]], [labels[place]]).assign(image=f"i{place}")
             for place in order]
    pd.testing.assert_frame_equal(pd.concat(parts).set_index("image").loc[whole.index], whole)


def test_a_command_names_the_worst_classes_everywhere(command: Command, tmp_path: Path) -> None:
    images = folders(tmp_path / "val", LABELS)
    out = tmp_path / "o"
    result = command("accuracy", "-m", RIGHT, "-m", WRONG, "--data", images, "--out", out)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert f"Class with the lowest top-1: c0 with 0.0 % ({WRONG})" in words
    assert f"among the {CLASSES} classes of the model; ECE over 15 bins" in words
    assert "Rates and ECE in percent, NLL in nats." in words
    markdown = (out / "accuracy.md").read_text("utf-8")
    assert "| c0 | c5 (1) | 1 | 0.0 |" in markdown
    rows = pd.read_csv(out / "accuracy.csv").set_index("model")
    classes = json.loads(rows["per_class"][WRONG])
    assert [each["taken_for"] for each in classes] == [
        {f"c{(label - 1) % CLASSES}": 1} for label in LABELS]
    assert sum(bar["n"] for bar in json.loads(rows["reliability"][RIGHT])) == CLASSES
    pictures = [(out / f"accuracy.{kind}").read_bytes() for kind in ("svg", "png")]
    again = command("table", "accuracy", "--out", out)
    assert again.exit_code == 0 and again.stdout == result.stdout
    assert pictures == [(out / f"accuracy.{kind}").read_bytes() for kind in ("svg", "png")]


def test_other_settings_are_other_rows_that_say_so(command: Command, tmp_path: Path) -> None:
    images, out = folders(tmp_path / "val", LABELS), tmp_path / "o"
    common = ("accuracy", "-m", RIGHT, "--data", images, "--out", out)
    for words in ((), ("--classes", "c0,c1,c2"), ("--bins", 4), ("--classes", "present")):
        assert command(*common, *words).exit_code == 0
    result = command("table", "--out", out)
    words = " ".join(result.stdout.split())
    assert "Scoring (3 classes): among the 3 classes c0, c1, c2, without the logits of" in words
    assert "Scoring (all classes, 4 bins): among the 6 classes of the model; ECE over 4" in words
    assert "Scoring (6 classes): among the 6 classes that an image is of, without" in words
    assert "Images without a label that is scored, and so in no number: 3" in words
    assert "Not the same in all rows" not in words and len(pd.read_csv(out / "accuracy.csv")) == 4


def test_an_accuracy_within_classes_is_not_held_against_the_reported_one(
        command: Command, tmp_path: Path) -> None:
    result = command("accuracy", "-m", "san19-patch", "--classes", "1,8,9", "--bins", "5", "--out",
                     tmp_path)
    assert result.exit_code == 0 and "is reported" not in result.output


def test_an_nll_that_tells_of_one_image_says_so() -> None:
    logits, labels = random_case(50)
    logits[3] = 0.0
    logits[3, (labels[3] + 1) % 7] = 1e6
    row = {"model": "m", "data": "d", "bins": 15, **accuracy_summary(records(logits, labels))}
    words = " ".join(to_text(make_table(ACCURACY, [row])).split())
    assert "More than half of the NLL comes from a single image: m, 1000000.0 nats." in words


def test_python_gives_the_rows(tmp_path: Path) -> None:
    table = sanrobust.accuracy("resnet26.digits", classes=[3, 5, 8], bins=10,
                               data=sanrobust.DataConfig(num_samples=60), out=tmp_path)
    assert table["bins"].tolist() == [10] and table["num_classes"].tolist() == [3]
    assert "classes to score within" in str(sanrobust.accuracy.__doc__)
