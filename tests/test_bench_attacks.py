"""The benchmark of attacks: what is counted, what is compared, how it refuses."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attack_cases import batch, require_torchattacks, small_net
from click.testing import CliRunner
from torch import Tensor, nn

from conftest import Command
from sanrobust.bench import attacks, machine, plot
from sanrobust.bench.passes import Counted, effort_of
from sanrobust.bench.results import Results
from sanrobust.bench.samples import Case, Sample
from sanrobust.bench.settings import ATTACKS, OURS, TORCHATTACKS, Settings, Threat
from sanrobust.cli import main
from sanrobust.data.loader import Batch
from sanrobust.errors import UsageError

CPU = torch.device("cpu")
MODEL = "san10-pair.digits"
QUICK = ("--images", "4", "--iters", "2", "--queries", "3", "--repeats", "1", "--device", "cpu")


def gradient(net: nn.Module, images: Tensor) -> Tensor:
    pixels = images.clone().requires_grad_()
    return torch.autograd.grad(net(pixels).square().sum(), pixels)[0]


def test_a_counted_network_is_the_same_function_and_counts_images_both_ways() -> None:
    net, (images, _, _) = small_net(), batch(5)
    counted = Counted(net, CPU)
    assert torch.equal(counted(images), net(images))
    assert counted.images == {"forward": 5, "backward": 0}
    assert torch.equal(gradient(counted, images), gradient(net, images))
    assert counted.images == {"forward": 10, "backward": 5}
    with torch.no_grad():
        counted(images.clone().requires_grad_())
    assert counted.images == {"forward": 15, "backward": 5}


def test_the_way_back_is_timed_once_for_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("sanrobust.bench.passes.time.perf_counter", lambda: float(next(ticks)))
    net, (images, _, _) = small_net(), batch(4)
    counted = Counted(net, CPU)
    pixels = images.clone().requires_grad_()
    parts = torch.cat([counted(part) for part in pixels.split(2)])
    assert counted.seconds == 2  # from one tick to the next, two passes
    torch.autograd.grad(parts.sum(), pixels)
    # One pass after the other: each again takes a tick.
    assert counted.seconds == 4 and counted.images == {"forward": 4, "backward": 4}


def test_what_the_counting_takes_is_no_time_of_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("sanrobust.bench.passes.time.perf_counter", lambda: float(next(ticks)))
    net, (images, _, _) = small_net(), batch(3)
    effort = effort_of(lambda counted: gradient(counted, images), net, CPU, lambda _: 0.0)
    # The clock is read ten times; of the nine ticks two lie in the network and two in the counting.
    assert (effort.seconds, effort.model_seconds) == (7, 2)
    assert next(ticks) == 10


def test_an_effort_is_of_the_attack_as_a_whole() -> None:
    net, (images, _, _) = small_net(), batch(3)
    effort = effort_of(lambda counted: gradient(counted, images), net, CPU, lambda _: 12.5)
    assert 0 < effort.model_seconds <= effort.seconds
    assert 0 < effort.model_share <= 1 and effort.cpu_seconds > 0
    assert (effort.forward, effort.backward, effort.robust) == (3, 3, 12.5)
    assert effort.img_size == images.shape[-1]


@pytest.fixture
def place() -> attacks.Arena:
    """A small network, and images that it gets right."""
    net, (images, _, ids) = small_net().requires_grad_(False), batch(6)
    labels = net(images).argmax(1)
    threat = Threat(images=6, iters=3, queries=4, eps=16.0)
    return attacks.Arena("small", net, 4, "", Batch(tuple(ids), labels, images), threat, CPU)


def test_what_is_no_legal_image_has_not_been_broken(place: attacks.Arena) -> None:
    images = place.batch.pixels
    assert place.robust(images) == 100
    far = 1 - images
    assert place.robust(far) == 100
    other = replace(place, batch=replace(place.batch, labels=(place.batch.labels + 1) % 10))
    assert other.robust(images) == 0 and other.robust(images - 2) == 100


@pytest.mark.parametrize("name", Threat().attacks)
def test_both_sides_attack_the_same_images_within_the_ball(place: attacks.Arena, name: str
                                                           ) -> None:
    require_torchattacks()
    before = torch.random.get_rng_state()
    ours, theirs = attacks.attackers(place, (OURS, "plain", TORCHATTACKS))
    assert (ours.name, theirs.name) == (OURS, TORCHATTACKS)
    for side in (ours, theirs):
        made = side.calls[name]()
        assert isinstance(made, Tensor)
        assert made.shape == place.batch.pixels.shape
        assert (made - place.batch.pixels).abs().max() <= 16 / 255 + 1e-6
        effort = side.effort(name)
        assert effort.forward >= 6 and 0 <= effort.robust <= 100
        assert (effort.backward == 0) == (name == "square")
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_strength_of_their_suite_is_that_of_ours(place: attacks.Arena) -> None:
    require_torchattacks()
    made = attacks.their_attack("autoattack", place.network, place.threat)
    members = made._autoattack.attacks
    assert [getattr(each, "steps", None) for each in members] == [3, 3, 3, None]
    assert members[-1].n_queries == 4 and all(each.eps == 16 / 255 for each in members)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a short run."""
    require_torchattacks()
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as hurry:
        hurry.setattr(machine, "LIMIT_SECONDS", 0.0)
        result = CliRunner().invoke(main, [
            "bench", ATTACKS, "-m", MODEL, "--attack", "apgd-ce", "--attack", "autoattack", *QUICK,
            "--out", str(folder)])
    assert result.exit_code == 0, result.output
    (folder / "screen.txt").write_text(result.output)
    return folder


