"""Tables of several commands in one folder: what each shows, keeps, leaves out and says."""

from __future__ import annotations

import fcntl
import json
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import Command
from grey_models import CLASSES, Grey, folders, level
from made_runs import chunk_of
from sanrobust.errors import FailedImagesError, OutputError, UsageError
from sanrobust.records import write_header_file
from sanrobust.records.headers import sealed_text
from sanrobust.runs import Run, find_runs
from sanrobust.spec import digest_of

RIGHT, WRONG = "grey_models:right", "grey_models:wrong"
LABELS = list(range(CLASSES))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folders(tmp_path / "data" / "val", LABELS)


def shown(path: Path) -> list[tuple[str, int, float]]:
    """Model, images and clean accuracy of each row of a table."""
    rows = pd.read_csv(path)
    column = "none_top1" if "none_top1" in rows else "clean_top1"
    return [(row["model"], row["n"], row[column]) for _, row in rows.iterrows()]


def test_a_command_shows_its_own_runs_and_not_an_earlier_subset(command: Command, images: Path,
                                                                tmp_path: Path) -> None:
    whole = ("rotate", "-m", WRONG, "--data", images, "--out", tmp_path / "o")
    first = command(*whole)
    command(*whole, "--num-samples", 2)
    assert shown(tmp_path / "o" / "rotation.csv")[0][1] == 2
    again = command(*whole)
    assert "already complete" in again.output and "6 images measured 20" in again.output
    assert again.stdout == first.stdout
    assert shown(tmp_path / "o" / "rotation.csv") == [(WRONG, 6, 0.0)]
    assert "1 earlier run is not in this table; sanrobust table --out" in again.output


def test_a_run_of_other_versions_is_used_and_they_are_named(command: Command, images: Path,
                                                            tmp_path: Path) -> None:
    arguments = ("rotate", "-m", RIGHT, "--data", images, "--out", tmp_path)
    command(*arguments)
    (run,) = find_runs(tmp_path, "rotate").runs
    (path,) = (run.folder / "starts").iterdir()
    facts = json.loads(path.read_text())
    facts["environment"]["versions"]["torch"] = "1.0"
    facts.pop("sha256")
    path.write_bytes(sealed_text(facts))
    told = command(*arguments).output
    assert f"with torch 1.0 ({metadata.version('torch')} here); --fresh" in told


