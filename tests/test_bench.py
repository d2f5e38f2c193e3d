"""The benchmark: which samples count, what lands in its files, how it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from conftest import Command
from sanrobust.bench import contender, machine, models, operators, peak
from sanrobust.bench.contender import Contender
from sanrobust.bench.results import SAMPLE_COLUMNS, SUMMARY_COLUMNS, Results
from sanrobust.bench.samples import (MOST_ROUNDS, Case, Sample, alternate, best_rate, healthy,
                                     summarise)
from sanrobust.bench.settings import COMPILED, CONTENDERS, STEPS, Settings, Shape
from sanrobust.bench.unfold import attention_by
from sanrobust.cli import main

TINY = Shape(batch_size=2, img_size=32)
MODEL = "san10-pair.untrained-small"
CASE = Case("model", "san", "forward", 8)


def sample(name: str, seconds: float, before: float = 100.0, after: float = 100.0) -> Sample:
    return Sample(CASE, name, 0, seconds, before, after)


@pytest.mark.parametrize(("before", "after", "expected"), [
    (100.0, 100.0, True), (85.0, 85.0, True), (84.9, 100.0, False), (100.0, 84.9, False)])
def test_a_sample_counts_when_the_probe_was_fast_on_both_sides(before: float, after: float,
                                                               expected: bool) -> None:
    assert healthy(sample("ours", 1.0, before, after), best=100.0) is expected


def test_no_samples_have_no_best_rate() -> None:
    assert best_rate([]) == 0.0


def test_a_summary_is_the_median_of_healthy_samples_alone() -> None:
    samples = [sample("ours", 2.0), sample("ours", 1.0), sample("ours", 4.0),
               sample("ours", 90.0, after=50.0)]
    (summary,) = summarise(samples)
    assert (summary.seconds, summary.fastest, summary.slowest) == (2.0, 1.0, 4.0)
    assert (summary.samples, summary.rejected) == (3, 1)
    assert summary.images_per_second == 4.0


def test_a_faster_probe_later_in_the_run_rejects_earlier_samples() -> None:
    early = sample("ours", 1.0, before=80.0, after=80.0)
    assert summarise([early])[0].samples == 1
    late = replace(sample("ours", 1.0), case=replace(CASE, step="attack"))
    assert [each.samples for each in summarise([early, late])] == [0, 1]


def test_ours_is_compared_within_its_own_case() -> None:
    other = replace(CASE, name="another")
    samples = [sample("ours", 2.0), sample("unfold", 12.0),
               replace(sample("unfold", 5.0), case=other)]
    assert [each.ours_faster for each in summarise(samples)] == [1.0, 6.0, None]


def test_nothing_is_made_up_without_a_healthy_sample() -> None:
    throttled, fine = sample("ours", 9.0, before=10.0), sample("unfold", 1.0)
    ours, unfold = summarise([throttled, fine])
    assert ours.seconds is None and ours.images_per_second is None and ours.rejected == 1
    assert unfold.ours_faster is None


class Machine:
    """Contenders and a probe that write down the order in which they are called."""

    def __init__(self, rates: Callable[[int], float] = lambda _: 100.0) -> None:
        self.log: list[str] = []
        self._rates = rates
        self._probed = 0

    def probe(self) -> float:
        self._probed += 1
        self.log.append("probe")
        return self._rates(self._probed)

    def call(self, name: str) -> Callable[[], float]:
        def timed() -> float:
            self.log.append(name)
            return 1.0
        return timed


def race(machine: Machine, repeats: int, names: str = "ab") -> list[Sample]:
    calls = {name: machine.call(name) for name in names}
    return alternate(CASE, calls, machine.probe, repeats=repeats)


def test_contenders_take_turns_between_probes() -> None:
    machine = Machine()
    samples = race(machine, repeats=2)
    assert machine.log == ["probe", "a", "probe", "b", "probe", "b", "probe", "a", "probe"]
    assert [(each.contender, each.round) for each in samples] == [
        ("a", 0), ("b", 0), ("b", 1), ("a", 1)]


def test_a_throttled_sample_is_taken_again() -> None:
    # The third probe is slow: it follows the first sample of b and precedes the second.
    samples = race(Machine(lambda probe: 50.0 if probe == 3 else 100.0), repeats=2)
    good = [each.contender for each in samples if healthy(each, 100.0)]
    assert good.count("a") == good.count("b") == 2 and len(samples) == 6


def test_a_machine_that_stays_slow_ends_the_rounds() -> None:
    # A short burst at the very start sets a rate that is never reached again.
    samples = race(Machine(lambda probe: 200.0 if probe == 1 else 100.0), repeats=2, names="a")
    assert len(samples) == 2 * MOST_ROUNDS


def test_a_rate_known_from_elsewhere_counts() -> None:
    slow = Machine()
    samples = alternate(CASE, {"a": slow.call("a")}, slow.probe, repeats=1, known=200.0)
    assert len(samples) == MOST_ROUNDS
    assert summarise(samples)[0].samples == MOST_ROUNDS
    assert summarise(samples, known=200.0)[0].samples == 0


@pytest.mark.parametrize(("together", "alone", "warned"), [
    (100.0, 100.0, False), (80.0, 100.0, True), (80.0, None, False)])
def test_threads_that_do_not_add_up_are_told(monkeypatch: pytest.MonkeyPatch, together: float,
                                             alone: float | None, warned: bool) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    limits = machine.Limits(probe="", arithmetic=together, one_thread=alone, matmul=1.0,
                            convolution=1.0, copy=1.0)
    reason = machine.shortfall(limits)
    assert (reason is not None) is warned
    assert reason is None or "80 GFLOP/s" in reason


def test_without_native_kernels_a_matrix_product_is_the_probe(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.library, "load", lambda: None)
    monkeypatch.setitem(machine._PROBE_SIDES, "cpu", 64)
    name, probe = machine.make_probe(torch.device("cpu"), torch.float32)
    assert "side 64" in name and probe() > 0


def test_the_first_call_is_no_part_of_a_limit() -> None:
    waits = iter([0.3, *[0.001] * 1000])
    rate = machine._gflops(10 ** 9, lambda: time.sleep(next(waits)), torch.device("cpu"), 0.01)
    assert rate > 1 / 0.1


@pytest.fixture(scope="module")
def tiny_operators() -> list[operators.Operator]:
    return list(operators.operators(TINY))


def test_operators_cover_the_stages_that_small_images_allow(
        tiny_operators: list[operators.Operator]) -> None:
    assert [each.name for each in tiny_operators] == [
        f"{kind} {shape}" for shape in ("C64 16x16 k3", "C256 8x8 k7", "C512 4x4 k7")
        for kind in ("pairwise", "patchwise")]


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("step", STEPS)
def test_every_formulation_of_an_operator_is_the_same_function(
        tiny_operators: list[operators.Operator], index: int, step: str) -> None:
    names = tuple(name for name in CONTENDERS if name != COMPILED)
    computed = {each.name: each.calls[step]()
                for each in operators.contenders(tiny_operators[index], names)}
    assert set(computed) == {"ours", "plain", "unfold"}
    for found in computed.values():
        # Sums of 49 products in float32, in another order.
        torch.testing.assert_close(found, computed["plain"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", [MODEL, "san10-patch.untrained-small"])
def test_every_formulation_of_a_model_is_the_same_function(name: str, step: str) -> None:
    classifier = models.load(name, TINY)
    computed = [models.contender(formulation, classifier, TINY).calls[step]()
                for formulation in ("ours", "plain", "unfold")]
    for found in computed[1:]:
        # A network of ten blocks in float32, in another order.
        torch.testing.assert_close(found, computed[0], rtol=1e-3, atol=1e-5)


def test_all_resnets_are_the_same_function() -> None:
    classifier = models.load(MODEL, TINY)
    planes, *others = (models.contender(name, classifier, TINY).calls["forward"]()
                       for name in ("resnet50", "resnet50-nhwc", "resnet50-folded"))
    for rows in others:
        # Logits of an untrained ResNet50 are of order 10; float32 in another order.
        torch.testing.assert_close(rows, planes, rtol=1e-3, atol=1e-3)


def test_a_network_without_attention_has_no_other_formulations() -> None:
    assert [name for name in CONTENDERS if models.contends(name, nn.Linear(1, 1))] == [
        "ours", "resnet50", "resnet50-nhwc", "resnet50-folded"]


def test_a_network_whose_norms_are_folded_is_plain_as_it_is_written() -> None:
    classifier = models.load("resnet26", TINY)
    assert models.contends("plain", classifier.network)
    plain, ours = (models.contender(name, classifier, TINY) for name in ("plain", "ours"))
    assert (plain.computed_by, "folded" in ours.computed_by) == ("as written", True)
    torch.testing.assert_close(ours.calls["forward"](), plain.calls["forward"](), rtol=1e-3,
                               atol=1e-3)


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


def run(folder: Path, *arguments: str) -> Path:
    """Run the command on the smallest case, without waiting for good figures."""
    with pytest.MonkeyPatch.context() as hurry:
        hurry.setattr(contender, "SAMPLE_SECONDS", 0.0)
        hurry.setattr(machine, "LIMIT_SECONDS", 0.0)
        result = CliRunner().invoke(main, [
            "bench", *arguments, "-m", MODEL, "-b", "2", "--img-size", "32", "--repeats", "1",
            "--device", "cpu", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    (folder / "screen.txt").write_text(result.output)
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a short run of operators and models."""
    return run(tmp_path_factory.mktemp("bench"), "operators", "models", "-c", "ours", "-c",
               "unfold")


