"""What setup.cfg asks for: every bound written once, and the oldest versions read off it."""

from __future__ import annotations

import importlib.util
import re
from configparser import ConfigParser
from pathlib import Path

import pytest

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
