"""Models held against each other on the same images."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Command
from scipy.stats import ttest_rel
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from sanrobust import compare
from sanrobust.comparison import PREFIX, Comparison, Difference
from sanrobust.errors import ThresholdError, UsageError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.metrics import holm, paired_difference
from sanrobust.runs import find_runs

A, B = "resnet26.digits", "san10-pair.digits"


def by_image(values: object) -> pd.Series[float]:
    return pd.Series(np.asarray(values))


def test_means_are_compared_as_by_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (2, 40)) / 5
    found, test = paired_difference(by_image(a), by_image(b)), ttest_rel(a, b)
    bounds = test.confidence_interval(0.95)
    assert found.of_means and found.p_value == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((100 * bounds.low, 100 * bounds.high))
    assert found.difference == pytest.approx(100 * (a - b).mean())
    assert (found.only_a, found.only_b) == ((a > b).sum(), (a < b).sum())


@pytest.mark.parametrize(("change", "p"), [(0.0, 1.0), (0.2, 0.0)])
def test_means_that_all_change_alike(change: float, p: float) -> None:
    b = by_image(np.linspace(0, 0.5, 8))
    assert paired_difference(b + change, b).p_value == pytest.approx(p, abs=1e-12)


# 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04, which may not be less than the one before.
@pytest.mark.parametrize(("p", "adjusted"), [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]), ([0.5, 0.9], [1.0, 1.0]),
    ([0.02, math.nan, 0.01], [0.02, math.nan, 0.02]), ([], [])])
def test_holm_multiplies_by_the_tests_that_are_left(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted, nan_ok=True)


def test_p_is_that_of_statsmodels_alone_and_adjusted() -> None:
    rng = np.random.default_rng(1)
    found = [paired_difference(by_image(rng.random(200) < 0.5), by_image(rng.random(200) < share))
             for share in (0.5, 0.55, 0.6, 0.65, 0.7)]
    p_values = [each.p_value for each in found]
    assert p_values == pytest.approx([
        mcnemar([[0, each.only_a], [each.only_b, 0]], exact=True).pvalue for each in found])
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())
    assert min(p_values) < 0.01 < max(p_values)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(0.1, 0.1, 100), (0.02, 0.1, 100),
                                                     (0.3, 0.2, 50), (0.01, 0.01, 451)])
def test_the_interval_covers_the_true_difference(only_a: float, only_b: float, n: int) -> None:
    rng, covered = np.random.default_rng(0), []
    for _ in range(600):
        draws = rng.random(n)
        found = paired_difference(by_image(draws < only_a),
                                  by_image((draws >= only_a) & (draws < only_a + only_b)))
        covered.append(found.low <= 100 * (only_a - only_b) <= found.high)
    # At 95 % fewer than 93 % of 600 are covered once in 90 times; the draws are always the same.
    assert np.mean(covered) >= 0.93


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models under every experiment, on a few digits."""
    from click.testing import CliRunner

    from sanrobust.cli import main
    out = tmp_path_factory.mktemp("measured")

    def typed(*words: object) -> None:
        result = CliRunner().invoke(main, [*map(str, words), "--out", str(out)])
        assert result.exit_code == 0, result.output

    few, both = ("--num-samples", 8), ("-m", A, "-m", B)
    typed("rotate", *both, *few)
    typed("pgd", *both, *few, "--save-adversarial")
    typed("spatial", *both, *few, "--grid", "3x3x3", "--angles", "-45,0,45")
    typed("accuracy", *both, *few)
    typed("corrupt", *both, *few, "--corruptions", "contrast,brightness", "--severities", "1,5")
    folder = next(each.folder for each in find_runs(out, "pgd").runs if each.spec["model"] == A)
    typed("replay", folder, *both)
    return out


