"""What every test starts from: no user's settings, one thread, a command runner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

# Set before torch is loaded, here and in the processes that tests start: several test processes
# with a full set of threads each would wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
# Where a test asks for more, those that wait give up their processor, as with the command.
os.environ["OMP_WAIT_POLICY"] = "passive"

Command = Callable[..., Result]
SOURCES = str(Path(__file__).parents[1])
SCRIPT = Path(sys.executable).with_name("sanrobust")


@pytest.fixture(autouse=True)
def _no_user_settings(tmp_path_factory: pytest.TempPathFactory,
                      monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SANROBUST_DATA", "SANROBUST_DATA_ROOT", "SANROBUST_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path_factory.mktemp("store")))
    monkeypatch.setenv("COLUMNS", "100")  # of the terminal, to whose width tables are cut
    # pytest-cov puts the source tree first, where processes that tests start would find a package
    # without its compiled kernels in place of the installed one.
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != SOURCES])


@pytest.fixture(scope="session", autouse=True)
def _stops_are_heard() -> None:
    # Jobs in the background of a script ignore one, those of nohup the other, and what they start
    # inherits that.
    for number, handler in ((signal.SIGINT, signal.default_int_handler),
                            (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def command() -> Command:
    """Run ``sanrobust`` in this process; a traceback is a failure of the test."""
    def run(*arguments: object) -> Result:
        from sanrobust.cli import main
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result
    return run


@pytest.fixture
def process() -> Callable[..., subprocess.Popen[str]]:
    """Start ``sanrobust`` as a process of its own."""
    def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPT, *(str(argument) for argument in arguments)],
            cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return start
