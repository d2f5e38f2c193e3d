"""What `train` is given and what it writes: classes by name, broken images and weights told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from conftest import Command
from sanrobust.errors import DataError, NonFiniteError, OutputError, UsageError
from sanrobust.progress import Reporter
from sanrobust.training import job as module
from sanrobust.training.history import Epoch
from sanrobust.training.job import TrainingJob, is_trained, train_models
from sanrobust.training.loop import Training
from sanrobust.training.recipes import Recipe
from sanrobust.training.scoring import Score
from sanrobust.zoo.checkpoint import read_facts
from sanrobust.zoo.resolve import create_model

COLOURS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 200), "d": (200, 200, 30)}
LEVELS = torch.tensor([COLOURS[name] for name in "abcd"]) / 255


class _Colours(nn.Module):
    """A perfect classifier of the four colours, in the order of their names; nothing to learn."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels: Tensor) -> Tensor:
        means = (pixels * 0.5 + 0.5).mean((2, 3))
        return -self.scale * (means[:, None] - LEVELS).square().sum(2)


def _tree(folder: Path, names: Mapping[str, str], images: int = 4, first: int = 0) -> Path:
    """Write images of ``names[class]``'s colour into a folder for each class."""
    for name, colour in names.items():
        (folder / name).mkdir(parents=True)
        for number in range(first, first + images):
            image = Image.new("RGB", (32, 32), COLOURS[colour])
            image.putpixel((number, 0), (0, 0, 0))
            image.save(folder / name / f"{number}.png")
    return folder