def test_there_is_a_row_for_each_attack_and_side(out: Path) -> None:
    with (out / "bench.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["kind"], row["name"], row["step"], row["contender"]) for row in rows] == [
        ("attack", MODEL, step, side) for step in ("apgd-ce", "autoattack")
        for side in (OURS, TORCHATTACKS)]
    for row in rows:
        assert row["batch_size"] == "4" and row["img_size"] == "32" and row["computed_by"]
        assert int(row["samples"]) + int(row["rejected"]) > 0 and not row["failure"]
        assert float(row["cpu_s"]) > 0 and 0 < float(row["model_share"]) <= 1
        assert float(row["model_s"]) <= float(row["counted_s"])
        assert int(row["forward_images"]) >= int(row["backward_images"]) > 0
        assert 0 <= float(row["robust_top1"]) <= 100


def test_the_screen_shows_both_sides_and_what_was_counted(out: Path) -> None:
    text = (out / "screen.txt").read_text()
    for words in ("Attacks on 4 digits", "in the network", TORCHATTACKS, "robust", "(x"):
        assert words in text


def test_every_attack_is_a_panel_of_the_plot(tmp_path: Path) -> None:
    cases = [Case("attack", MODEL, name, 16) for name in ("autoattack", "pgd")]
    samples = [Sample(case, side, 0, seconds, 100.0, 100.0) for case in cases
               for side, seconds in ((OURS, 2.0), (TORCHATTACKS, 5.0))]
    results = Results(Settings(out=tmp_path), {}, 1, samples=samples)
    path = plot.draw(results)
    assert path is not None and path.read_bytes().startswith(b"\x89PNG")
    assert [each.ours_faster for each in results.summaries()] == [1, 2.5, 1, 2.5]


def test_without_torchattacks_ours_alone_can_be_measured(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "find_spec", lambda _: None)
    settings = Settings(parts=(ATTACKS,))
    with pytest.raises(UsageError, match="pip install 'sanrobust\\[torchattacks\\]'"):
        attacks.check(settings)
    attacks.check(replace(settings, contenders=(OURS,)))


@pytest.mark.parametrize(("arguments", "words"), [
    (("--attack", "bim"), "bim"),
    (("-c", "plain"), "must be one of ours, torchattacks"),
    (("-c", "ours", "-m", "san10-pare"), "did you mean san10-pair"),
    (("-c", "ours", "-m", "resnet26.untrained"), "the digits' 10 classes"),
    (("-c", "ours", "--images", "9999"), "type --images 451"),
    (("-c", "ours", "--dtype", "float16"), "must be float32")])
def test_bad_options_are_refused_at_once(command: Command, tmp_path: Path,
                                         arguments: tuple[str, ...], words: str) -> None:
    result = command("bench", ATTACKS, *arguments, "--out", tmp_path / "out")
    assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()
