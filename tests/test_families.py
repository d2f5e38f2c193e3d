"""Families of models: what one of another package can do, and what becomes of a broken one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from sanrobust import registry
from sanrobust.cli import main
from sanrobust.design import DEFAULTS
from sanrobust.errors import UnknownNameError
from sanrobust.zoo import catalog
from sanrobust.zoo.digest import value_digest
from sanrobust.zoo.families import catalog as families
from sanrobust.zoo.forms import imagenet_config, small_config
from sanrobust.zoo.resolve import create_model
from test_recipes import MLP
from zoo_files import ban_network

Install = Callable[[str], None]
GROUP = "sanrobust.models"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package whose module has this text and whose family is called ``MLP`` there."""
    ban_network(monkeypatch)
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    points: list[metadata.EntryPoint] = []
    monkeypatch.setattr(registry, "_points", lambda group: points if group == GROUP else ())

    def added(text: str) -> None:
        name = f"their_models{len(points)}"
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        points.append(metadata.EntryPoint(f"mlp{len(points)}", f"{name}:MLP", GROUP))
        forget()

    yield added
    forget()
    for number in range(len(points)):
        sys.modules.pop(f"their_models{number}", None)


def forget() -> None:
    families.FAMILIES.__dict__.pop("_loaded", None)


def typed(*words: str) -> str:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_family_of_another_package_works_wherever_a_model_does(install: Install) -> None:
    install(MLP)
    assert families.FAMILIES.left_out() == ()
    listed = typed("zoo", "list").splitlines()
    for name in ("mlp1.in1k", "mlp2.untrained", "mlp1.untrained-small"):
        assert any(line.startswith(f"{name} ") for line in listed)
    assert "perceptron of 2 layers, patches of 2" in typed("zoo", "show", "mlp2(patch=2)")
    assert "hidden" in typed("complexity", "-m", "mlp1", "--stages")
    assert "mlp2.untrained-small" in typed("rotate", "-m", "mlp2.untrained-small",
                                           "--num-samples", "4")


def test_a_network_of_another_package_is_built_trained_and_added(install: Install) -> None:
    install(MLP)
    model = create_model("mlp2", tag="untrained-small")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    typed("train", "-m", "mlp2(patch=2)", "--epochs", "1", "--tag", "mine", "--out", "w")
    typed("zoo", "add", "mlp2(patch=2).mine", "w/mlp2(patch=2).mine.safetensors")
    entry = catalog.find("mlp2( Patch = 2 ).mine")
    assert entry.architecture == small_config("mlp2(patch=2)")
    assert typed("zoo", "verify", entry.name).split()[1] == "ok"


def test_a_mistyped_name_is_answered_with_theirs(install: Install) -> None:
    with pytest.raises(UnknownNameError, match="no model named 'mpl1': see sanrobust zoo list$"):
        catalog.find("mpl1")
    install(MLP)
    with pytest.raises(UnknownNameError, match=r"did you mean mlp1\?"):
        catalog.find("mpl1")
    with pytest.raises(UnknownNameError, match="patch of mlp1 must be one of 2, 4"):
        catalog.find("mlp1(patch=3)")


@pytest.mark.parametrize(("old", "new", "reason"), [
    ("MLP = Family(", "MLP = dict(", "it must be of the kind Family"),
    ("MLP = Family(", "import no_such_module\nMLP = Family(", "No module named"),
    ('"mlp1", "mlp2"', '"mlp1", "resnet26"', "the name 'resnet26' is taken"),
    ('= "mlp"', '= "san"', "the name 'san' is taken"),
    ('"mlp1", "mlp2"', '"Mlp1", "mlp2"', "'Mlp1' must be of small letters"),
    ('"mlp1", "mlp2"', '"vit.b1", "mlp2"', "'vit.b1' must be of small letters"),
    ("int(name.network[-1])", "name.depth", "no attribute 'depth'"),
    ("    num_classes: int = 1000\n", "    classes: int = 1000\n", "num_classes"),
    ("    side: int\n", "    side: Side\n", "name 'Side' is not defined"),
    ("(int(name.network[-1]),)", "[1]", "unhashable"),
    ("    @property\n    def sizes", "    @property\n    def size", "no attribute 'sizes'"),
    ("MlpConfig((int", "dict((int", "TypeError"),
    ("from typing", "raise SystemExit(3)\nfrom typing", "SystemExit: 3"),
])
def test_a_broken_family_is_named_and_skipped(install: Install, old: str, new: str,
                                              reason: str) -> None:
    assert MLP.count(old) == 1
    install(MLP.replace(old, new))
    problem, = families.FAMILIES.left_out()
    assert problem.startswith("mlp0 of the package ? is left out: their_models0:MLP, an entry "
                              "point of sanrobust.models, cannot be had (")
    assert reason in problem
    assert families.families() == families.ENTRIES
    done = CliRunner().invoke(main, ["zoo", "list"])
    assert done.exit_code == 0 and f"note: {problem}" in done.stderr
    assert "mlp0 of the package" in typed("--help")


def test_of_two_families_of_one_name_the_second_is_skipped(install: Install) -> None:
    install(MLP)
    install(MLP)
    problem, = families.FAMILIES.left_out()
    assert problem.startswith("mlp1 of") and "is taken" in problem
    assert len(families.families()) == len(families.ENTRIES) + 1


@pytest.mark.parametrize("family", families.ENTRIES, ids=lambda each: each.name)
def test_our_families_are_sound_and_theirs_alone(family: families.Family[Any]) -> None:
    family.require_sound()
    for network in family.networks:
        assert families.networks()[network] is family
        for config in (imagenet_config(network), small_config(network)):
            assert families.family_of(config) is family


@pytest.mark.parametrize(("value", "digest"), [
    (DEFAULTS["pairwise"], "22d9576977f2"), (small_config("san10-sasa"), "58bf1e720b40"),
    (small_config("resnet26"), "3b47e7f3d83d"), (small_config("sasa26"), "80359fe452b9"),
])
def test_records_made_before_these_classes_had_their_names_stay_valid(value: object,
                                                                      digest: str) -> None:
    assert value_digest(value).startswith(digest)