def test_memory_is_measured_for_both_steps(tmp_path: Path) -> None:
    run(tmp_path, "memory", "-c", "ours")
    found = list(rows(tmp_path / "bench.csv"))
    assert [row["step"] for row in found] == list(STEPS)
    forward, attack = (int(row["net_bytes"]) for row in found)
    # A gradient needs what the forward pass leaves behind.
    assert 0 < forward < attack
    assert all(row["computed_by"] and not row["failure"] for row in found)
    assert "Memory above" in (tmp_path / "screen.txt").read_text()


def test_memory_is_that_of_the_running_package_wherever_the_command_is_typed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sanrobust").mkdir()
    (tmp_path / "sanrobust/__init__.py").write_text("raise SystemExit('another package')\n")
    monkeypatch.chdir(tmp_path)
    out = run(tmp_path / "out", "memory", "-c", "ours")
    assert [row["failure"] for row in rows(out / "bench.csv")] == ["", ""]


def test_the_summary_has_a_row_for_each_case_and_contender(out: Path) -> None:
    found = list(rows(out / "bench.csv"))
    assert tuple(found[0]) == SUMMARY_COLUMNS
    assert len(found) == (6 + 1) * len(STEPS) * 2
    keys = {(row["kind"], row["name"], row["step"], row["contender"]) for row in found}
    assert len(keys) == len(found)
    assert all(int(row["samples"]) + int(row["rejected"]) >= 1 for row in found)


