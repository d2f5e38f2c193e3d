"""The three standard streams: closed, full, gone."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from sanrobust.cli import streams
from sanrobust.errors import OutputError


class Refusing(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Replace a stream until the test ends."""
    return lambda name, stream: monkeypatch.setattr(sys, name, stream)


def test_streams_that_python_does_not_have_are_opened(
        restored: Callable[[str, object], None]) -> None:
    for name in ("stdout", "stderr"):
        restored(name, None)
    streams.open_streams()
    assert sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2
    for stream in (sys.stdout, sys.stderr):
        stream.detach()  # type: ignore[attr-defined]  # or its end would close the descriptor


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_descriptor_is_not_given_to_the_next_file(closed: tuple[int, ...]) -> None:
    script = ("import os, sys\n"
              f"for number in {closed}: os.close(number)\n"
              "from sanrobust.cli.streams import open_streams\n"
              "open_streams()\n"
              "found = os.open(os.devnull, os.O_RDONLY)\n"
              "os._exit(0 if found > 2 else 1)\n")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_an_encoding_cannot_spell_is_escaped(
        restored: Callable[[str, object], None]) -> None:
    content = io.BytesIO()
    restored("stdout", io.TextIOWrapper(content, encoding="ascii"))
    streams.open_streams()
    print("caf\u00e9", flush=True)
    assert content.getvalue().split() == [b"caf\\xe9"]


def test_an_error_of_standard_output_is_told_from_others(
        restored: Callable[[str, object], None]) -> None:
    full = OSError(errno.ENOSPC, "no space")
    restored("stdout", io.StringIO())
    assert not streams.refused_by_output(full)
    restored("stdout", Refusing())
    assert streams.refused_by_output(full)
    assert not streams.refused_by_output(BrokenPipeError(errno.EPIPE, "gone"))


def test_what_is_left_for_a_full_standard_output_is_dropped(
        restored: Callable[[str, object], None]) -> None:
    restored("stdout", Refusing())
    error = streams.nowhere_to_print(OSError(errno.ENOSPC, "no space left"), hint="try a file")
    assert isinstance(error, OutputError)
    assert "no space left" in str(error) and "try a file" in str(error)
    with sys.stdout:
        print("more", flush=True)


def test_a_patient_stream_drops_what_is_not_taken(
        restored: Callable[[str, object], None]) -> None:
    restored("stderr", Refusing())
    with streams.patient_stderr():
        outer = sys.stderr
        assert sys.stderr.write("lost") == 4
        sys.stderr.flush()
        assert not sys.stderr.isatty()
        with streams.patient_stderr():
            assert sys.stderr is outer
    assert isinstance(sys.stderr, Refusing)
    restored("stderr", None)
    with streams.patient_stderr():
        assert sys.stderr is None
