"""``sanrobust check``: a fault is told by its own line, and of sound networks none is."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import grey_models
import sanrobust
from conftest import Command
from sanrobust.data.datasets import open_dataset
from sanrobust.data.imageset import subset
from sanrobust.data.loader import batches
from sanrobust.errors import DataError, ModelError, UsageError
from sanrobust.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from sanrobust.validity.catalog import LINES
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.external import as_classifier
from small_networks import PLAIN, Small, trained

QUICK = {"iters": 10, "queries": 50}


@cache
def sound() -> nn.Module:
    """A network without a fault."""
    return trained(Small())


class Broken(nn.Module):
    """The sound network, used wrongly."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = trained(Small(), epochs=0)
        self.inner.load_state_dict(sound().state_dict())
        self.use = use
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.use(self.inner, pixels)


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The values of ``hard`` with the gradient of ``soft``."""
    return hard.detach() + soft - soft.detach()


def one_hot(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits)


def batch_norm_in_train_mode() -> nn.Module:
    model = Broken(lambda net, x: net(x))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return model


def without_running_statistics() -> nn.Module:
    model = Broken(lambda net, x: net(x))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return model


def dropout_in_train_mode() -> nn.Module:
    model = Broken(lambda net, x: net(x))
    model.inner.drop.train()
    return model


def dropped(net: nn.Module, pixels: Tensor) -> Tensor:
    return net.fc(F.dropout(net.body(pixels).flatten(1), 0.3))  # type: ignore[operator]


def normalised_twice(mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    """A network that normalises by itself, as it was trained, and is given what already is."""
    middle, width = (torch.tensor(each).view(-1, 1, 1) for each in (mean, std))

    def once(pixels: Tensor) -> Tensor:
        return (pixels - middle) / width

    # The sound network was trained on pixels: of normalised ones it is given back the pixels.
    return Broken(lambda net, x: net(once(once(x)) * width + middle))


# What is wrong, and the line that must say so, alone.
BROKEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no gradient reaches the pixels": (
        lambda: Broken(lambda net, x: net(x.detach())), "gradients"),
    "detached, with a dead way": (
        lambda: Broken(lambda net, x: net(x.detach()) + 0 * x.sum((1, 2, 3)).unsqueeze(1)),
        "gradients"),
    "detached, with another way": (
        lambda: Broken(lambda net, x: net(x.detach() + 1e-7 * x)), "gradients"),
    "saturated": (lambda: Broken(lambda net, x: 1000 * net(x)), "saturation"),
    "argmax, straight through": (
        lambda: Broken(lambda net, x: straight(one_hot(net(x)), net(x).softmax(1))), "logits"),
    "argmax of another scale, straight through": (
        lambda: Broken(lambda net, x: straight(10 * one_hot(net(x)), net(x))), "differences"),
    "quantised input": (lambda: Broken(lambda net, x: net((x * 8).round() / 8)), "gradients"),
    "quantised input, straight through": (
        lambda: Broken(lambda net, x: net(straight((x * 8).round() / 8, x))), "differences"),
    "half of the gradient": (
        lambda: Broken(lambda net, x: net(x / 2 + x.detach() / 2)), "differences"),
    "dropout left on": (lambda: Broken(dropped), "repeated pass"),
    "dropout in train mode": (dropout_in_train_mode, "eval mode"),
    "noise layer": (
        lambda: Broken(lambda net, x: net(x + 0.05 * torch.randn_like(x))), "repeated pass"),
    "batch norm in train mode": (batch_norm_in_train_mode, "eval mode"),
    "batch norm without statistics": (without_running_statistics, "batch of one"),
    "probabilities": (lambda: Broken(lambda net, x: net(x).softmax(1)), "logits"),
    "normalised twice by ImageNet's": (
        lambda: normalised_twice(IMAGENET_MEAN, IMAGENET_STD), "normalisation"),
    "normalised twice by a half": (
        lambda: normalised_twice((0.5,) * 3, (0.5,) * 3), "normalisation"),
    "pixels to 255": (lambda: Broken(lambda net, x: net(x / 255)), "normalisation"),
    "labels turned": (lambda: Broken(lambda net, x: net(x).roll(1, 1)), "label order"),
    "labels reversed": (lambda: Broken(lambda net, x: net(x).flip(1)), "label order"),
    "two labels swapped": (
        lambda: Broken(lambda net, x: net(x)[:, [0, 1, 2, 8, 4, 5, 6, 7, 3, 9]]), "label order"),
}


def verdicts(model: nn.Module, out: Path, **settings: object) -> pd.Series[str]:
    """The verdict of each line, by its name."""
    made = sanrobust.check(model, preprocessing=PLAIN, out=out, **{**QUICK, **settings})
    return made.table.set_index("line")["verdict"]


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_broken_is_told_by_its_own_line_alone(fault: str, tmp_path: Path) -> None:
    build, line = BROKEN[fault]
    found = verdicts(build(), tmp_path)
    assert list(found.index) == list(LINES.names())
    assert found.index[found == "wrong"].tolist() == [line]
    # What is not judged rests on that line, if only through another.
    assert {name for name in found.index if found[name] == "not judged"} == resting_on(line)


def resting_on(line: str) -> set[str]:
    """The lines that rest on one."""
    found = {line}
    for each in LINES:
        if found & {*each.rests_on}:
            found.add(each.name)
    return found - {line}


def test_every_line_rests_on_earlier_ones() -> None:
    names = LINES.names()
    for place, line in enumerate(LINES):
        assert set(line.rests_on) <= set(names[:place]), line.name


def test_of_sound_networks_nothing_is_wrong(tmp_path: Path) -> None:
    robust = trained(Small(), eps=16, epochs=4, steps=2)
    made = sanrobust.check([sound(), robust], preprocessing=PLAIN, out=tmp_path, **QUICK)
    assert made.table["model"].unique().tolist() == ["Small", "Small (2)"]
    assert not {"wrong", "not judged"} & {*made.table["verdict"]}, made.text
    assert made.problem is None
    rates = [numbers["rate_8"] for numbers in made.table["numbers"] if "rate_8" in numbers]
    assert rates[1] < rates[0] - 50  # it really is the more robust one


@pytest.mark.parametrize("name", [
    "san10-pair", pytest.param("all nine", marks=pytest.mark.slow)])
def test_the_networks_of_the_digits_pass(name: str, tmp_path: Path) -> None:
    names = PAPER_ORDER if name == "all nine" else (name,)
    few = {} if name == "all nine" else {
        "data": sanrobust.DataConfig(num_samples=12), "iters": 3, "queries": 10}
    made = sanrobust.check([f"{each}.digits" for each in names], out=tmp_path, **few)
    assert made.problem is None, made.text
    accuracy = made.table[made.table["line"] == "accuracy"]
    assert {*accuracy["verdict"]} == {"ok"}
    assert all("is known from" in each for each in accuracy["seen"])


@pytest.mark.parametrize("fault", [None, "noise layer"])
def test_no_letter_depends_on_the_batch_size(fault: str | None, tmp_path: Path) -> None:
    model = sound() if fault is None else BROKEN[fault][0]()
    texts = set()
    for size in (1, 7, 64):
        made = sanrobust.check(model, preprocessing=PLAIN, batch_size=size, iters=4, queries=10,
                               out=tmp_path / f"{size}",
                               data=sanrobust.DataConfig(num_samples=8))
        texts.add(tuple(path.read_bytes() for path in made.files))
    assert len(texts) == 1


def test_the_seed_and_nothing_else_decides_what_is_drawn(tmp_path: Path) -> None:
    few = sanrobust.DataConfig(num_samples=16)
    one, same, other = (sanrobust.check(sound(), preprocessing=PLAIN, out=tmp_path, data=few,
                                        seed=seed, iters=4, queries=10).text for seed in (0, 0, 1))
    assert one == same != other


def test_numbers_are_those_of_the_attack_itself(tmp_path: Path) -> None:
    model = as_classifier(sound(), preprocessing=PLAIN)
    images = subset(open_dataset("digits", root=None), 16)
    (batch,) = batches(images, model.preprocessing, plan=[range(16)], workers=0)
    with torch.no_grad():
        predicted = model(batch.pixels).argmax(1)
    made = sanrobust.check(model, data=sanrobust.DataConfig(num_samples=16), out=tmp_path, **QUICK)
    numbers = made.table.set_index("line")["numbers"]
    for steps, name in ((10, "rate"), (20, "rate_twice")):
        found = sanrobust.attack(model, batch.pixels, predicted, ids=batch.ids, attack="apgd-ce",
                                 eps=8, iters=steps)
        assert numbers["steps"][name] == 100 - found.robust_accuracy[8.0]
    assert numbers["accuracy"]["top1"] == 100 * float((predicted == batch.labels).double().mean())


def test_a_scale_that_flattens_cross_entropy_is_no_fault_of_an_attack_without_it(
        tmp_path: Path) -> None:
    found = verdicts(BROKEN["saturated"][0](), tmp_path, attack="apgd-dlr")
    assert not {"wrong", "not judged"} & {*found}


class Chance(nn.Module):
    """A network that knows nothing of the digits."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.sin(997 * pixels.mean((1, 2, 3)).unsqueeze(1) * torch.arange(1, 11))