@pytest.mark.parametrize("experiment", EXPERIMENTS.names())
def test_outcomes_are_those_behind_the_rates_of_the_table(measured: Path, experiment: str) -> None:
    kind = EXPERIMENTS.get(experiment)
    assert kind.outcomes is not None
    for run in find_runs(measured, experiment).runs:
        records = run.records(kind.records.read)
        rows = {tuple(row[name] for name in kind.layout.parts): row
                for row in kind.summarise(records, run.settings)}
        named = set()
        for outcome in kind.outcomes(records, run.settings):
            row = rows[outcome.part] if outcome.part else next(iter(rows.values()))
            known = outcome.holds.dropna().astype(float)
            rate = 100 * known.mean() if len(known) else math.nan
            assert row[outcome.name] == pytest.approx(rate, nan_ok=True), outcome.name
            assert len(outcome.holds) == 8
            named.add(outcome.name)
        printed = {measure.key.rpartition(":")[2] for head in kind.layout.heads(list(rows))
                   for measure in head.measures} & set(kind.layout.rates)
        whole = {name for name in printed if not math.isnan(float(next(iter(rows.values())).get(
            name, math.nan) or math.nan))}
        assert whole <= named


@pytest.mark.parametrize("experiment", EXPERIMENTS.names())
def test_every_experiment_compares(measured: Path, experiment: str) -> None:
    made = compare(measured, experiment, [A, B])
    other = compare(measured, experiment, [B, A])
    assert [row.found.difference for row in made.rows] == [
        -row.found.difference for row in other.rows]
    assert len(compare(measured, experiment, [A, B], everything=True).rows) >= len(made.rows) > 0
    assert all(path.exists() and path.name.startswith(PREFIX) for path in made.files)


def test_a_table_of_rotations(command: Command, measured: Path) -> None:
    result = command("compare", A, B, "--experiment", "rotate", "--out", measured)
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(measured / "compare_rotation.csv")
    assert len(rows) == 10 and set(rows["n"]) == {8}
    # Each rate is that of the table of the experiment.
    table = pd.read_csv(measured / "rotation.csv").set_index("model")
    for row in rows.itertuples():
        assert row.rate_a == pytest.approx(table.loc[A, row.rate])
        assert row.rate_b == pytest.approx(table.loc[B, row.rate])
    assert "first is resnet26.digits; second is san10-pair.digits" in " ".join(
        result.output.split())
    assert "Embedded demonstration" in result.output


def test_drops_are_compared_where_everything_is(measured: Path) -> None:
    made = compare(measured, "rotate", [A, B], everything=True)
    drops = [row for row in made.rows if row.rate.endswith("_drop")]
    assert len(drops) == 8 and len(made.rows) == 18
    assert drops[0].measure == "clockwise 90°: drop in top-1"
    table = pd.read_csv(measured / "rotation.csv").set_index("model")
    for row in drops:
        assert row.found.rate_a == pytest.approx(table.loc[A, row.rate])
        assert row.found.rate_b == pytest.approx(table.loc[B, row.rate])
        assert row.advantage == -row.found.difference  # a high drop is none


def test_pairs(measured: Path, command: Command) -> None:
    third = "san10-patch.digits"
    assert command("rotate", "-m", third, "--num-samples", 8, "--out", measured).exit_code == 0
    first = compare(measured, "rotate", [A, B, third])
    assert {(row.a, row.b) for row in first.rows} == {(A, B), (A, third)}
    every = compare(measured, "rotate", [A, B, third], all_pairs=True)
    assert len({(row.a, row.b) for row in every.rows}) == 3
    assert [row.found for row in every.rows][:20] == [row.found for row in first.rows]
    assert [row.holm for row in every.rows] == holm([row.found.p_value for row in every.rows])


def test_a_threshold(measured: Path, command: Command) -> None:
    made = compare(measured, "pgd", [A, B])
    lowest = min(row.advantage for row in made.rows)
    # A high success of the attack is no advantage.
    assert any(row.rate == "success" and row.advantage == -row.found.difference
               for row in made.rows)
    assert compare(measured, "pgd", [A, B], fail_under=lowest).problem is None
    assert isinstance(compare(measured, "pgd", [A, B], fail_under=lowest + 0.1).problem,
                      ThresholdError)
    result = command("compare", A, B, "--out", measured, "--experiment", "pgd", "--fail-under", 100)
    assert result.exit_code == 1 and "Measure" in result.output
    assert "advantage must be at least 100 points" in result.stderr