def test_every_sample_is_in_the_files(out: Path) -> None:
    found = list(rows(out / "samples.csv"))
    assert tuple(found[0]) == SAMPLE_COLUMNS
    counted = sum(int(row["samples"]) + int(row["rejected"]) for row in rows(out / "bench.csv"))
    assert len(found) == counted
    assert all(float(row["seconds"]) > 0 and row["healthy"] in ("True", "False") for row in found)


def test_the_facts_tell_machine_and_method(out: Path) -> None:
    facts = json.loads((out / "bench.json").read_text())
    assert facts["settings"]["shape"]["batch_size"] == 2
    assert facts["limits"]["arithmetic"] > 0 and facts["limits"]["copy"] > 0
    assert facts["environment"]["versions"]["torch"] == metadata.version("torch")
    assert facts["allocator"]


def test_the_screen_shows_what_was_measured(out: Path) -> None:
    text = (out / "screen.txt").read_text()
    for words in ("Models, images/s", "Operators, milliseconds", MODEL, "were rejected"):
        assert words in text


def test_a_plot_is_drawn_of_what_was_timed(out: Path) -> None:
    with open(out / "bench.csv", encoding="utf-8") as stream:
        timed = any(int(row["samples"]) for row in csv.DictReader(stream))
    picture = out / "bench.png"
    # A busy machine may have every sample rejected.
    assert picture.read_bytes().startswith(b"\x89PNG") if timed else not picture.exists()


@pytest.mark.parametrize(("ending", "words"), [
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9 ended its process"),
    ("raise SystemExit('no such thing')", "no such thing"), ("raise SystemExit(3)", "failed")])
