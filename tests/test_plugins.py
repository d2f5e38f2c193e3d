"""A package of a stranger adds an experiment, an attack, a family and a dataset by entry points.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

import sanrobust
from sanrobust.zoo.code import added_code
from test_recipes import MLP

SOURCE = '''
from dataclasses import dataclass

from sanrobust.attacks.attack import Attack
from sanrobust.data.dataset import Dataset
from sanrobust.experiments.base import Experiment, Records
from sanrobust.experiments.layout import Head, Layout, Measure
from sanrobust.options import Whole, option, setting


@dataclass(frozen=True, kw_only=True)
class DarkSettings:
    percent: int = setting(50, option("--percent", type=Whole(0, 100), show_default=True,
                                      help="How much light is left."))


class Dark:
    gradient, batched, notes = False, True, ()

    def __init__(self, settings):
        self.percent = settings.percent

    def spec(self):
        return {"percent": self.percent}

    def check(self, images, *, num_classes, preprocessing):
        return ()

    def measure(self, model, batch):
        import torch
        with torch.no_grad():
            logits = model(batch.pixels * (self.percent / 100))
        return {"image": batch.ids, "label": batch.labels.tolist(),
                "pred": logits.argmax(1).tolist(), "error": [None] * len(batch.ids)}

    def failed(self, image):
        return {"image": [image.id], "label": [image.label], "pred": [None],
                "error": [image.reason]}


def summarise(records, settings):
    from sanrobust import metrics
    table = metrics.per_image(records, ["all"] * len(records), ["all"], noun="light")
    row = metrics.counts(table)
    metrics.put_rate(row, "top1", metrics.predicted(table.rows["all"], "pred"),
                     failed=table.failed)
    return [row]


DARK = Experiment(
    name="dark", files="dark", help="Accuracy with less light.", settings=DarkSettings,
    prepare=Dark, summarise=summarise,
    records=Records(columns={"image": "string", "label": "int32", "pred": "int32",
                             "error": "string"}, key=("image",),
                    read=("image", "label", "pred", "error")),
    layout=Layout(rates=("top1",), values=("top1",), clean="top1",
                  heads=lambda parts: [Head("dark", "", (Measure("top1", "top-1"),))],
                  title=lambda entries: "Accuracy with less light",
                  legend=lambda known: "Top-1 is the accuracy."))


def still(model, images, labels, ids, settings, targets):
    from dataclasses import replace
    from sanrobust.attacks.pgd import pgd
    budgets = [replace(each, iters=0) for each in settings.budgets]
    return pgd(model, images, labels, ids, budgets=budgets, targets=targets,
                        loss=settings.loss, seed=settings.seed)


STILL = Attack("still", still, lambda settings: ["No step at all"])


def open_bars(request):
    import numpy as np
    from sanrobust.data.imageset import ArrayImages, ImageRef
    count = 12 if request.split == "test" else 64
    pixels = np.zeros((count, 8, 8), np.uint8)
    for number in range(count):
        pixels[number, :, :2 + number % 2 * 4] = 255 - number
    refs = tuple(ImageRef(f"bars/{request.split}/{number}", number % 2)
                 for number in range(count))
    return ArrayImages("bars", refs, 2, pixels, classes=("thin", "thick"))


BARS = Dataset(
    name="bars", description="bars", num_classes=2, classes="bars", tag=None, train_images=64,
    test_images=12, embedded=True, downloadable=False, licence="CC0", source="nobody",
    class_names=("thin", "thick"), open=open_bars)
'''
TORN = '''

@dataclass(frozen=True)
class TornConfig(MlpConfig):
    kind: ClassVar[str] = "torn"


TORN = Family(config=TornConfig, networks=("torn1",), build=build,
              form=lambda name, small: TornConfig((1,), 32 if small else 224),
              published=lambda: 1 / 0)
'''
PROJECT = '''
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "a-stranger"
version = "1"
[project.entry-points."sanrobust.experiments"]
dark = "stranger:DARK"
gone = "stranger:NOTHING"
[project.entry-points."sanrobust.attacks"]
still = "stranger:STILL"
[project.entry-points."sanrobust.models"]
mlp = "stranger_models:MLP"
torn = "stranger_models:TORN"
[tool.setuptools]
py-modules = ["stranger", "stranger_models"]
[project.entry-points."sanrobust.datasets"]
bars = "stranger:BARS"
wrong = "stranger:DARK"
'''
DRIVER = """
import json, sys
from click.testing import CliRunner
from sanrobust.cli import main
done = [CliRunner().invoke(main, words) for words in json.loads(sys.argv[1])]
print(json.dumps([[each.exit_code, each.stdout, each.stderr] for each in done]))
"""
SMALL = "-m resnet26 --num-samples 8 --out o"
COMMANDS = (
    "--help", "dark --help", f"dark {SMALL} --percent 100", f"dark {SMALL} --percent 30",
    "table dark --out o", f"pgd --attack still {SMALL}", "zoo list",
    "train -m mlp1 --data bars --epochs 1 -b 8 --out w",
    "rotate --data bars -m mlp1 --checkpoint w/mlp1.bars.safetensors --out p",
    "rotate --data bars -m resnet26.untrained-small --out p",
    f"rotate {SMALL}",
)


class Done(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """Where pip has installed the package, and where the commands were typed."""

    site: Path
    folder: Path

    def python(self, *words: str, with_package: bool = True) -> str:
        """Run Python there and return what it printed."""
        path = [str(self.site)] if with_package else []
        path.append(str(Path(sanrobust.__file__).parents[1]))
        done = subprocess.run([sys.executable, *words], cwd=self.folder, capture_output=True,
                              text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                              check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def typed(self, *commands: str, with_package: bool = True) -> dict[str, Done]:
        """Type commands one after the other in one process."""
        words = json.dumps([command.split() for command in commands])
        answers = json.loads(self.python("-c", DRIVER, words, with_package=with_package))
        return dict(zip(commands, (Done(*each) for each in answers), strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "stranger.py").write_text(SOURCE, "utf-8")
    (source / "stranger_models.py").write_text(MLP + TORN, "utf-8")
    (source / "pyproject.toml").write_text(PROJECT, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--disable-pip-version-check", "--target", site, source],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Place(site, tmp_path_factory.mktemp("folder"))


@pytest.fixture(scope="module")
def done(place: Place) -> dict[str, Done]:
    return place.typed(*COMMANDS)


def test_the_help_shows_what_a_package_adds_and_what_of_it_cannot_be_had(
        done: dict[str, Done]) -> None:
    helped = done["--help"]
    assert helped.code == 0 and "dark " in helped.out
    for name in ("gone", "wrong"):
        assert f"{name} of the package a-stranger is left out" in " ".join(helped.out.split())
    assert ("published weights of the family torn are left out: they cannot be listed "
            "(ZeroDivisionError: division by zero)") in " ".join(helped.out.split())
    assert "How much light is left" in done["dark --help"].out


def test_an_experiment_and_an_attack_of_a_package_are_measured(done: dict[str, Done],
                                                               place: Place) -> None:
    for percent in (100, 30):
        answer = done[f"dark {SMALL} --percent {percent}"]
        assert answer.code == 0, answer.err
        assert "note: gone of the package a-stranger is left out" in answer.err
    table = done["table dark --out o"]
    assert table.code == 0 and "percent 30" in table.out
    rows = pd.read_csv(place.folder / "o" / "dark.csv")
    assert rows["percent"].tolist() == [100, 30] and rows["n"].tolist() == [8, 8]
    assert {path.name for path in (place.folder / "o").glob("dark.*")} == {
        "dark.csv", "dark.md", "dark.tex"}
    attacked = done[f"pgd --attack still {SMALL}"]
    assert attacked.code == 0 and "Attack: No step at all." in attacked.out


def test_a_family_and_a_dataset_of_a_package_are_listed_trained_and_measured(
        done: dict[str, Done]) -> None:
    assert "mlp2.untrained-small " in done["zoo list"].out
    trained, measured, other = (done[command] for command in COMMANDS[7:10])
    assert trained.code == 0 and "64 training and 12 held-out" in trained.err + trained.out
    told = " ".join(measured.out.split())
    assert measured.code == 0 and "Data: bars, 12 images." in told, measured.err
    assert other.code not in (0, 1) and "Traceback" not in other.err  # two classes are not ten


def test_a_run_of_a_package_that_is_gone_is_named(done: dict[str, Done], place: Place) -> None:
    assert done[f"rotate {SMALL}"].code == 0
    (without,) = place.typed("table --out o", with_package=False).values()
    assert without.code == 0 and "no rotation" in without.out, without.err
    assert "there is no experiment named 'dark': install the package that adds it" in without.err


@pytest.mark.parametrize("changed", [False, True])
def test_the_code_that_a_package_adds_has_a_digest(tmp_path: Path, changed: bool,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    text = "LEVEL = 3\n\n\ndef run():\n    return LEVEL\n"
    digests = []
    for place, source in enumerate((text, text.replace("3", "4") if changed else text)):
        folder = tmp_path / str(place)
        folder.mkdir()
        (folder / "added_by_a_test.py").write_text(source, "utf-8")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "added_by_a_test", raising=False)
        digests.append(added_code(importlib.import_module("added_by_a_test").run))
    monkeypatch.delitem(sys.modules, "added_by_a_test")
    assert (digests[0] != digests[1]) is changed and None not in digests
    assert added_code(sanrobust.create_model) is None


@pytest.mark.slow
def test_runs_of_a_package_belong_to_its_code(place: Place) -> None:
    commands = (f"dark {SMALL} --percent 70", f"pgd --attack still {SMALL} --iters 1 --eps 1 "
                "--step 1")
    again = tuple(f"{command} " for command in commands)  # typed alike, kept apart
    answers = place.typed(*commands, *again)
    assert all(answer.code == 0 for answer in answers.values())
    assert all("already complete" in answers[command].err for command in again)
    code = place.site / "stranger.py"
    kept = code.read_text("utf-8")
    try:
        code.write_text(kept.replace("batch.pixels *", "1 - batch.pixels *"), "utf-8")
        other = place.typed(*commands)
    finally:
        code.write_text(kept, "utf-8")
    assert not any("already complete" in answer.err for answer in other.values())


def test_an_experiment_of_a_package_is_a_python_function(place: Place) -> None:
    said = place.python("-c", textwrap.dedent("""
        import inspect, sanrobust
        rows = sanrobust.dark("resnet26", percent=20, data="digits", out="q")
        print(rows["n"].tolist(), "percent" in inspect.signature(sanrobust.dark).parameters,
              "How much light" in sanrobust.dark.__doc__)"""))
    assert said.strip() == "[451] True True"