@pytest.mark.parametrize(("words", "told"), [
    (("rotate", "--num-samples", 7), "number of images: 8 and 7"),
    (("rotate", "--num-samples", 8, "--precision", "bfloat16"), "precision: float32 and bfloat16"),
    (("pgd", "--num-samples", 8, "--seed", 5), "seed: 0 and 5"),
    (("pgd", "--num-samples", 8, "--eps", 3, "--step", 1, "--iters", 2), "budgets"),
])
def test_runs_that_were_measured_otherwise_are_refused(
        command: Command, measured: Path, tmp_path: Path, words: tuple[object, ...], told: str
        ) -> None:
    out, name = tmp_path / "out", str(words[0])
    (out / "runs").mkdir(parents=True)
    run = next(each for each in find_runs(measured, name).runs if each.spec["model"] == A)
    shutil.copytree(run.folder, out / "runs" / run.name)
    assert command(*words, "-m", B, "--out", out).exit_code == 0
    result = command("compare", A, B, "--out", out)
    assert result.exit_code == 2 and told in result.stderr, result.stderr


@pytest.mark.parametrize(("models", "told"), [
    ((A,), "resnet26.digits alone is named"), ((A, "resnet26"), "named once"),
    ((A, "resnet99"), "there are resnet26.digits, san10-pair.digits"),
])
def test_names_that_cannot_be_meant(measured: Path, models: tuple[str, ...], told: str) -> None:
    with pytest.raises(UsageError) as error:
        compare(measured, "pgd", models)
    assert told in str(error.value)


def test_a_folder_names_a_run(measured: Path) -> None:
    runs = find_runs(measured, "pgd").runs
    made = compare(measured, "pgd", [run.name for run in runs])
    assert {(row.a, row.b) for row in made.rows} == {tuple(run.name for run in runs)}


def test_nothing_to_compare(command: Command, tmp_path: Path) -> None:
    for words in ((), ("--experiment", "rotate")):
        result = command("compare", "--out", tmp_path, *words)
        assert result.exit_code in (2, 6) and "sanrobust rotate" in result.stderr


def test_a_budget_that_one_alone_has_is_said(command: Command, measured: Path) -> None:
    assert command("pgd", "-m", A, "--num-samples", 8, "--eps", 3, "--step", 1, "--iters", 2,
                   "--out", measured).exit_code == 0
    made = compare(measured, "pgd", [A, B])
    assert len(made.rows) == 5
    words = "nly resnet26.digits was measured at n = 2, ε = 3, ρ = 1"
    assert made.told == ("o" + words,)
    told = "O" + words.partition(" = ")[0]
    assert all(told in path.read_text("utf-8") for path in made.files
               if path.suffix != ".csv")


