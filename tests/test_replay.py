"""Saved images measured on other models: exactly what was saved, or a sentence that says why not.
"""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import sanrobust
from conftest import Command
from grey_models import CLASSES, Grey, folders
from sanrobust.attacks.build import build_attack
from sanrobust.attacks.budget import BudgetParts
from sanrobust.attacks.settings import AttackSettings
from sanrobust.data.digits import open_digits
from sanrobust.data.loader import batches
from sanrobust.data.pixels import decode_exactly, encode
from sanrobust.data.replayed import open_saved
from sanrobust.errors import DataError, SanrobustError, UsageError
from sanrobust.experiments.replay import replay_summaries
from sanrobust.runs import Run, find_runs
from sanrobust.steady import FixedSizeBatches
from sanrobust.zoo.accelerate import accelerate
from tampering import HOSTILE
from test_table_sequences import stop_after

LABELS = [*range(CLASSES)] * 2
ATTACKS = {
    "pgd": (),
    "l2": ("--norm", "l2", "--eps", "0.5,1.5", "--attack", "apgd-ce", "--iters", "3"),
    "untargeted": ("--targets", "none", "--eps", "12", "--step", "4", "--iters", "4"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and a run of each attack."""
    place = tmp_path_factory.mktemp("made")
    folders(place / "val", LABELS)
    for name, attack in ATTACKS.items():
        words = dict(zip(attack[::2], attack[1::2]))
        settings = {key.strip("-"): value for key, value in words.items()}
        budget = BudgetParts(settings.pop("eps", None), settings.pop("step", None),
                             int(settings.pop("iters")) if "iters" in settings else None)
        sanrobust.pgd("grey_models:right", data=place / "val", out=place / name,
                      save_adversarial=True, **settings,
                      **({"budgets": budget} if attack else {}))
    return place


def source(made: Path, name: str) -> Run:
    return find_runs(made / name, "pgd").runs[0]


def replayed(out: Path) -> Run:
    return find_runs(out, "replay").runs[-1]


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("how", [(), ("-b", "1"), ("-b", "5", "-j", "2"), ("--num-samples", "7")],
                         ids=" ".join)
def test_the_source_itself_answers_as_it_did(name: str, how: tuple[str, ...], made: Path,
                                             command: Command, tmp_path: Path) -> None:
    run = source(made, name)
    result = command("replay", run.folder, "-m", "grey_models:right", *how, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    key = ["image", "eps", "iters"]
    both = replayed(tmp_path).records().merge(run.records(), on=key, suffixes=("", "_then"))
    assert len(both) == len(replayed(tmp_path).records())
    assert len(both) == (len(run.records()) if "--num-samples" not in how
                         else 7 * run.records()[["eps", "iters"]].drop_duplicates().shape[0])
    assert (both["pred"] == both["adv_pred"]).all() and (both["label"] == both["label_then"]).all()
    assert (both["pred"] == both["source_pred"]).all()
    assert both["target"].equals(both["target_then"])
    assert (both["source_clean_pred"] == both["clean_pred"]).all()


@pytest.mark.parametrize("model", ["resnet26.digits", "san10-pair.digits"])
@pytest.mark.parametrize("eps", [8, 8.5])
def test_logits_of_saved_images_are_the_same_bit_for_bit(model: str, eps: float) -> None:
    classifier = sanrobust.create_model(model)
    cpu = torch.device("cpu")
    fast = accelerate(classifier, cpu)
    network = FixedSizeBatches(fast.classifier, fast.pass_size(32, cpu))
    batch = next(batches(open_digits("test"), classifier.preprocessing, plan=[range(9)], workers=0))
    settings = AttackSettings(budgets=[(eps, 2, 4)] if eps == 8 else
                              (sanrobust.Budget(eps, 2, 4),))
    result, = build_attack(settings, settings.rule())(network, batch.pixels, batch.labels,
                                                      batch.ids)
    again = torch.stack([decode_exactly(content, suffix, 32)
                         for suffix, content in map(encode, result.adversarial)])
    assert torch.equal(again, result.adversarial)
    with torch.no_grad():
        assert torch.equal(network(again), result.adv_logits)
        assert torch.equal(network(again[3:4]), result.adv_logits[3:4])


def test_rates_are_those_of_the_images_counted_one_by_one(made: Path, tmp_path: Path) -> None:
    for name in ATTACKS:
        run = source(made, name)
        # Every class is taken for the next one, so that what the source gets right is wrong here.
        table = sanrobust.replay("grey_models:wrong", data=run.folder, out=tmp_path / name)
        there = run.records()
        images = open_saved(run.folder)
        for _, row in table.table.iterrows():
            own = there[(there["eps"] == row["eps"]) & (there["iters"] == row["iters"])]
            right = hit = moved = broken = 0
            for _, record in own.iterrows():
                saved = next(each for each in images.by_image[record["image"]]
                             if each.budget[0] == row["eps"] and each.budget[2] == row["iters"])
                pred = int(Grey(shift=1)(images.pixels(saved)[None]).argmax())
                targeted = not pd.isna(record["target"])
                was = (record["adv_pred"] == record["target"] if targeted else
                       record["clean_pred"] == record["label"] != record["adv_pred"])
                here = pred == record["target"] if targeted else pred != record["label"]
                right += pred == record["label"]
                hit += targeted and pred == record["target"]
                broken += was
                moved += was and here
            assert row["n"] == len(own) and row["broken"] == broken
            assert row["top1"] == pytest.approx(100 * right / len(own))
            assert row["source_top1"] == pytest.approx(
                100 * (own["adv_pred"] == own["label"]).mean())
            if targeted:
                assert row["success"] == pytest.approx(100 * hit / len(own))
            else:
                assert pd.isna(row["success"])
            assert row["transfer"] == pytest.approx(
                100 * moved / broken if broken else np.nan, nan_ok=True)


def records_of(*rows: tuple[object, ...]) -> pd.DataFrame:
    """Records of one budget: label, target, the source's prediction, broken there, and ours."""
    table = pd.DataFrame(rows, columns=["label", "target", "source_pred", "source_broken", "pred"])
    hit = [None if pd.isna(target) else target == pred
           for target, pred in zip(table["target"], table["pred"])]
    return table.assign(image=[f"i{place}" for place in range(len(table))], eps=8.0, step=2.0,
                        iters=4, right=table["pred"] == table["label"], on_target=hit, error=None)


def test_transfer_is_a_share_of_the_broken_images_alone() -> None:
    row, = replay_summaries(records_of((0, 1, 1, True, 1), (0, 1, 1, True, 2), (0, 1, 0, False, 1),
                                       (0, 1, 2, False, 0)))
    assert (row["n"], row["broken"]) == (4, 2)
    assert (row["top1"], row["success"], row["transfer"]) == (25.0, 50.0, 50.0)
    assert (row["source_top1"], row["source_success"]) == (25.0, 50.0)
    row, = replay_summaries(records_of((0, None, 1, True, 2), (0, None, 3, False, 3),
                                       (1, None, 0, True, 1)))
    assert row["transfer"] == 50.0 and pd.isna(row["success"]) and row["broken"] == 2
    row, = replay_summaries(records_of((0, None, 0, False, 2)))
    assert pd.isna(row["transfer"]) and row["broken"] == 0 and row["top1"] == 0.0


def test_a_failed_image_counts_against_the_model_but_in_no_transfer() -> None:
    table = records_of((0, 1, 1, True, 1), (0, 1, 1, True, 0)).astype(object)
    table.loc[1, ["right", "on_target", "source_broken", "source_pred"]] = None
    row, = replay_summaries(table.assign(error=[None, "damaged"]))
    assert (row["n"], row["failed"], row["top1"], row["top1_all"]) == (1, 1, 0.0, 0.0)
    assert row["success_all"] == 100.0 and "transfer_all" not in row and row["broken"] == 1


def test_the_table_says_who_made_the_images_and_how(made: Path, command: Command,
                                                    tmp_path: Path) -> None:
    folders = [source(made, name).folder for name in ATTACKS]
    result = command("replay", *folders, "-m", "grey_models:right", "-m", "grey_models:wrong",
                     "--out", tmp_path)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for words in ("Transfer of adversarial images from the model that they were made for",
                  "made on grey_models:right, as they were saved",
                  "White-box PGD in the L-inf ball, targeted at a random wrong class",
                  "Broken on the model that they were made for, budget by budget: "):
        assert words in text, text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "replay.csv").read_text())))
    assert len(rows) == 2 * (2 + 2 + 1)
    assert {row["source_model"] for row in rows} == {"grey_models:right"}
    assert len({row["run_id"] for row in rows}) == 6
    for name in ("replay.md", "replay.tex"):
        content = (tmp_path / name).read_text()
        assert "grey" in content and "transfer" in content
    again = command("table", "replay", "--out", tmp_path)
    assert again.exit_code == 0
    assert sorted(again.stdout.split()) == sorted(result.stdout.split())


