"""torchattacks is an extra: everything but its own attacks works without it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import Command

from sanrobust.attacks.settings import AttackSettings
from sanrobust.attacks.torchattacks_adapter import adapt
from sanrobust.errors import UsageError

HINT = "type pip install 'sanrobust[torchattacks]'"
# Every module of the package, in a process in which torchattacks cannot be imported.
IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules["torchattacks"] = None
import sanrobust
for module in pkgutil.walk_packages(sanrobust.__path__, "sanrobust."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)


def test_no_module_imports_torchattacks_when_it_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("absent")
def test_an_attack_of_torchattacks_says_what_to_type_without_it(command: Command) -> None:
    done = command("pgd", "-m", "san10-pair.digits", "--attack", "torchattacks:MIFGSM")
    assert done.exit_code == 2
    assert "torchattacks is not installed" in done.output and HINT in done.output


@pytest.mark.usefixtures("absent")
def test_the_specification_of_such_a_run_says_it_too() -> None:
    for call in (lambda: adapt("PGD"), AttackSettings(attack="torchattacks:PGD").as_dict):
        with pytest.raises(UsageError, match="torchattacks is not installed"):
            call()


@pytest.mark.usefixtures("absent")
def test_our_attack_and_the_facts_of_the_installation_do_without_it(
        command: Command, tmp_path: object) -> None:
    assert command("info").exit_code == 0
    done = command("pgd", "-m", "san10-pair.digits", "--num-samples", 4, "--out", tmp_path)
    assert done.exit_code == 0, done.output