def test_an_experiment_that_says_nothing_of_images_is_refused(
        measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = replace(EXPERIMENTS.get("rotate"), outcomes=None)
    monkeypatch.setattr("sanrobust.comparing.EXPERIMENTS", {"rotate": silent})
    with pytest.raises(UsageError, match="what holds of each image"):
        compare(measured, "rotate", [A, B])


def test_numbers_below_zero_have_a_minus_in_latex(measured: Path) -> None:
    made = compare(measured, "rotate", [A, B])
    if not any(row.found.low < 0 for row in made.rows):
        pytest.fail("eight images must leave an interval that reaches below zero")
    text = next(path for path in made.files if path.suffix == ".tex").read_text("utf-8")
    assert "$-$" in text and "[-" not in text


def test_no_experiment_passes_a_threshold_by_being_left_out(command: Command, measured: Path
                                                            ) -> None:
    third = "san15-pair.digits"
    assert command("rotate", "-m", third, "--num-samples", 8, "--out", measured).exit_code == 0
    result = command("compare", A, third, "--out", measured)
    assert result.exit_code == 0 and "pgd: no table, because none is of" in result.stderr
    for words in (("--fail-under", -100), ("--experiment", "rotate", "--experiment", "pgd")):
        result = command("compare", A, third, "--out", measured, *words)
        assert result.exit_code == 2 and "none is of 'san15-pair.digits'" in result.stderr


def test_no_rate_is_told_by_the_name_of_its_column(measured: Path) -> None:
    """Every rate of every experiment, in words."""
    for experiment in EXPERIMENTS.names():
        made = compare(measured, experiment, [A, B], everything=True)
        assert not [row.measure for row in made.rows if "_" in row.measure], experiment
        assert len({(row.variant, row.measure) for row in made.rows}) == len(made.rows)


def test_models_come_by_the_names_of_tables_and_a_mistyped_one_is_answered(
        command: Command, measured: Path) -> None:
    made = compare(measured, "rotate", ["ResNet26", "SAN10-pair (digits)"])
    assert {(row.a, row.b) for row in made.rows} == {(A, B)}
    result = command("compare", "san10-piar", A, "--experiment", "rotate", "--out", measured)
    assert result.exit_code == 2 and "did you mean san10-pair?" in result.stderr


@pytest.mark.parametrize(("name", "value", "words"), [
    *(("experiment", value, "must be a name") for value in (5, None, b"rotate", ["rotate"], {})),
    *(("models", value, "models must be names") for value in (5, [A, None], [[A]], b"a", [""])),
    *(("data", value, "data must be names") for value in (2.5, [5])),
    *(("out", value, "out must be a path") for value in (5, None, [], "")),
    *(("fail_under", value, "number of points") for value in ("a", [1], True, math.inf))])
def test_what_cannot_be_meant_is_refused(measured: Path, name: str, value: object, words: str
                                         ) -> None:
    given: dict[str, Any] = {"out": measured, "experiment": "rotate", name: value}
    with pytest.raises(UsageError, match=words):
        compare(**given)


def test_the_caption_breaks_no_name(measured: Path) -> None:
    made = compare(measured, "rotate", [A, B])
    long = "rotate-resnet26.digits-digits-7471eecfcb52"
    told = replace(made, told=(f"the run {long} takes no part",) * 9)
    assert told.text.count(long) == 9


def test_a_mistyped_dataset(command: Command, measured: Path) -> None:
    result = command("compare", A, B, "--out", measured, "--data", "digit")
    assert result.exit_code == 2 and "there are digits" in result.stderr


def copied(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(measured, tmp_path / "copied"))


def header(out: Path, experiment: str, model: str) -> Path:
    return next(run.folder / "run.json" for run in find_runs(out, experiment).runs
                if run.spec["model"] == model)


@pytest.mark.parametrize("words", [(), (B, A), (A,)])
def test_a_damaged_run_is_named(command: Command, measured: Path, tmp_path: Path,
                                words: tuple[str, ...]) -> None:
    out = copied(measured, tmp_path)
    assert command("rotate", "-m", "san15-pair", "--num-samples", 8, "--out", out).exit_code == 0
    path = header(out, "rotate", A)
    path.write_text("{", encoding="utf-8")
    result = command("compare", *words, "--experiment", "rotate", "--out", out)
    assert result.exit_code == 6 and path.parent.name in result.stderr
    # Of those left two can be compared, where they are not named.
    assert ("Paired comparison" in result.output) == (not words)


def test_an_unfinished_run_is_named(command: Command, measured: Path, tmp_path: Path) -> None:
    out, third = copied(measured, tmp_path), "san15-pair.digits"
    # One of two parts.
    assert command("accuracy", "-m", third, "--num-samples", 8, "--shard", "2/2", "--out", out
                   ).exit_code == 0
    every = command("compare", "--experiment", "accuracy", "--out", out)
    assert every.exit_code == 0 and f"not compared: accuracy-{third}" in every.stderr
    named = command("compare", A, third, "--experiment", "accuracy", "--out", out)
    assert named.exit_code == 2 and f"accuracy-{third}" in named.stderr
    assert "of 8 images" in named.stderr
    one = command("compare", third, B, "--experiment", "accuracy", "--out", out)
    assert one.exit_code == 2 and "complete run" in one.stderr


def test_every_experiment_says_why_it_has_no_table(command: Command, measured: Path) -> None:
    result = command("compare", A, "no-such", "--out", measured)
    assert result.exit_code == 2 and result.stdout == ""
    for name in ("pgd", "spatial", "accuracy", "corrupt"):
        assert f"{name}: no table, because none is of 'no-such'" in result.stderr


@pytest.mark.parametrize("value", ["nan", "inf", "101", "abc"])
def test_a_threshold_that_is_none(command: Command, measured: Path, value: str) -> None:
    result = command("compare", A, B, "--out", measured, "--fail-under", value)
    assert result.exit_code == 2 and "Paired" not in result.output
    assert "--fail-under must be" in result.stderr and "--fail-under -2" in result.stderr


def test_what_was_done_is_told_as_by_the_experiment(measured: Path) -> None:
    made = compare(str(measured), "corrupt", [A, B])
    table = " ".join((measured / "corruptions.md").read_text("utf-8").replace("\\", "").split())
    assert made.done and all(each[1:].rstrip(".") in table for each in made.done)


def test_a_path_names_a_run_and_models_come_by_name(measured: Path) -> None:
    folders = [str(run.folder) for run in find_runs(measured, "accuracy").runs]
    assert len(compare(measured, "accuracy", folders).rows) == 2
    assert {row.a for row in compare(measured, "accuracy").rows} == {A}


def test_runs_that_nothing_was_measured_like_are_named(command: Command, measured: Path,
                                                       tmp_path: Path) -> None:
    out = copied(measured, tmp_path)
    assert command("accuracy", "-m", A, "--num-samples", 7, "--out", out).exit_code == 0
    made = compare(out, "accuracy", [A, B])
    assert {row.found.n for row in made.rows} == {8}
    assert any("takes no part: no other model was measured like it" in each for each in made.told)


def test_a_model_has_one_set_of_weights(tmp_path: Path) -> None:
    """A budget that only older weights were measured at is theirs, and no number of the newer."""
    from torch import nn

    from sanrobust import Budget, DataConfig, Preprocessing, pgd

    def measure(model: object, *radii: float) -> None:
        pgd(model, data=DataConfig(num_samples=8), preprocessing=Preprocessing(img_size=32),
            budgets=[Budget(eps, 1, 1) for eps in radii], out=tmp_path)

    for radii in ((2, 4), (4,)):
        measure(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), *radii)
    names = {run.spec["model"] for run in find_runs(tmp_path, "pgd").runs}
    pgd(B, data=DataConfig(num_samples=8), budgets=[Budget(eps, 1, 1) for eps in (2, 4)],
        out=tmp_path)
    made = compare(tmp_path, "pgd", [*map(str, names), B])
    assert len(names) == 1 and len({row.measure for row in made.rows}) == 3
    assert not any("ε = 2" in row.measure for row in made.rows)
    assert any("takes no part" in each for each in made.told)
    assert any("only san10-pair.digits was measured at n = 1, ε = 2" in each for each in made.told)