def test_a_replay_that_was_stopped_goes_on(made: Path, command: Command, tmp_path: Path) -> None:
    words = ("replay", source(made, "pgd").folder, "-m", "grey_models:wrong", "-b", "1")
    command(*words, "--out", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as stopping:
        stop_after(stopping, 5)
        assert command(*words, "--out", tmp_path / "o").exit_code == 130
    assert command(*words, "--out", tmp_path / "o").exit_code == 0
    pd.testing.assert_frame_equal(replayed(tmp_path / "whole").records(),
                                  replayed(tmp_path / "o").records())


class Smaller(Grey):
    """A classifier of one class less."""

    def __init__(self) -> None:
        super().__init__(CLASSES - 1)


class Backwards(nn.Module):
    """Knows the classes of the images by name, in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Grey()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images).flip(1)


PLAIN = sanrobust.Preprocessing(img_size=32, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))


def test_targets_and_predictions_follow_the_classes_by_name(made: Path, tmp_path: Path) -> None:
    backwards = sanrobust.Classifier(Backwards(), name="backwards", preprocessing=PLAIN,
                                     classes=[f"c{label}" for label in reversed(range(CLASSES))])
    folder = source(made, "pgd").folder
    there, here = (sanrobust.replay(model, data=folder, out=tmp_path)
                   for model in ("grey_models:right", backwards))
    names = ["top1", "success", "transfer", "source_top1", "source_success", "broken"]
    pd.testing.assert_frame_equal(there[names], here[names])
    assert there["success"].max() > 0


@pytest.mark.parametrize(("model", "preprocessing", "words"), [
    (Grey(), sanrobust.Preprocessing(img_size=16, crop_pct=1.0), "they are 32x32 and the model"),
    (Smaller(), PLAIN, "must have its 5 classes"),
    (sanrobust.Classifier(Grey(), name="other", preprocessing=PLAIN,
                          classes=[f"d{label}" for label in range(CLASSES)]), None,
     "must be classes of other"),
])
def test_a_model_that_cannot_take_the_images_is_refused(
        model: nn.Module, preprocessing: sanrobust.Preprocessing | None, words: str, made: Path,
        tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        sanrobust.replay(model, preprocessing=preprocessing, data=source(made, "pgd").folder,
                         out=tmp_path)
    assert words in str(caught.value) and "--data" not in str(caught.value)


def test_where_nothing_was_saved_it_is_said_what_to_type(made: Path, command: Command,
                                                         tmp_path: Path) -> None:
    command("pgd", "-m", "grey_models:right", "--data", made / "val", "--out", tmp_path / "o")
    bare = find_runs(tmp_path / "o", "pgd").runs[0].folder
    for folder, words in ((bare, "holds none"), (made / "val", "holds none"),
                          (tmp_path / "no", "there is no folder")):
        result = command("replay", folder, "-m", "grey_models:right", "--out", tmp_path / "p")
        assert result.exit_code == 3 and words in result.output and "replay" in result.output
    assert command("replay", "-m", "grey_models:right").exit_code == 2
    with pytest.raises(UsageError, match="must be given a folder"):
        sanrobust.replay("grey_models:right", out=tmp_path / "p")
    with pytest.MonkeyPatch.context() as stopping:
        stop_after(stopping, 3)
        command("pgd", "-m", "grey_models:right", "--data", made / "val", "-b", "1",
                "--save-adversarial", "--out", tmp_path / "q")
    unfinished = find_runs(tmp_path / "q", "pgd").runs[0].folder
    result = command("replay", unfinished, "-m", "grey_models:right", "--out", tmp_path / "p")
    assert result.exit_code == 3 and "has not saved all of its images" in result.output
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_was_tampered_with_is_one_sentence(name: str, made: Path, command: Command,
                                                tmp_path: Path) -> None:
    folder = tmp_path / "adversarial"
    shutil.copytree(source(made, "pgd").folder / "adversarial", folder)
    change, words = HOSTILE[name]
    change(folder)
    result = command("replay", folder, "-m", "grey_models:right", "--out", tmp_path / "o")
    assert result.exit_code in (2, 3) and "Traceback" not in result.output
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("sanrobust: ") and words in sentence, result.stderr
    assert ", but " in sentence and len(sentence) < 900


def test_the_folder_alone_is_enough(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(source(made, "l2").folder / "adversarial", folder)
    here, there = (sanrobust.replay("grey_models:wrong", data=str(each), out=tmp_path / "o")
                   for each in (folder, source(made, "l2").folder))
    assert here["run_id"].tolist() == there["run_id"].tolist()
    both = sanrobust.replay("grey_models:wrong", data=[folder, source(made, "pgd").folder],
                            out=tmp_path / "o")
    assert len(both.table) == 4 and both["source_settings"].nunique() == 2


def test_one_folder_that_does_not_fit_costs_no_other(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sanrobust.pgd("grey_models:right", data=made / "val", out=other, save_adversarial=True,
                  preprocessing=sanrobust.Preprocessing(img_size=16, crop_pct=1.0))
    with pytest.raises(SanrobustError, match="they are 16x16"):
        sanrobust.replay("grey_models:right", out=tmp_path / "o", data=[
            find_runs(other, "pgd").runs[0].folder, source(made, "pgd").folder])
    assert len(find_runs(tmp_path / "o", "replay").runs) == 1