def test_table_shows_every_run_and_how_rows_that_look_alike_differ(
        command: Command, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    command("rotate", "-m", RIGHT, "--data", images, "--out", out)
    command("rotate", "-m", RIGHT, "--data", images, "--out", out, "--num-samples", 2)
    command("rotate", "-m", RIGHT, "--data", images, "--out", out, "--img-size", 16)
    result = command("table", "--out", out)
    assert result.exit_code == 0, result.output
    assert len(shown(out / "rotation.csv")) == 3
    for words in ("(n 6, preprocessing img_size=32)", "(n 2, preprocessing img_size=32)",
                  "(n 6, preprocessing img_size=16)", "digest of the images"):
        assert words in result.output.replace("\n", " ")
    assert set(pd.read_csv(out / "rotation.csv")) > {"data_digest", "preprocessing"}


def test_two_folders_of_one_name_are_two_rows(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "o"
    for name, seen in (("a", LABELS), ("b", LABELS[1:] + LABELS[:1])):
        folders(tmp_path / name / "test", LABELS, shown=seen)
        command("rotate", "-m", RIGHT, "--data", tmp_path / name / "test", "--out", out)
        assert shown(out / "rotation.csv") == [(RIGHT, 6, 100.0 if name == "a" else 0.0)]
    result = command("table", "--out", out)
    assert [row[2] for row in shown(out / "rotation.csv")] == [100.0, 0.0]
    assert result.stdout.count(f"{RIGHT} (data_digest ") == 2 * result.stdout.count("Method")
    assert "Not the same in all rows" not in result.stdout  # the labels say it


def test_two_checkpoints_of_one_name_are_two_rows_named_by_their_folder(
        command: Command, images: Path, tmp_path: Path) -> None:
    for name, shift in (("r1", 0), ("r2", 1)):
        (tmp_path / name).mkdir()
        torch.save(Grey(shift=shift).state_dict(), tmp_path / name / "model_best.pth")
        command("rotate", "-m", RIGHT, "--checkpoint", tmp_path / name / "model_best.pth",
                "--data", images, "--out", tmp_path)
    result = command("table", "--out", tmp_path)
    assert [row[2] for row in shown(tmp_path / "rotation.csv")] == [100.0, 0.0]
    assert "(source r1/model_best.pth)" in result.stdout
    assert "(source r2/model_best.pth)" in result.stdout


def test_budgets_of_two_commands_meet_on_one_line_of_the_table_alone(
        command: Command, images: Path, tmp_path: Path) -> None:
    attack = ("pgd", "-m", RIGHT, "--data", images, "--out", tmp_path)
    command(*attack, "--eps", 8, "--step", 4, "--iters", 2)
    second = command(*attack, "--eps", 8, "--step", 2, "--iters", 4)
    assert "n = 4" in second.stdout and "n = 2" not in second.stdout
    third = command("table", "pgd", "--out", tmp_path)
    assert third.stdout.count(f"\n{RIGHT}  ") == 1
    assert "n = 2" in third.stdout and "n = 4" in third.stdout
    assert pd.read_csv(tmp_path / "pgd.csv")["iters"].tolist() == [2, 4]


def test_an_attempt_that_lost_its_place_is_named(command: Command, images: Path,
                                                 tmp_path: Path) -> None:
    arguments = ("rotate", "-m", RIGHT, "--data", images, "--out", tmp_path)
    command(*arguments)
    command(*arguments, "--fresh")
    result = command("table", "--out", tmp_path)
    assert len(shown(tmp_path / "rotation.csv")) == 1
    assert "not in the table: rotate-" in result.output
    assert "measured the same later" in result.output


def test_table_selects_by_model_data_and_run_and_says_what_it_left_out(
        command: Command, images: Path, tmp_path: Path) -> None:
    command("rotate", "-m", RIGHT, "-m", WRONG, "--data", images, "--out", tmp_path)
    by_model = command("table", "--model", WRONG, "--out", tmp_path)
    assert shown(tmp_path / "rotation.csv") == [(WRONG, 6, 0.0)]
    (right,) = [run.name for run in find_runs(tmp_path, "rotate").runs if "right" in run.name]
    assert f"not asked for: {right}" in by_model.output
    command("table", "--run", right, "--out", tmp_path)
    assert shown(tmp_path / "rotation.csv") == [(RIGHT, 6, 100.0)]
    mistyped = command("table", "--data", "vall", "-m", RIGHT, "--out", tmp_path)
    assert mistyped.exit_code == UsageError.exit_code and "there are val" in mistyped.output
    assert shown(tmp_path / "rotation.csv") == [(RIGHT, 6, 100.0)]


def test_a_choice_that_fits_one_experiment_shows_that_one(command: Command, images: Path,
                                                          tmp_path: Path) -> None:
    command("rotate", "-m", RIGHT, "--data", images, "--out", tmp_path)
    command("pgd", "-m", WRONG, "--data", images, "--out", tmp_path)
    result = command("table", "--model", WRONG, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "rotate: no table, because no run of rotate" in result.output
    assert f"wrote {tmp_path / 'pgd.csv'}" in result.output
    both = command("table", "-m", WRONG, "-m", RIGHT, "--out", tmp_path)
    assert shown(tmp_path / "rotation.csv") == [(RIGHT, 6, 100.0)]
    assert f"no run of rotate fits --model {WRONG}" in both.output


def test_a_damaged_run_hides_no_other_and_the_exit_code_tells(command: Command, images: Path,
                                                              tmp_path: Path) -> None:
    command("rotate", "-m", RIGHT, "-m", WRONG, "--data", images, "--out", tmp_path)
    right, wrong = find_runs(tmp_path, "rotate").runs
    (wrong.folder / "run.json").write_text("{")
    result = command("table", "--out", tmp_path)
    assert result.exit_code == OutputError.exit_code
    assert shown(tmp_path / "rotation.csv") == [(RIGHT, 6, 100.0)]
    assert "run.json does not" in result.output
    again = command("rotate", "-m", RIGHT, "--data", images, "--out", tmp_path)
    assert again.exit_code == 0, again.output


def test_a_hole_in_a_complete_run_is_named_and_the_same_command_fills_it(
        command: Command, images: Path, tmp_path: Path) -> None:
    arguments = ("rotate", "-m", RIGHT, "--data", images, "--out", tmp_path, "-b", 2)
    whole = command(*arguments)
    (run,) = find_runs(tmp_path, "rotate").runs
    _split_block(run)
    (run.folder / "records" / "000001.parquet").unlink()
    told = command("table", "--out", tmp_path)
    assert told.exit_code == OutputError.exit_code
    assert "holds 3 of 6: type sanrobust rotate -m grey_models:right" in told.output
    filled = command(*arguments)
    assert "3 of 6 images" in filled.output and "measuring them again" in filled.output
    assert filled.stdout == whole.stdout


def _split_block(run: Run) -> None:
    """Spread the rows of a run over two chunks, half of the images in each, as of old."""
    rows = {str(name): values.tolist() for name, values in
            run.records().astype(object).where(run.records().notna(), None).items()}
    (block,) = (run.folder / "records").iterdir()
    half = len(rows["image"]) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        chunk_of(block.with_name(f"{number:06d}.parquet"),
                 {name: values[part] for name, values in rows.items()}, run.experiment,
                 digest_of(run.spec))
    block.unlink()


def test_table_names_runs_in_progress_and_runs_that_were_killed(command: Command, images: Path,
                                                                tmp_path: Path) -> None:
    command("rotate", "-m", RIGHT, "-m", WRONG, "--data", images, "--out", tmp_path)
    wrong = find_runs(tmp_path, "rotate").runs[1]
    (block,) = (wrong.folder / "records").iterdir()
    content = block.read_bytes()
    block.unlink()
    write_header_file(wrong.folder / "run.json", {**wrong.header, "status": "running"})
    (path,) = (wrong.folder / "starts").iterdir()
    facts = json.loads(path.read_text())
    facts.pop("sha256")
    path.write_bytes(sealed_text({**facts, "status": "running"}))
    told = command("table", "--out", tmp_path)
    ended = f"{wrong.name} ended without a word (killed, or its disk was full) after 0 of 6 images"
    assert f"{ended}; type sanrobust rotate" in told.output
    alone = command("table", "-m", WRONG, "--out", tmp_path)
    assert alone.exit_code == OutputError.exit_code
    assert f"but {ended}: type sanrobust" in alone.output
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        told = command("table", "--out", tmp_path)
        assert f"{wrong.name} is being measured now, 0 of 6 images so far" in told.output
    block.write_bytes(content)
    told = command("table", "--out", tmp_path)
    assert told.exit_code == 0 and "not in the table" not in told.output


def test_survivors_are_no_result(command: Command, images: Path, tmp_path: Path) -> None:
    result = command("rotate", "-m", "grey_models:most_fail", "--data", images, "--out", tmp_path)
    assert result.exit_code == FailedImagesError.exit_code
    assert "5 of 6 did with grey_models:most_fail" in result.output
    screen = " ".join(result.stdout.split())
    assert "Images that failed: 5 of 6 (grey_models:most_fail): the model's logits" in screen
    assert "over all 6 images" in screen
    (row,) = pd.read_csv(tmp_path / "rotation.csv").to_dict(orient="records")
    assert (row["n"], row["failed"], row["none_top1"]) == (1, 5, 100.0)
    assert row["none_top1_all"] == pytest.approx(100 / 6)
    assert list(json.loads(row["reasons"]).values()) == [5]
    for suffix in ("md", "tex"):
        text = (tmp_path / f"rotation.{suffix}").read_text()
        assert "over all 6 images" in text and "they count against the model" in text


def test_how_many_images_may_fail_is_an_option_that_changes_no_number(
        command: Command, images: Path, tmp_path: Path) -> None:
    arguments = ("pgd", "-m", "grey_models:one_fails", "--data", images, "--out", tmp_path)
    strict, lax = command(*arguments), command(*arguments, "--max-failed", 0.2)
    assert strict.exit_code == FailedImagesError.exit_code and lax.exit_code == 0
    assert strict.stdout == lax.stdout
    rows = pd.read_csv(tmp_path / "pgd.csv")
    assert rows["clean_top1"].tolist() == [100.0] * 2
    assert rows["clean_top1_all"].tolist() == pytest.approx([500 / 6] * 2)
    reached = rows["success"] * 5 / 6 + 100 / 6
    assert rows["success_all"].tolist() == pytest.approx(reached.tolist())


def test_survivors_are_not_the_best_of_a_group(command: Command, images: Path,
                                               tmp_path: Path) -> None:
    result = command("rotate", "-m", "grey_models:wrong", "-m", "grey_models:blind", "-m",
                     "grey_models:one_fails", "--data", images, "--out", tmp_path,
                     "--max-failed", 1)
    starred = {line.split()[0] for line in result.stdout.splitlines()
               if "*" in line.partition("Zero-shot")[0] and line.startswith("grey")}
    assert starred == {"grey_models:blind"}


def test_records_of_another_run_are_no_records_of_this_one(command: Command, images: Path,
                                                           tmp_path: Path) -> None:
    command("rotate", "-m", RIGHT, "-m", WRONG, "--data", images, "--out", tmp_path)
    right, wrong = find_runs(tmp_path, "rotate").runs
    for chunk in (wrong.folder / "records").iterdir():
        (right.folder / "records" / chunk.name).write_bytes(chunk.read_bytes())
    told = command("table", "--out", tmp_path)
    assert told.exit_code == OutputError.exit_code and "was measured for another one" in told.output
    assert shown(tmp_path / "rotation.csv") == [(WRONG, 6, 0.0)]
    again = command("rotate", "-m", RIGHT, "--data", images, "--out", tmp_path)
    assert again.exit_code == OutputError.exit_code


def test_a_run_without_its_header_and_a_renamed_one_are_not_hidden(
        command: Command, images: Path, tmp_path: Path) -> None:
    command("rotate", "-m", RIGHT, "-m", WRONG, "--data", images, "--out", tmp_path)
    right, wrong = find_runs(tmp_path, "rotate").runs
    (right.folder / "run.json").unlink()
    wrong.folder.rename(wrong.folder.with_name("zz"))
    told = command("table", "--out", tmp_path)
    assert told.exit_code == OutputError.exit_code and right.name in told.output
    assert shown(tmp_path / "rotation.csv") == [(WRONG, 6, 0.0)]
    (tmp_path / "runs" / "zz" / "run.json").write_text("[]")
    told = command("table", "--out", tmp_path)
    assert right.name in told.output and "zz" in told.output and "2 do not" in told.output


def test_a_message_names_the_folder_where_a_run_lies_now(command: Command, images: Path,
                                                         tmp_path: Path) -> None:
    command("rotate", "-m", RIGHT, "--data", images, "--out", tmp_path / "o")
    (tmp_path / "o").rename(tmp_path / "moved")
    (run,) = find_runs(tmp_path / "moved", "rotate").runs
    assert f"--out {tmp_path / 'moved'}" in run.again()
    assert run.again("--fresh").endswith("--fresh")


def test_a_gradient_that_is_zero_is_recorded_and_told(command: Command, images: Path,
                                                      tmp_path: Path) -> None:
    result = command("pgd", "-m", "grey_models:blind", "-m", RIGHT, "--data", images, "--out",
                     tmp_path)
    screen = " ".join(result.stdout.split())
    assert "grey_models:blind 100.0 %" in screen and "no sign of robustness" in screen
    rows = pd.read_csv(tmp_path / "pgd.csv").set_index("model")
    assert rows.loc["grey_models:blind", "no_gradient"].tolist() == [100.0, 100.0]
    assert rows.loc[RIGHT, "zero_gradient"].max() < 100.0
    records = find_runs(tmp_path, "pgd").runs[0].records()
    assert all(map(lambda part: set(part) == {1.0}, records["zero_gradient"]))


def test_what_was_assumed_of_a_model_stands_in_the_header_and_below_the_table(
        command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain.py").write_text(
        "from torch import nn\n"
        f"def make(): return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        f"nn.Linear(3, {CLASSES}))\n")
    monkeypatch.chdir(tmp_path)
    result = command("rotate", "-m", "plain:make", "--data", images, "--out", tmp_path / "o")
    (run,) = find_runs(tmp_path / "o", "rotate").runs
    (remark,) = run.remarks()
    assert "plain:make" in remark and "--no-normalize" in remark
    assert " ".join(remark.split()) in " ".join(result.stdout.split())


def test_a_model_that_is_no_function_of_one_image_is_told(command: Command, images: Path,
                                                          tmp_path: Path) -> None:
    result = command("rotate", "-m", "grey_models:noisy", "--data", images, "--out", tmp_path)
    (run,) = find_runs(tmp_path, "rotate").runs
    assert [remark for remark in run.remarks() if remark.startswith("grey_models:noisy: ")]
    assert "grey_models:noisy: " in " ".join(result.stdout.split())


def test_grey_levels_are_apart() -> None:
    assert len({level(label) for label in LABELS}) == CLASSES