def test_means_that_do_not_differ_have_no_interval() -> None:
    half = by_image([0.5, 0.5, 1.0])
    found = paired_difference(half, half)
    row = Difference(A, B, "digits", "", "error", "error", found, 1.0, False)
    text = Comparison("corrupt", (row,), (), (), ()).text
    assert math.isnan(row.found.low) and row.found.p_value == 1
    assert "66.7" in text and "[" not in text and "nan" not in text


def test_without_names_one_that_was_measured_otherwise_stops_nothing(
        command: Command, measured: Path, tmp_path: Path) -> None:
    """Nor is it the one that the others are held against, whatever its name."""
    out, other = copied(measured, tmp_path), "resnet38.digits"
    assert command("accuracy", "-m", "resnet26.untrained-small", "-m", other, "--num-samples", 7,
                   "--out", out).exit_code == 0
    assert command("accuracy", "-m", other, "--num-samples", 8, "--out", out).exit_code == 0
    made = compare(out, "accuracy")
    assert {(row.a, row.b, row.found.n) for row in made.rows} == {
        (other, A, 8), (other, B, 8), (other, "resnet26.untrained-small", 7)}
    result = command("compare", A, B, "resnet26.untrained-small", "--experiment", "accuracy",
                     "--out", out)
    assert result.exit_code == 2 and "number of images: 8 and 7" in result.stderr
    shutil.rmtree(next(run.folder for run in find_runs(out, "accuracy").runs
                       if run.spec["model"] == other and run.spec["images"] == 7))
    made = compare(out, "accuracy")
    assert "resnet26.untrained-small" not in {name for row in made.rows for name in (row.a, row.b)}
    (told,) = [each for each in made.told if each.startswith("not compared: ")]
    assert "resnet26.untrained-small" in told and "number of images: 8 and 7" in told
    with pytest.raises(UsageError, match="measured alike"):
        compare(out, "accuracy", fail_under=-100)