def test_a_process_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch,
                                                       ending: str, words: str) -> None:
    started = subprocess.run

    def fail(*_: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return started([sys.executable, "-c", ending], **options)

    monkeypatch.setattr(subprocess, "run", fail)
    settings = Settings(models=(MODEL,), contenders=("ours",), shape=TINY)
    peaks = list(peak.measure_peaks(settings, MODEL))
    assert len(peaks) == len(STEPS)
    assert all(each.net is None and words in (each.failure or "") for each in peaks)


def test_what_was_refused_is_in_the_summary(tmp_path: Path) -> None:
    results = Results(Settings(out=tmp_path), facts={}, threads=1,
                      refused={(CASE, "unfold"): "it needs too much"})
    results.write()
    (row,) = rows(tmp_path / "bench.csv")
    assert row["failure"] == "it needs too much" and row["median_s"] == ""


@pytest.mark.parametrize(("arguments", "exit_code", "words"), [
    (("everything",), 2, "everything"),
    (("-m", "san10-pare"), 2, "did you mean san10-pair?"),
    (("-m", "san10-pair", "--img-size", "96"), 2, "at least 128x128"),
    (("-c", "others"), 2, "others"),
    (("--repeats", "0"), 2, "--repeats"),
    (("--threads", "100000"), 2, "the cores of this process"),
    (("--device", "cpu", "--dtype", "float16"), 2, "--dtype must be float32 on a CPU"),
    (("--device", "gpu"), 2, "--device cpu"),
    (("--device", "cuda:99"), 7, "--device cpu"),
    (("operators", "-c", "resnet50"), 2, "one of ours, plain, unfold, compiled,"),
    (("models", "-c", "resnet26"), 2, "only resnet26 was named: add -c ours"),
    (("memory", "-c", "torchattacks"), 2, "only torchattacks was named"),
    (("models", "training", "-c", "unfold"), 2, "one of ours, checkpointed, plain, resnet26,"),
    (("training", "--compile"), 2, "--compile must have models or memory"),
    (("training", "--formulation", "os:getcwd"), 2, "--formulation must have models"),
])
def test_bad_options_are_refused_at_once(command: Command, tmp_path: Path,
                                         arguments: tuple[str, ...], exit_code: int,
                                         words: str) -> None:
    result = command("bench", *arguments, "--out", tmp_path / "out")
    assert result.exit_code == exit_code, result.output
    assert words in result.output and not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ("models", "memory"))
def test_a_model_without_contenders_is_named(command: Command, tmp_path: Path, part: str) -> None:
    result = command("bench", part, "-m", "resnet26", "-c", "unfold", "--img-size", "32",
                     "-b", "1", "--repeats", "1", "--out", tmp_path)
    assert result.exit_code == 2 and "resnet26 must have a contender" in result.output
    assert "resnet26: no contender named" in result.output, result.output
    assert not (tmp_path / "bench.png").exists()


def test_help_names_every_contender(command: Command) -> None:
    output = command("bench", "--help").output
    assert all(name in output for name in CONTENDERS)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    from sanrobust.bench.run import _Bench

    def broken() -> None:
        raise RuntimeError("shapes differ")

    bench = _Bench(Results(Settings(shape=TINY), {}, 1), torch.device("cpu"), lambda: 1.0, print)
    with pytest.raises(RuntimeError, match="shapes differ"):
        bench._timer(CASE, Contender("ours", {"forward": broken}, ""))


def test_a_contender_out_of_memory_is_noted_and_the_others_go_on() -> None:
    from sanrobust.bench.run import _Bench

    def full() -> None:
        raise torch.OutOfMemoryError("no room")

    results = Results(Settings(shape=TINY), {}, 1)
    bench = _Bench(results, torch.device("cpu"), lambda: 1.0, print)
    assert bench._timer(CASE, Contender("ours", {"forward": full}, "")) is None
    assert results.refused == {(CASE, "ours"): "it does not fit into memory"}


@pytest.mark.parametrize("model", ["san10-pair.untrained-small", "san10-patch.untrained-small"])
def test_the_reference_that_is_compiled_computes_the_same(model: str) -> None:
    classifier, pixels = models.load(model, TINY), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = classifier(pixels)
        with attention_by(models._reference_attention, classifier.network):
            torch.testing.assert_close(classifier(pixels), expected, rtol=1e-4, atol=1e-5)
