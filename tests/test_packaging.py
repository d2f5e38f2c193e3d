"""What setup.cfg asks for: every bound written once, and the oldest versions read off it."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment, StrictUndefined

from conftest import Command

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("oldest", ROOT / ".ci" / "oldest.py")
assert _spec is not None and _spec.loader is not None
oldest_script = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oldest_script)

SETTINGS = """
[metadata]
name = mine
[options]
install_requires =
    first>=1.2
    second-part>=0.3.1
[options.extras_require]
attacks =
    third>=4
dev =
    mine[attacks]
    fourth>=5.0
"""


def settings() -> ConfigParser:
    found = ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def test_the_oldest_versions_are_the_bounds() -> None:
    assert oldest_script.oldest(SETTINGS, []) == ["first==1.2", "second-part==0.3.1"]
    assert oldest_script.oldest(SETTINGS, ["dev", "attacks"])[2:] == ["fourth==5.0", "third==4"]


@pytest.mark.parametrize("requirement", ["first", "first==1.2", "first>=1.2,<2", "first>1"])
def test_a_requirement_without_a_plain_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="name>=version"):
        oldest_script.oldest(SETTINGS.replace("first>=1.2", requirement), [])


def test_every_requirement_of_the_package_and_its_tests_has_a_bound() -> None:
    pins = oldest_script.oldest((ROOT / "setup.cfg").read_text("utf-8"), ["torchattacks", "dev"])
    names = [pin.partition("==")[0] for pin in pins]
    assert len(set(names)) == len(names)
    assert {"torch", "torchvision", "torchattacks", "pytest"} <= set(names)


def test_torchattacks_is_an_extra_that_the_tests_and_both_commands_bring() -> None:
    options = settings()["options.extras_require"]
    assert "torchattacks" not in settings()["options"]["install_requires"]
    assert options["torchattacks"].split() == ["torchattacks>=3.5.1"]
    assert "sanrobust[torchattacks]" in options["dev"].split()
    text = (ROOT / "Makefile").read_text("utf-8")
    installs = [line for line in text.splitlines()
                if "$(PIP) install" in line and "$(GPU)" not in line and "auditwheel" not in line]
    assert len(installs) == 2
    assert all("[torchattacks]" in line or "[$(EXTRAS)]" in line for line in installs)
    chosen = re.findall(r"\bEXTRAS(?: \?)?=\s*(\S+)", text)  # by default, and for the oldest
    assert [each.split(",")[0] for each in chosen] == ["dev", "dev"]


def test_every_file_of_the_package_that_is_no_module_is_installed() -> None:
    patterns = {package: globs.replace(",", " ").split()
                for package, globs in settings()["options.package_data"].items()}
    package = ROOT / "sanrobust"
    listed = {path for name, globs in patterns.items() for glob in globs
              for path in (ROOT / name.replace(".", "/")).glob(glob)}
    # What is made when the package is built has its own way into it.
    found = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".py"
             and not {"__pycache__", "lib"} & set(path.relative_to(package).parts)}
    assert found == listed
    assert package / "reporting" / "templates" / "report.html" in found


# What conda-forge calls otherwise; its matplotlib brings windows, which nothing here opens.
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def recipe() -> dict[str, Any]:
    """The recipe of conda as conda-build reads it, in YAML behind Jinja."""
    text = (ROOT / "conda" / "meta.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(Environment(undefined=StrictUndefined).from_string(
        text).render(PYTHON="python", compiler="{}".format, stdlib="{}".format))
    return found


def test_the_recipe_of_conda_says_what_setup_cfg_says() -> None:
    made, asked = recipe(), settings()
    package, requirements = made["package"], made["requirements"]
    metadata, options = asked["metadata"], asked["options"]
    assert package == {"name": metadata["name"], "version": metadata["version"]}
    assert made["about"]["license"] == metadata["license"]
    assert made["about"]["summary"] == metadata["description"]
    assert made["about"]["license_file"] == metadata["license_files"]
    assert (ROOT / metadata["license_files"]).is_file()
    bounds = dict(line.split(">=") for line in options["install_requires"].split())
    wanted = {CONDA_NAMES.get(name, name): f">={bound}" for name, bound in bounds.items()}
    wanted["python"] = options["python_requires"]
    assert dict(line.split(" ") for line in requirements["run"]) == wanted
    scripts = asked["options.entry_points"]["console_scripts"].split("\n")
    assert made["build"]["entry_points"] == [line for line in scripts if line]
    built = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]
    assert [line.replace(" ", "") for line in requirements["host"]][2:] == built["requires"]


def test_what_the_recipe_of_conda_tries_is_there(command: Command, tmp_path: Path) -> None:
    tested = recipe()["test"]
    for name in tested["imports"]:
        importlib.import_module(name)
    for line in tested["commands"]:
        program, *words = line.split()
        if program == "sanrobust":
            place = [] if words == ["info"] else ["--out", tmp_path]
            assert command(*words, *place).exit_code == 0, line


def test_the_version_stands_alike_wherever_it_is_written() -> None:
    version = settings()["metadata"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert recipe()["package"]["version"] == version
