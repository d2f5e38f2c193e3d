"""CONTRIBUTING's recipes, followed in a copy of the package as a stranger would.

Each recipe is the list of its edits: the files that it names and no others. A file that does not
exist is made; elsewhere the text goes before or behind the line that ends the list it belongs to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import sanrobust
from sanrobust.kernels.native import library

PACKAGE = Path(sanrobust.__file__).parent


class Edit(NamedTuple):
    """One step: where, beside which text that stands there once, and what."""

    file: str
    text: str
    before: str = ""
    behind: str = ""


MLP = '''from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from sanrobust.zoo.families.base import Family, ModelName, Option, Sizes


@dataclass(frozen=True)
class MlpConfig:
    """A perceptron on the means of patches."""

    kind: ClassVar[str] = "mlp"

    layers: tuple[int, ...]
    side: int
    patch: int = 4
    num_classes: int = 1000

    @property
    def sizes(self) -> Sizes:
        return Sizes(channels=(self.side,), sides=(self.patch,))

    def describe(self) -> str:
        return f"perceptron of {self.layers[0]} layers, patches of {self.patch}"


def form(name: ModelName, *, small: bool) -> MlpConfig:
    return MlpConfig((int(name.network[-1]),), 32 if small else 224, name.number("patch"))


def build(config: MlpConfig):
    from torch import nn
    width = 3 * (config.side // config.patch) ** 2
    return nn.Sequential(OrderedDict(
        pool=nn.AvgPool2d(config.patch), flat=nn.Flatten(),
        hidden=nn.Sequential(*(nn.Linear(width, width) for _ in range(config.layers[0]))),
        relu=nn.ReLU(), fc=nn.Linear(width, config.num_classes)))


def published():
    from sanrobust.zoo.entry import Entry, Remote
    from sanrobust.zoo.forms import imagenet_config
    yield Entry("mlp1", "in1k", imagenet_config("mlp1"), Remote("https://localhost/mlp1.pth"),
                top1=12.5, licence="MIT", reference="nobody")


MLP = Family(config=MlpConfig, networks=("mlp1", "mlp2"), form=form, build=build,
             options=lambda network: (Option("patch", ("2", "4"), "4"),), published=published)
'''
FAMILY = (
    Edit("zoo/families/mlp.py", MLP),
    Edit("zoo/families/catalog.py", "from sanrobust.zoo.families.mlp import MLP\n",
         before="from sanrobust.zoo.families.resnet import RESNET\n"),
    Edit("zoo/families/catalog.py", "    MLP,\n", behind="    SASA_RESNET,\n"),
)
RELATION = (
    Edit("kernels/relations.py", '''\
def _distance(local: Elementary, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    return (local.subtraction(query, key).abs(),)


''', before="def _each_channel("),
    Edit("kernels/relations.py",
         '    Relation("pairwise", "distance", _each_channel, _distance, counted=_each_pair),\n',
         behind="\nENTRIES = (\n"),
)
DATASET = (
    Edit("data/bars.py", '''from sanrobust.data.dataset import Dataset


def open_bars(request):
    import numpy as np
    from sanrobust.data.imageset import ArrayImages, ImageRef
    count = 12 if request.split == "test" else 64
    pixels = np.zeros((count, 8, 8), np.uint8)
    for number in range(count):
        pixels[number, :, :2 + 4 * (number % 2)] = 255 - number
    refs = tuple(ImageRef(f"bars/{request.split}/{number}", number % 2) for number in range(count))
    return ArrayImages("bars", refs, 2, pixels, classes=("thin", "thick"))


BARS = Dataset(
    name="bars", description="bars", num_classes=2, classes="bars", tag=None,
    train_images=64, test_images=12, embedded=True, downloadable=False, licence="CC0",
    source="nobody", class_names=("thin", "thick"), open=open_bars)
'''),
    Edit("data/catalog.py", "from sanrobust.data.bars import BARS\n",
         before="from sanrobust.data.digits import"),
    Edit("data/catalog.py", "    BARS,\n", behind="    IMAGENET,\n"),
)
BACKEND = (
    Edit("kernels/twin/__init__.py", '"""A twin of the native kernels."""\n'),
    Edit("kernels/twin/backend.py", '''import torch

from sanrobust.kernels.fused import FusedBackend


class TwinBackend(FusedBackend):
    name = "twin"
    device_type = "cpu"
    dtypes = (torch.float32,)

    def unavailable(self) -> str | None:
        return None
'''),
    Edit("kernels/kernelset.py", '''def _twin() -> Kernels:
    from sanrobust.kernels.native.kernels import NativeKernels
    return type("TwinKernels", (NativeKernels,), {})()


''', before="# What makes each kernel set"),
    Edit("kernels/kernelset.py", 'KERNELS.add("twin", _twin)\n',
         before='KERNELS.add("reference", PlainKernels)\n'),
    Edit("kernels/backends.py", "from sanrobust.kernels.twin.backend import TwinBackend\n",
         before="from sanrobust.registry import Registry\n"),
    Edit("kernels/backends.py", "BACKENDS.add(TwinBackend.name, TwinBackend())\n",
         before="BACKENDS.add(ReferenceBackend.name"),
)
LOOP = (
    Edit("attacks/still.py", '''from sanrobust.attacks.attack import Attack


def run(model, images, labels, ids, settings, targets):
    from dataclasses import replace
    from sanrobust.attacks.pgd import pgd
    budgets = [replace(each, iters=0) for each in settings.budgets]
    return pgd(model, images, labels, ids, budgets=budgets, targets=targets,
                        loss=settings.loss, seed=settings.seed)


STILL = Attack("still", run, lambda settings: ["No step at all"])
'''),
    Edit("attacks/catalog.py", "from sanrobust.attacks.still import STILL\n",
         before="from sanrobust.attacks.words import"),
    Edit("attacks/catalog.py", "    STILL,\n",
         behind="    Attack(PGD, _pgd, pgd_words, \"PGD\"),\n"),
)
RUN = """
import json, sys
from click.testing import CliRunner
from sanrobust.cli import main
done = [CliRunner().invoke(main, words) for words in json.loads(sys.argv[1])]
print(json.dumps([[each.exit_code, each.output] for each in done]))
"""


def follow(edit: Edit, package: Path) -> None:
    path = package / edit.file
    beside = edit.before + edit.behind
    if not beside:
        path.parent.mkdir(exist_ok=True)
        path.write_text(edit.text, "utf-8")
        return
    text = path.read_text("utf-8")
    assert text.count(beside) == 1, f"{edit.file}: {text.count(beside)} times {beside!r}"
    put = edit.text + beside if edit.before else beside + edit.text
    path.write_text(text.replace(beside, put), "utf-8")


EXPECTED = {
    # A family of networks works wherever a model does.
    "zoo list": "mlp1.in1k ",
    "zoo show mlp1": "perceptron of 1 layers, patches of 4",
    "zoo show mlp2.untrained": "patch 2, 4",
    "zoo verify mlp1.in1k": "absent  not downloaded yet",
    "zoo verify mlp1.untrained mlp2(patch=2).untrained-small": "ok      initial values of seed 0",
    "complexity -m mlp1 --stages": "hidden",
    "rotate -m mlp2.untrained-small --num-samples 4": "mlp2.untrained-small",
    "train -m mlp2(patch=2) --epochs 1 --tag mine --out w": "held-out top-1",
    "zoo add mlp2(patch=2).mine w/mlp2(patch=2).mine.safetensors": "stored",
    "rotate -m mlp2(patch=2).mine --num-samples 4": "mlp2(patch=2).mine",
    # A relation is an option of models.
    "zoo show san10-pair(relation=distance)": "pairwise, relation distance",
    "complexity -m san10-pair(relation=distance)": "san10-pair(relation=distance)",
    # A loop is an attack of ours.
    "pgd --help": "pgd|still|fgsm",
    "pgd --attack still -m mlp1.untrained-small --num-samples 4": "Attack: No step at all.",
    # A dataset can be trained on and measured.
    "train -m mlp1 --data bars --epochs 1 -b 8 --out w": "64 training and 12 held-out images",
    "rotate -m mlp1 --data bars --checkpoint w/mlp1.bars.safetensors": "Data: bars, 12 images.",
    # A backend is shown, with its reason, and computes.
    "info": "twin          ",
    "rotate -m san10-pair.untrained-small --no-fold --backend twin --num-samples 4":
        "san10-pair.untrained-small",
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Exit code and output of every command, in a copy in which all recipes were followed."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(PACKAGE, folder / "sanrobust", ignore=shutil.ignore_patterns("__pycache__"))
    for edit in (*FAMILY, *RELATION, *LOOP, *DATASET, *BACKEND):
        follow(edit, folder / "sanrobust")
    answered = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps([command.split() for command in EXPECTED])],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder), "SANROBUST_HOME": str(folder)},
        capture_output=True, text=True, check=False)
    assert answered.returncode == 0, answered.stderr
    return dict(zip(EXPECTED, map(tuple, json.loads(answered.stdout)), strict=True))


@pytest.mark.parametrize("command", EXPECTED)
def test_what_was_added_by_a_recipe_works(command: str, done: dict[str, tuple[int, str]]) -> None:
    if "--backend" in command and library.refusal() is not None:
        pytest.skip(f"no native kernels: {library.refusal()}")
    code, output = done[command]
    assert code == 0, output
    assert EXPECTED[command] in output or EXPECTED[command] in " ".join(output.split())
