"""Studies: what is trained, what is kept, and how runs are averaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from conftest import Command
from sanrobust import study
from sanrobust.design import AttentionConfig
from sanrobust.errors import (Interrupted, MachineError, ProtocolError, SanrobustError,
                              UnknownNameError, UsageError)
from sanrobust.experiments.pgd import PGD
from sanrobust.experiments.rotation import ROTATION
from sanrobust.metrics import seed_interval
from sanrobust.progress import Reporter
from sanrobust.study import DESIGN_SPACE, Study, average, run_study, study_command
from sanrobust.training.job import TrainingJob
from sanrobust.training.recipes import Recipe
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.forms import small_config
from sanrobust.zoo.names import canonical

SHORT = Recipe(epochs=1)


def quiet() -> Reporter:
    return Reporter(say=lambda text: None)


def test_the_interval_over_seeds_is_students() -> None:
    values = [41.0, 44.5, 39.25]
    mean, low, high = seed_interval(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((sum(values) / 3, expected.low, expected.high))


def test_the_interval_stays_within_a_percentage() -> None:
    assert seed_interval([99.0, 100.0])[2] == 100.0
    assert seed_interval([0.0, 3.0])[1] == 0.0


def test_one_run_has_no_interval() -> None:
    mean, low, high = seed_interval([50.0])
    assert mean == 50.0 and low != low and high != high


def test_runs_of_an_architecture_are_averaged_per_budget() -> None:
    names = ["a(x=1).s0", "a(x=1).s1", "b.s0", "b.s1"]
    rows = pd.DataFrame([
        {"model": name, "data": "d", "n": 10, "failed": place, "eps": 8.0, "step": step,
         "iters": 2, "success": 10.0 * place + step, "success_low": 0.0, "success_high": 100.0,
         "mean_linf": 6.0 + place}
        for place, name in enumerate(names) for step in (2.0, 4.0)])
    found = average(PGD, rows, ["b", "a(x=1)"])
    assert [(row["model"], row["step"], row["success"]) for row in found] == [
        ("b", 2.0, 27.0), ("b", 4.0, 29.0), ("a(x=1)", 2.0, 7.0), ("a(x=1)", 4.0, 9.0)]
    assert found[0]["failed"] == 5 and found[0]["mean_linf"] == 8.5 and found[0]["seeds"] == 2
    assert found[2]["success_low"] == 0.0 and 50 < float(str(found[2]["success_high"])) <= 100


def test_an_average_is_over_one_dataset_and_counts_each_training_run_once() -> None:
    rows = pd.DataFrame([
        {"model": f"b.s{seed}", "data": data, "n": 10, "failed": 0, "none_top1": top1 + seed,
         "none_top1_low": 0.0, "none_top1_high": 100.0}
        for data, top1 in (("d", 10.0), ("e", 90.0)) for seed in (0, 1)])
    found = average(ROTATION, rows, ["b"])
    assert [(row["data"], row["none_top1"], row["seeds"]) for row in found] == [
        ("d", 10.5, 2), ("e", 90.5, 2)]
    with pytest.raises(ProtocolError, match="b.s0 stands twice"):
        average(ROTATION, pd.concat([rows, rows.iloc[:1]]), ["b"])


def test_rates_over_all_images_are_averaged_where_a_run_has_failed_ones() -> None:
    rows = pd.DataFrame([{"model": f"b.s{seed}", "data": "d", "n": 10 - seed, "failed": seed,
                          "none_top1": 50.0, "none_top1_low": 0.0, "none_top1_high": 100.0,
                          "none_top1_all": 45.0 if seed else None} for seed in (0, 1)])
    (found,) = average(ROTATION, rows, ["b"])
    assert (found["none_top1"], found["none_top1_all"], found["failed"]) == (50.0, 47.5, 1)


def test_the_design_space_is_tables_4_and_8_and_the_convolution() -> None:
    assert DESIGN_SPACE == tuple(map(canonical, DESIGN_SPACE))
    designs = [form.design for form in map(small_config, DESIGN_SPACE)
               if isinstance(form, SanConfig)]
    pairwise = AttentionConfig()
    relations = {d.relation for d in designs if d == replace(pairwise, relation=d.relation)}
    positions = {d.position for d in designs if d == replace(pairwise, position=d.position)}
    patchwise = {d.relation for d in designs if d.attention == "patchwise"}
    assert relations == {"summation", "subtraction", "concatenation", "hadamard", "dot"}
    assert positions == {"none", "absolute", "relative"}
    assert patchwise == {"star", "clique", "concatenation"}
    assert len(DESIGN_SPACE) == 1 + 5 + 2 + 3


def test_a_study_needs_two_seeds(command: Command) -> None:
    with pytest.raises(UsageError, match="at least two seeds"):
        run_study(Study(seeds=1), quiet())
    assert command("study", "--seeds", "1").exit_code == UsageError.exit_code


def test_a_mistyped_design_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="hadamard"):
        run_study(Study(models=("resnet26", "san10-pair(relation=hadamar)"), out=tmp_path),
                  quiet())
    assert not list(tmp_path.iterdir())


def test_the_command_in_a_table_makes_the_same_study() -> None:
    assert study_command(Study()) == "sanrobust study"
    other = Study(models=("san10-pair(position=none)",), seeds=2, recipe=SHORT, out=Path("x"))
    assert study_command(other) == ("sanrobust study --model 'san10-pair(position=none)' "
                                    "--seeds 2 --out x --epochs 1")


def test_a_training_that_diverges_is_one_sentence(tmp_path: Path,
                                                  capfd: pytest.CaptureFixture[str]) -> None:
    lost = Study(models=("resnet26",), seeds=6, recipe=replace(SHORT, lr=1e19), out=tmp_path)
    with pytest.raises(SanrobustError, match="the training loss must be a finite number"):
        run_study(lost, quiet())
    assert "Traceback" not in capfd.readouterr().err


def test_a_study_trains_measures_averages_and_goes_on_where_it_was(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Study(models=("resnet26",), seeds=2, recipe=SHORT, out=tmp_path, processes=2)
    found = run_study(small, quiet())
    per_run = pd.read_csv(tmp_path / "rotation.csv")
    mean = pd.read_csv(tmp_path / "rotation_mean.csv")
    assert list(per_run["model"]) == ["resnet26.s0", "resnet26.s1"]
    assert per_run["weights"].nunique() == 2
    assert mean["cw90_top1"].tolist() == pytest.approx([per_run["cw90_top1"].mean()])
    assert found.tables[1].rows["iters"].tolist() == [2, 4]
    assert "t-intervals over training seeds" in (tmp_path / "pgd_mean.md").read_text("utf-8")

    def refuse(*args: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(study, "ProcessPoolExecutor", refuse)
    again = run_study(small, quiet())
    assert again.tables[0].rows.equals(found.tables[0].rows)
    with pytest.raises(AssertionError, match="trained again"):
        run_study(replace(small, recipe=replace(SHORT, lr=0.01)), quiet())


def _die(job: TrainingJob) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_a_network_whose_process_is_killed_is_told_in_a_sentence(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_train_one", _die)
    monkeypatch.setattr(study, "get_context", lambda _: multiprocessing.get_context("fork"))
    with pytest.raises(MachineError, match="ended from outside.*fewer --processes"):
        run_study(Study(models=("resnet26",), seeds=2, out=tmp_path), quiet())


def test_a_stopped_study_says_how_to_go_on(tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        def __init__(self, *args: object) -> None:
            pass

        def submit(self, *args: object) -> None:
            raise KeyboardInterrupt

        def shutdown(self, **settings: object) -> None:
            pass

    monkeypatch.setattr(study, "ProcessPoolExecutor", Stopped)
    with pytest.raises(Interrupted, match="type the same command again"):
        run_study(Study(models=("resnet26",), out=tmp_path), quiet())
