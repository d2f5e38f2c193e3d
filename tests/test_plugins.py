"""A package of a stranger adds an experiment, an attack, a family and a dataset by entry points.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import sanrobust
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
    from sanrobust.attacks.pgd import targeted_pgd
    budgets = [replace(each, iters=0) for each in settings.budgets]
    return targeted_pgd(model, images, labels, ids, budgets=budgets, targets=targets,
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
[tool.setuptools]
py-modules = ["stranger", "stranger_models"]
[project.entry-points."sanrobust.datasets"]
bars = "stranger:BARS"
wrong = "stranger:DARK"
'''
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "stranger.py").write_text(SOURCE, "utf-8")
    (source / "stranger_models.py").write_text(MLP, "utf-8")
    (source / "pyproject.toml").write_text(PROJECT, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-build-isolation", "--disable-pip-version-check", "--target", site, source],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    package = Path(sanrobust.__file__).parents[1]

    def typed(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sanrobust", *map(str, words)], cwd=tmp_path, text=True,
            env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{package}"},
            capture_output=True, check=False)
    return typed


def test_the_commands_show_and_run_what_a_package_adds(run: Run, tmp_path: Path) -> None:
    helped = run("--help")
    assert helped.returncode == 0 and "dark " in helped.stdout
    for name in ("gone", "wrong"):
        assert f"{name} of the package a-stranger is left out" in " ".join(helped.stdout.split())
    assert "How much light is left" in run("dark", "--help").stdout
    words = ("-m", "resnet26", "--num-samples", 8, "--out", "o")
    for percent in (100, 30):
        done = run("dark", *words, "--percent", percent)
        assert done.returncode == 0, done.stderr
        assert "note: gone of the package a-stranger is left out" in done.stderr
    table = run("table", "dark", "--out", "o")
    assert table.returncode == 0 and "percent 30" in table.stdout
    rows = pd.read_csv(tmp_path / "o" / "dark.csv")
    assert rows["percent"].tolist() == [100, 30] and rows["n"].tolist() == [8, 8]
    assert {path.name for path in (tmp_path / "o").glob("dark.*")} == {
        "dark.csv", "dark.md", "dark.tex"}
    attacked = run("pgd", "--attack", "still", *words)
    assert attacked.returncode == 0 and "Attack: No step at all." in attacked.stdout


def test_a_family_and_a_dataset_of_a_package_are_listed_trained_and_measured(
        run: Run, tmp_path: Path) -> None:
    assert "mlp2.untrained-small " in run("zoo", "list").stdout
    trained = run("train", "-m", "mlp1", "--data", "bars", "--epochs", 1, "-b", 8, "--out", "w")
    assert trained.returncode == 0 and "64 training and 12 held-out" in trained.stderr + \
        trained.stdout, trained.stderr
    measured = run("rotate", "--data", "bars", "-m", "mlp1", "--checkpoint",
                   "w/mlp1.bars.safetensors", "--out", "o")
    assert measured.returncode == 0 and "Data: bars, 12 images." in measured.stdout, measured.stderr
    other = run("rotate", "--data", "bars", "-m", "resnet26.untrained-small", "--out", "o")
    assert other.returncode != 0 and "Traceback" not in other.stderr  # two classes are not ten


def test_an_unknown_run_says_that_its_package_is_missing(run: Run, tmp_path: Path) -> None:
    done = run("dark", "-m", "resnet26", "--num-samples", 2, "--out", "o")
    assert done.returncode == 0, done.stderr
    run("rotate", "-m", "resnet26", "--num-samples", 2, "--out", "o")
    without = subprocess.run([sys.executable, "-m", "sanrobust", "table", "--out", "o"],
                             cwd=tmp_path, capture_output=True, text=True, check=False,
                             env={**os.environ, "PYTHONPATH":
                                  str(Path(sanrobust.__file__).parents[1])})
    assert without.returncode == 0 and "no rotation" in without.stdout, without.stderr
    assert "there is no experiment named 'dark': install the package that adds it" in without.stderr


def test_it_is_a_python_function_too(run: Run, site: Path, tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import inspect, sanrobust
        rows = sanrobust.dark("resnet26", percent=20, data="digits", out="p")
        print(rows["n"].tolist(), "percent" in inspect.signature(sanrobust.dark).parameters,
              "How much light" in sanrobust.dark.__doc__)""")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH":
             f"{site}{os.pathsep}{Path(sanrobust.__file__).parents[1]}"})
    assert done.stdout.strip() == "[451] True True", done.stderr
