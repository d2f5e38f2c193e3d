"""Commands in processes that start at once: forked from one that has loaded everything.

As a script this is that process. It reads a line of JSON at a time and answers with a line: how to
start a command is answered with its process id, a process id with its exit code when it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any


class WarmCommands:
    """Starts commands; each is a session of its own, in which its workers are found."""

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, __file__], text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, *argv: str, folder: Path, said: Path) -> int:
        """Start a command in ``folder``, with ``SANROBUST_HOME`` there, and return its id.

        ``said`` is a file or a pipe for all that it prints.
        """
        return self._ask({"argv": argv, "folder": str(folder), "said": str(said)})

    def wait(self, pid: int) -> int:
        """Return the exit code of a command; that of a killed one is negative."""
        return self._ask(pid)

    def close(self) -> None:
        """End the process that starts the commands."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _ask(self, question: object) -> int:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        return int(self._server.stdout.readline())


def alive(session: int) -> list[int]:
    """Return the processes of a session; those that have ended and wait for nobody are not."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def _serve() -> None:
    for name in ("torch", "pandas", "pyarrow.parquet", "sanrobust.api", "sanrobust.study",
                 "sanrobust.tables", "sanrobust.zoo.libraries", "sanrobust.cli"):
        __import__(name)
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, int):
            print(os.waitstatus_to_exitcode(os.waitpid(question, 0)[1]), flush=True)
        else:
            pid = os.fork()
            if not pid:
                _become(question)
            print(pid, flush=True)


def _become(question: dict[str, Any]) -> None:
    """Be the command, to the end of this process."""
    os.setsid()
    os.chdir(question["folder"])
    os.environ["SANROBUST_HOME"] = question["folder"] + "/home"
    with open(question["said"], "w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # not of interest before the command begins
    sys.modules["__main__"] = types.ModuleType("__main__")  # nothing that a worker must load
    from sanrobust.cli import main
    code = 1
    try:
        main(question["argv"], prog_name="sanrobust")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
