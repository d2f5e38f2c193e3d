"""Threads that wait leave their processor to others, unless the user says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = """
import os, sys
{before}
from sanrobust.cli import main
main(["zoo", "list"], standalone_mode=False)
print(os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(("chosen", "before", "policy"), [
    ({}, "", "passive False"), ({"OMP_WAIT_POLICY": "active"}, "", "active False"),
    ({"GOMP_SPINCOUNT": "1000"}, "", "None False"),
    # Too late for it: the library is loaded.
    ({}, "import torch", "None True"),
])
def test_the_command_lets_waiting_threads_sleep(chosen: dict[str, str], before: str,
                                                policy: str) -> None:
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", SHOW.format(before=before)], check=True,
                          env={**environment, **chosen}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == policy