def _plain(names: str) -> dict[str, str]:
    return {name: name for name in names}


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a training folder a, b, c, d, whose network is perfect from the start."""
    monkeypatch.setattr(module, "build", lambda architecture: _Colours())
    return _tree(tmp_path / "colours", _plain("abcd"))


def _job(colours: Path, held: Path, **changes: object) -> TrainingJob:
    recipe = Recipe(epochs=1, batch_size=4, lr=1e-6)
    job = TrainingJob(models=("resnet26",), data=str(colours), held_out=held,
                      out=colours.parent / "w", recipe=recipe, device="cpu")
    return replace(job, **changes)  # type: ignore[arg-type]


def _train(job: TrainingJob) -> tuple[Path, list[str]]:
    told: list[str] = []
    path, = train_models(job, Reporter(say=told.append))
    return path, told


@pytest.mark.parametrize("names", ["abcd", "bcd", "d", "ca"])
def test_held_out_classes_are_matched_by_name(colours: Path, names: str) -> None:
    held = _tree(colours.parent / "held", _plain(names), images=2, first=9)
    path, told = _train(_job(colours, held))
    assert f"resnet26: held-out top-1 100.00 % of {2 * len(names)} images, " in told[-1]
    facts = read_facts(path)
    assert facts is not None
    assert (facts["top1"], facts["data"], facts["classes"]) == (100.0, "colours", [*"abcd"])
    assert json.loads((path.parent / "colours.json").read_text())["resnet26"]["top1"] == 100.0


@pytest.mark.parametrize("names, told", [
    ({"a": "a", "b": "b", "c": "c", "dd": "d"},
     "held has dd, which the training set colours does not know, and lacks d of the"),
    ({**_plain("abcd"), "e": "a"}, "held has e, which the training set colours does not know: "),
    ({"0": "a", "1": "b", "2": "c", "3": "d"}, "held has 0, 1, 2, 3, which the training"),
    ({"A": "a"}, "held has A, which the training")])
def test_a_held_out_class_that_training_does_not_know_is_refused(
        colours: Path, names: dict[str, str], told: str) -> None:
    held = _tree(colours.parent / "held", names, images=1)
    with pytest.raises(DataError, match=told) as caught:
        _train(_job(colours, held))
    assert "--held-out" in caught.value.hint and "--class-map" not in caught.value.hint
    assert not (colours.parent / "w").exists()


def test_folders_named_by_numbers_keep_their_numbers_in_training(
        tmp_path: Path, colours: Path) -> None:
    numbered = _tree(tmp_path / "n", {"0": "a", "1": "b", "2": "c", "3": "d"})
    held = _tree(tmp_path / "held", {"03": "d", "1": "b"}, images=2, first=9)
    path, told = _train(_job(numbered, held))
    assert "100.00 % of 4 images" in told[-1]
    assert (read_facts(path) or {})["classes"] == [*"0123"]


@pytest.mark.parametrize("names, told", [
    ({"1": "a", "2": "b"}, "lacks some between 0 and the largest"),
    ({"2019": "a", "2020": "b"}, "lacks some between 0 and the largest"),
    ({"a": "a"}, "two classes or more, but one has 1")])
def test_classes_that_cannot_be_trained_are_refused(
        tmp_path: Path, names: dict[str, str], told: str) -> None:
    folder = _tree(tmp_path / "one", names)
    with pytest.raises(DataError, match=told):
        _train(_job(folder, _tree(tmp_path / "held", names, first=9)))


def test_class_names_travel_with_the_weights(tmp_path: Path, command: Command) -> None:
    data = _tree(tmp_path / "data", _plain("abcd"))
    held = _tree(tmp_path / "held", _plain("abcd"), images=1, first=9)
    done = command("train", "-m", "resnet26", "--data", data, "--held-out", held, "--epochs", 1,
                   "-b", 8, "--out", tmp_path / "w", "--tag", "t")
    assert done.exit_code == 0, done.output
    path = tmp_path / "w" / "resnet26.t.safetensors"
    for name in ("resnet26", "resnet26.digits"):
        assert create_model(name, checkpoint=path).classes == (*"abcd",)
    assert command("zoo", "add", "resnet26.t", path).exit_code == 0
    assert create_model("resnet26.t").classes == (*"abcd",)
    some = _tree(tmp_path / "some", _plain("cd"), images=1)
    renamed = _tree(tmp_path / "renamed", _plain("ab") | {"cc": "c"}, images=1)
    fitted = command("rotate", "-m", "resnet26.t", "--data", some, "--out", tmp_path / "o")
    assert fitted.exit_code == 0, fitted.output
    refused = command("rotate", "-m", "resnet26.t", "--data", renamed, "--out", tmp_path / "o")
    assert refused.exit_code == DataError.exit_code
    assert "renamed has cc, which resnet26.t does not know" in " ".join(refused.output.split())


def _break(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_images_that_cannot_be_decoded_are_counted_and_said(colours: Path) -> None:
    held = _tree(colours.parent / "held", _plain("abcd"), images=2, first=9)
    for path in (colours / "a" / "0.png", colours / "b" / "1.png", held / "c" / "9.png"):
        _break(path)
    path, told = _train(_job(colours, held))
    first, = [line for line in told if "training images cannot" in line]
    assert first.startswith("resnet26: 2 of 16 training images cannot be decoded and are left out "
                            "(the first")
    assert any(line.startswith("resnet26: 1 of 8 held-out images cannot be decoded and are left "
                               "out (the first is c/9.png: ") for line in told)
    assert "100.00 % of 7 images" in told[-1]
    assert json.loads((path.parent / "colours.json").read_text())["resnet26"]["n"] == 7


@pytest.mark.parametrize("broken, option", [("colours", "--data"), ("held", "--held-out")])
def test_a_set_without_one_good_image_is_refused_before_training(
        colours: Path, broken: str, option: str) -> None:
    held = _tree(colours.parent / "held", _plain("ab"), images=1)
    for path in (colours.parent / broken).glob("*/*.png"):
        _break(path)
    with pytest.raises(DataError, match=f"{broken} must hold images that can be decoded, but none"
                                        f" of .* can .the first is a/0.png: .*{option}"):
        _train(_job(colours, held))


def test_what_the_folders_hold_besides_images_is_said(colours: Path) -> None:
    held = _tree(colours.parent / "held", _plain("a"), images=1)
    (held / "a" / "x.heic").touch()
    _, told = _train(_job(colours, held))
    assert "held: left out 1 file that is not named as an image (a/x.heic)" in told


class _Blind(_Colours):
    """Gives no numbers for images of some colours, once it is trained."""

    def __init__(self, colours: str) -> None:
        super().__init__()
        self.colours = ["abcd".index(name) for name in colours]

    def forward(self, pixels: Tensor) -> Tensor:
        logits = super().forward(pixels)
        bad = torch.isin(logits.argmax(1), torch.tensor(self.colours))
        return logits if self.training else logits.masked_fill(bad[:, None], float("nan"))


def test_held_out_images_without_finite_logits_count_as_wrong_and_are_said(
        colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # NaN counts as the largest of all: as class 0, the right one of these images.
    monkeypatch.setattr(module, "build", lambda architecture: _Blind("a"))
    held = _tree(colours.parent / "held", _plain("abcd"), images=2, first=9)
    _, told = _train(_job(colours, held))
    assert told[-3] == ("resnet26: the logits of 2 of 8 held-out images are not finite; these "
                        "images count as wrong")
    assert "75.00 % of 8 images" in told[-1]


def test_weights_without_any_finite_logits_are_not_written(
        colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "build", lambda architecture: _Blind("abcd"))
    held = _tree(colours.parent / "held", _plain("ab"), images=1)
    with pytest.raises(NonFiniteError, match="none of 2 held-out images has them"):
        _train(_job(colours, held))
    assert not (colours.parent / "w").exists()


def test_a_loss_that_is_no_number_stops_training_and_nothing_is_written(tmp_path: Path) -> None:
    job = TrainingJob(models=("resnet26",), out=tmp_path / "w", device="cpu",
                      recipe=Recipe(img_size=16, epochs=2, batch_size=448, lr=1e30))
    with pytest.raises(NonFiniteError, match="the training loss must be .* in epoch 1: lower --lr"):
        train_models(job)
    assert not (tmp_path / "w").exists()


class _Overflown(_Colours):
    """A perfect classifier with a weight that is no number and decides nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([1.0, float("inf")]))