class Overflows(nn.Module):
    """The sound network, without numbers for images that are brighter."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.inner, self.most = sound(), most
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        bright = pixels.mean((1, 2, 3)).unsqueeze(1) > self.most
        return self.inner(pixels).masked_fill(bright, float("nan"))  # type: ignore[no-any-return]


def test_a_network_no_better_than_chance_has_nothing_to_attack(tmp_path: Path) -> None:
    made = sanrobust.check(Chance().eval(), preprocessing=PLAIN, out=tmp_path, **QUICK)
    lines = made.table.set_index("line")
    assert lines["verdict"]["accuracy"] == "wrong" and lines["verdict"]["label order"] == "ok"
    assert "no more than by naming the commonest class" in lines["seen"]["accuracy"]


def test_images_without_numbers_are_counted(tmp_path: Path) -> None:
    made = sanrobust.check(Overflows(0.32), preprocessing=PLAIN, out=tmp_path, **QUICK)
    lines = made.table.set_index("line")
    finite = lines["numbers"]["logits"]["finite"]
    assert lines["verdict"]["logits"] == "look" and 8 < finite < 64
    assert f"{64 - finite} of 64 images have no finite ones" in lines["seen"]["logits"]
    assert lines["numbers"]["gradients"]["images"] == finite


# The network is asked about a black image before anything else.
def test_a_network_without_any_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must be finite"):
        sanrobust.check(Overflows(-1), preprocessing=PLAIN, out=tmp_path)


def test_pixels_that_were_divided_twice_are_told(tmp_path: Path) -> None:
    pixels, labels = torch.rand(16, 3, 32, 32) / 255, torch.arange(16) % 10
    made = sanrobust.check(sound(), preprocessing=PLAIN, data=(pixels, labels), out=tmp_path)
    lines = made.table.set_index("line")
    assert lines["verdict"]["pixel range"] == "wrong"
    assert "divide 8-bit levels by 255 once" in lines["advice"]["pixel range"]


def test_the_command_prints_writes_and_ends_well(command: Command, tmp_path: Path) -> None:
    done = command("check", "-m", "san10-pair.digits", "--num-samples", "16", "--iters", "2",
                   "--queries", "10", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    rows = pd.read_csv(tmp_path / "check.csv")
    assert rows["line"].tolist() == list(LINES.names())
    assert {*rows["model"]} == {"san10-pair.digits"} and {*rows["data"]} == {"digits"}
    held = json.loads((tmp_path / "check.json").read_text())
    assert held["settings"]["iters"] == 2 and held["failed"] == {}
    (model,) = held["models"]
    assert [line["verdict"] for line in model["lines"]] == rows["verdict"].tolist()
    assert len(set(model["attacked_images"])) == model["accuracy_images"] == 16
    assert model["weights"] == sanrobust.create_model("san10-pair.digits").weights_digest
    numbers = [json.loads(each) for each in rows["numbers"]]
    assert [line["numbers"] for line in model["lines"]] == numbers
    markdown = (tmp_path / "check.md").read_text()
    assert markdown.count("| san10-pair.digits |") == len(LINES)
    verdicts = {line["line"]: line["verdict"] for line in model["lines"]}
    for name in LINES.names():
        assert (f"  {name} " in done.stdout) == (verdicts[name] != "ok")
    whole = command("check", "-m", "san10-pair.digits", "--num-samples", "16", "--iters", "2",
                    "--queries", "10", "--out", str(tmp_path), "--verbose")
    assert all(f"  {name} " in whole.stdout for name in LINES.names())


def test_lines_that_rest_on_one_fault_are_told_in_one_sentence(tmp_path: Path) -> None:
    made = sanrobust.check(BROKEN["saturated"][0](), preprocessing=PLAIN, out=tmp_path, **QUICK)
    unjudged = made.table[made.table["verdict"] == "not judged"]
    text = " ".join(made.text.split())
    assert len(unjudged) > 5 and text.count("because saturation is wrong") == 1
    assert f"because saturation is wrong: {', '.join(unjudged['line'])}" in text


OWN = ("--img-size", "32", "--crop-pct", "1", "--interpolation", "bilinear", "--no-normalize")
"""How the networks here want their images."""


def whole() -> nn.Module:
    """What the command names as ``test_check:whole``."""
    return nn.Sequential(sound())


def saturated() -> nn.Module:
    """What the command names as ``test_check:saturated``."""
    return nn.Sequential(BROKEN["saturated"][0]())


def half_asleep() -> nn.Module:
    """A network that refuses to be put in eval mode."""
    class Awake(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(True)

    return nn.Sequential(Awake(3), sound())


def test_a_wrong_line_is_the_exit_code_and_costs_no_other_model(command: Command,
                                                                tmp_path: Path) -> None:
    done = command("check", "-m", "test_check:saturated", "-m", "test_check:half_asleep",
                   "-m", "test_check:whole", "--num-samples", "16", "--iters", "2", "--queries",
                   "5", *OWN, "--out", str(tmp_path))
    assert done.exit_code == 1, done.output
    rows = pd.read_csv(tmp_path / "check.csv")
    wrong = rows[rows["verdict"] == "wrong"].set_index("model")["line"].to_dict()
    assert wrong == {"test_check:saturated": "saturation", "test_check:half_asleep": "eval mode"}
    assert rows["model"].nunique() == 3
    assert "saturation of test_check:saturated, eval mode of test_check:half_asleep" in done.output


def test_a_model_that_cannot_be_had_costs_no_other(command: Command, tmp_path: Path) -> None:
    done = command("check", "-m", "test_check:nothing", "-m", "test_check:whole", "--num-samples",
                   "16", "--iters", "2", "--queries", "5", *OWN, "--out", str(tmp_path))
    assert done.exit_code == 2 and "nothing" in done.output, done.output
    assert {*pd.read_csv(tmp_path / "check.csv")["model"]} == {"test_check:whole"}
    assert "test_check:nothing" in json.loads((tmp_path / "check.json").read_text())["failed"]


@pytest.mark.parametrize(("words", "code", "said"), [
    (("-m", "san01-pair"), 2, "did you mean san10-pair?"),
    (("-m", "resnet26.digits", "--attack", "apgd-cee"), 2, "did you mean apgd-ce?"),
    (("-m", "resnet26.digits", "--eps", "0.03"), 2, "8/255"),
    (("-m", "resnet26.digits", "--eps", "200"), 2, "from 1 to 63.75"),
    (("-m", "resnet26.digits", "--eps", "nan"), 2, "--eps"),
    (("-m", "resnet26.digits", "--iters", "1"), 2, "--iters"),
    (("-m", "resnet26.digits", "--queries", "0"), 2, "--queries"),
    (("-m", "resnet26.digits", "--num-samples", "452"), 2, "451"),
    (("-m", "resnet26.digits", "--data", "no/such"), 3, "no/such"),
    (("-m", "resnet26.digits", "--device", "gpu"), 2, "--device cpu"),
    (("-m", "resnet26.digits", "--shard", "1/2"), 2, "--shard"),
    (("-m", "resnet26.digits", "--out", "/dev/null/there"), 6, "/dev/null"),
])
def test_what_cannot_be_meant_is_refused(command: Command, words: tuple[str, ...], code: int,
                                         said: str) -> None:
    done = command("check", *words)
    assert done.exit_code == code and said in done.output, done.output


def test_each_line_is_explained(command: Command) -> None:
    done = command("check", "--list")
    assert done.exit_code == 0
    for line in LINES:
        assert f"{line.name} ({line.source})" in done.output
    for page in ("README.md", "docs/validity.md"):
        told = " ".join((Path(__file__).parents[1] / page).read_text("utf-8").split())
        assert f"asks {len(LINES)} questions" in told


def test_names_from_outside_are_only_text(tmp_path: Path) -> None:
    hostile = "=1+1|<b>\\cmd{x}"
    images = torch.rand(16, 3, 32, 32), torch.arange(16) % 10
    data = sanrobust.DataConfig(data=images, name=hostile)
    made = sanrobust.check(sound(), preprocessing=PLAIN, data=data, out=tmp_path, **QUICK)
    assert {*made.table["data"]} == {hostile}
    assert {*pd.read_csv(tmp_path / "check.csv")["data"]} == {f"'{hostile}"}
    markdown = (tmp_path / "check.md").read_text()
    assert "<b>" not in markdown.replace("\\<b", "") and "1|" not in markdown.replace("1\\|", "")


@pytest.mark.parametrize(("data", "error"), [
    ((torch.rand(4, 3, 32, 32) * 2, torch.arange(4)), UsageError),
    ((torch.rand(4, 3, 32, 32), torch.arange(4) + 10), DataError),
    ("", UsageError)])
def test_images_that_cannot_serve_are_refused(data: object, error: type[Exception],
                                              tmp_path: Path) -> None:
    with pytest.raises(error):
        sanrobust.check(sound(), preprocessing=PLAIN, data=data, out=tmp_path)


def test_images_that_cannot_be_decoded_are_told(tmp_path: Path) -> None:
    grey_models.folders(tmp_path / "val", [label % 6 for label in range(16)])
    (tmp_path / "val" / "c0" / "0.png").write_bytes(b"no image")
    made = sanrobust.check("grey_models:right", data=tmp_path / "val", out=tmp_path, **QUICK)
    assert any("1 of 16 checked images cannot be decoded" in each for each in made.remarks)
    assert made.table.set_index("line")["numbers"]["logits"]["images"] == 15


def test_a_loss_that_is_rugged_is_told(tmp_path: Path) -> None:
    """Its gradient is there, and true, but leads nowhere."""
    def shattered(net: nn.Module, x: Tensor) -> Tensor:
        logits = net(x)
        return logits + 30 * torch.sin(4000 * x.mean((1, 2, 3))).unsqueeze(1) * one_hot(logits)

    found = verdicts(Broken(shattered), tmp_path)
    assert found.index[found == "wrong"].tolist() == ["descent"]


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = trained(Small(), epochs=0)
    next(network.parameters()).requires_grad_(True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    sanrobust.check(network, preprocessing=PLAIN, out=tmp_path, data=sanrobust.DataConfig(
        num_samples=16), **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert next(network.parameters()).requires_grad and torch.equal(torch.get_rng_state(), state)