def test_weights_that_are_no_numbers_stop_training_and_the_earlier_ones_stay(
        colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = _tree(colours.parent / "held", _plain("ab"), images=1)
    path, _ = _train(_job(colours, held))
    earlier = path.read_bytes()
    monkeypatch.setattr(module, "build", lambda architecture: _Overflown())
    with pytest.raises(NonFiniteError, match="mean is not after epoch 1: lower --lr"):
        _train(_job(colours, held, fresh=True))
    assert path.read_bytes() == earlier and not path.with_name(path.name + ".previous").exists()


@pytest.mark.parametrize("name", ["resnet26.t.safetensors", "resnet26.t.safetensors.previous"])
def test_a_folder_in_the_place_of_a_file_is_found_before_training(tmp_path: Path,
                                                                  name: str) -> None:
    (tmp_path / name).mkdir()
    job = TrainingJob(models=("resnet26",), out=tmp_path, tag="t", recipe=Recipe(epochs=10**6))
    with pytest.raises(OutputError, match="Is a directory"):
        train_models(job)


def test_a_tag_too_long_for_a_file_is_found_before_training(tmp_path: Path) -> None:
    job = TrainingJob(models=("resnet26",), out=tmp_path, tag="t" * 235,
                      recipe=Recipe(epochs=10**6))
    with pytest.raises(OutputError, match="File name too long"):
        train_models(job)


def test_a_pipe_as_the_list_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.json")
    job = TrainingJob(models=("resnet26",), out=tmp_path, tag="t", recipe=Recipe(epochs=10**6))
    with pytest.raises(OutputError, match="no regular file"):
        train_models(job)


def test_a_network_counts_as_trained_when_its_file_is_whole_and_listed(
        tmp_path: Path, no_training: Callable[[float], None]) -> None:
    job = TrainingJob(models=("resnet26",), out=tmp_path, tag="t", device="cpu")
    assert not is_trained(job)
    no_training(1.0)
    path, _ = _train(job)
    assert is_trained(job) and not is_trained(replace(job, recipe=Recipe(lr=0.01)))
    (tmp_path / "t.json").rename(tmp_path / "away.json")  # as after a kill before it was listed
    assert not is_trained(job)
    (tmp_path / "away.json").rename(tmp_path / "t.json")
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_trained(job)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let training return at once; the callable sets the weight that it ends with."""
    def end_with(value: float) -> None:
        def stand_in(training: Training, *_: object, **__: object) -> Score:
            for weight in training.network.parameters():
                nn.init.constant_(weight, value)
            training.state.history.append(Epoch(1, 0.05, 1.0, 50.0, 50.0, 50.0, 100.0, 9.0))
            return Score(top1=1, top5=2, finite=2, images=2)
        monkeypatch.setattr(Training, "run", stand_in)
    return end_with


def test_earlier_weights_of_the_name_are_kept_and_said(
        tmp_path: Path, no_training: Callable[[float], None]) -> None:
    job = TrainingJob(models=("resnet26",), out=tmp_path, tag="t", device="cpu")
    no_training(1.0)
    path, told = _train(job)
    first = path.read_bytes()
    assert not any("kept" in line for line in told)
    _, told = _train(job)
    assert told == [f"resnet26: {path} is trained already; --fresh trains it anew"]
    anew = replace(job, fresh=True)
    _, told = _train(anew)  # the same weights anew are no others
    assert not any("kept" in line for line in told)
    no_training(2.0)
    _, told = _train(anew)
    previous = path.with_name("resnet26.t.safetensors.previous")
    assert told[-1] == f"resnet26: the earlier weights in {path} are kept as {previous}"
    assert previous.read_bytes() == first != path.read_bytes()
    assert sorted(tmp_path.glob("*.safetensors")) == [path]


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "w"):
        job = TrainingJob(models=("resnet26",), out=out, recipe=Recipe(epochs=10**6))
        with pytest.raises(OutputError, match="--out"):
            train_models(job)


@pytest.mark.parametrize("content", ["\n", "[]", "\xff"])
def test_a_damaged_list_is_found_before_training(tmp_path: Path, content: str) -> None:
    (tmp_path / "t.json").write_text(content, encoding="latin-1")
    job = TrainingJob(models=("resnet26",), out=tmp_path, tag="t", recipe=Recipe(epochs=10**6))
    with pytest.raises(OutputError, match="t.json does not read"):
        train_models(job)
    assert (tmp_path / "t.json").read_text(encoding="latin-1") == content


@pytest.mark.parametrize("options, told", [
    (("--lr", "nan"), "--lr must be a number above 0"), (("--lr", "-1"), "--lr must be"),
    (("--lr", "inf"), "--lr must be"), (("--shift", "32"), "--shift must be smaller than the 32"),
    (("--seed", str(10**30)), "--seed must be a whole number from 0 to 4294967295"),
    (("--tag", "a/b"), "a plain file name"),
    (("--tag", ".."), "a plain file name")])
def test_a_recipe_that_cannot_be_meant_is_refused(
        command: Command, tmp_path: Path, options: tuple[str, ...], told: str) -> None:
    done = command("train", "-m", "resnet26", "--out", tmp_path / "w", *options)
    assert done.exit_code == UsageError.exit_code
    assert told in " ".join(done.output.split())
    assert not (tmp_path / "w").exists()


def test_weights_are_called_after_the_folder_itself(
        colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = _tree(colours.parent / "held", _plain("a"), images=1)
    monkeypatch.chdir(colours)
    path, _ = _train(_job(Path("."), held, data=".", out=colours.parent / "w"))
    assert path.name == "resnet26.colours.safetensors"


def test_a_dataset_wins_over_a_folder_of_its_name(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        no_training: Callable[[float], None]) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    no_training(1.0)
    path, _ = _train(TrainingJob(models=("resnet26",), out=tmp_path, device="cpu"))
    assert (read_facts(path) or {})["data"] == "digits"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_found_before_training(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="must be writable"):
            train_models(TrainingJob(out=tmp_path, recipe=Recipe(epochs=10**6)))
    finally:
        tmp_path.chmod(0o700)
