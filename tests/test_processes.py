"""Stop signals, workers, trouble of the machine: each ends in a sentence and leaves no trace."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from conftest import SCRIPT, Command
from sanrobust import files, processes
from sanrobust.cli import group
from sanrobust.cli.streams import patient_stderr
from sanrobust.errors import MachineError, OutputError
from sanrobust.files import atomic_write, host, require_writable, sweep, write_keeping
from sanrobust.processes import (STOPS, become_worker, stoppable, stops_held, uninterrupted,
                                 workers_ended_on_error)
from sanrobust.trouble import lacking, machine_error

FORK = multiprocessing.get_context("fork")


def _work(ready: Path) -> None:
    become_worker()
    ready.write_text(str(os.getpid()))
    time.sleep(60)


def _work_for_a_parent(ready: Path) -> None:
    FORK.Process(target=_work, args=(ready,)).start()


def _gone(pid: int, within: float = 5.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def _read_when_there(path: Path) -> str:
    until = time.monotonic() + 20
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("by_the_system", [True, False])
def test_a_worker_ends_with_the_process_it_works_for(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_the_system: bool) -> None:
    if not by_the_system:
        monkeypatch.setattr("sanrobust.processes._killed_with_parent", lambda: False)
    parent = FORK.Process(target=_work_for_a_parent, args=(tmp_path / "ready",))
    parent.start()
    worker = int(_read_when_there(tmp_path / "ready"))
    assert not _gone(worker, within=0.1)
    parent.kill()
    assert _gone(worker)
    parent.join()


@pytest.mark.parametrize(("error", "told"), [
    (ConnectionResetError("x"), False), (EOFError(), False), (ValueError("a defect"), True)])
def test_a_worker_says_nothing_of_a_parent_that_left(
        capfd: pytest.CaptureFixture[str], error: Exception, told: bool) -> None:
    def work() -> None:
        become_worker()
        sys.excepthook(type(error), error, None)

    worker = FORK.Process(target=work)
    worker.start()
    worker.join()
    assert (type(error).__name__ in capfd.readouterr().err) == told


@pytest.mark.parametrize("number", STOPS)
def test_impatience_does_not_interrupt_what_saves(number: int) -> None:
    saved = False
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            saved = True
    assert saved and stop.heard == signal.Signals(number).name


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.heard is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_failed_block_started_is_ended() -> None:
    with pytest.raises(ValueError), workers_ended_on_error():
        worker = FORK.Process(target=time.sleep, args=(60,))
        worker.start()
        raise ValueError
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("error", "what"), [
    (MemoryError(), "memory"), (OSError(errno.EMFILE, "x"), "open files"),
    (RuntimeError("can't start new thread"), "processes and threads"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "memory"),
    (ImportError("libx.so: failed to map segment from shared object"), "memory"),
    (OSError(errno.EAGAIN, "fork"), "processes and threads"),
    (ValueError("out of memory"), None), (OSError(errno.ENOENT, "x"), None)])
def test_trouble_of_the_machine_is_told_from_defects(error: Exception, what: str | None) -> None:
    assert lacking(error) == what
    told = machine_error(error)
    assert (told is None) == (what is None) and (what or "") in str(told)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_trouble_of_the_machine_is_a_sentence_of_any_command(
        command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["sanrobust.cli.complexity"], "_print_models", fail)
    result = command("complexity", "-m", "resnet26")
    assert result.exit_code == MachineError.exit_code
    assert "the machine must have enough" in result.output and "Traceback" not in result.output


def test_an_interrupt_that_a_library_turned_into_an_error_is_still_one(
        command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise RuntimeError("a defect, it seems") from error

    before = {number: signal.getsignal(number) for number in STOPS}
    monkeypatch.setattr(sys.modules["sanrobust.cli.complexity"], "_print_models", fail)
    try:
        result = command("complexity", "-m", "resnet26")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert result.exit_code == 130 and "stopped by SIGTERM" in result.output


def test_few_descriptors_end_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [SCRIPT, "rotate", "-m", "resnet26", "--num-samples", "4", "-j", "2", "--out", tmp_path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (14, 14)),
        capture_output=True, text=True)
    # At its exit torch 2.6 removes a folder of its own, and says so when it has no descriptor left.
    told = re.sub(r"(?s)Traceback [^\n]*\n  File \"[^\n]*weakref.py\".*", "", done.stderr)
    assert done.returncode not in (0, 1) and "Traceback" not in told
    assert "one of 1 failed" in told.splitlines()[-1]


def test_nobody_need_listen_to_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    with patient_stderr():
        print("going on", file=sys.stderr, flush=True)
    assert sys.stderr is gone


def test_leftovers_of_the_killed_are_swept_and_those_of_the_living_are_not(
        tmp_path: Path) -> None:
    ended = FORK.Process(target=int)
    ended.start()
    ended.join()
    killed = [tmp_path / name for name in (
        ".sanrobust-abc.tmp", f".sanrobust-{host()}-{ended.pid}-a1_b.tmp",
        ".sanrobust-else-where-7-long_ago.tmp")]
    left = [tmp_path / name for name in ("mine.tmp", ".sanrobust-else-where-7-just_now.tmp")]
    for path in (*killed, *left):
        path.write_text("half")
    os.utime(killed[-1], (0, time.time() - 3601))
    with atomic_write(tmp_path / "a") as stream:  # the first write into the folder
        assert not any(path.exists() for path in killed)
        with pytest.MonkeyPatch.context() as unlocked:  # a file system where locks mean nothing
            unlocked.setattr(files, "try_lock", lambda _: True)
            sweep(tmp_path)
        stream.write(b"whole")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a": "whole", **{path.name: "half" for path in left}}


def test_a_file_that_is_swept_before_it_is_locked_is_left_to_its_writer(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("old")
    lock = files.try_lock

    def late(handle: int) -> bool:
        monkeypatch.setattr(files, "try_lock", lock)
        sweep(tmp_path)
        return False  # as if another thread's sweep had the lock at this moment

    with atomic_write(tmp_path / "b"):  # the first write into the folder sweeps by itself
        pass
    monkeypatch.setattr(files, "try_lock", late)
    with atomic_write(tmp_path / "a") as stream:
        stream.write(b"new")
    assert (tmp_path / "a").read_text() == "new"


def test_earlier_content_is_kept_under_its_own_name_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "w"
    assert write_keeping(path, b"1") is None and write_keeping(path, b"1") is None
    assert write_keeping(path, b"2") == tmp_path / "w.previous"
    assert (path.read_bytes(), (tmp_path / "w.previous").read_bytes()) == (b"2", b"1")


@pytest.mark.parametrize("name", ["a folder", "n" * 300])
def test_a_file_that_cannot_be_written_is_noticed_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "a folder").mkdir()
    with pytest.raises(OutputError, match="writing .* failed"):
        require_writable(tmp_path, "new", name)


@pytest.mark.parametrize("argv", [
    ("study", "-m", "resnet26"), ("bench", "operators"), ("show", "attention"),
    ("complexity", "-m", "resnet26"), ("rotate", "-m", "resnet26"), ("train", "-m", "resnet26")])
def test_a_command_notices_at_once_where_it_cannot_write(
        command: Command, tmp_path: Path, argv: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("")
    result = command(*argv, "--out", tmp_path / "file")
    assert result.exit_code == OutputError.exit_code and "must be writable" in result.output
    assert not re.search("to train|epoch|top-1|GFLOP|images/s|FLOPs", result.output)


def test_off_the_main_thread_signals_are_left_to_others() -> None:
    before, found = [signal.getsignal(number) for number in STOPS], []

    def work() -> None:
        with stoppable() as stop, uninterrupted():
            found.append((stop.heard, [signal.getsignal(number) for number in STOPS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert found == [(None, before)]


def test_a_system_without_masks_of_signals_holds_nothing_back(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "pthread_sigmask")
    with stops_held():
        pass


def test_stops_wait_for_the_end_of_the_block() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(KeyboardInterrupt), stops_held():
        # To this thread: of a signal to the process any thread may hear.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        waited = signal.SIGINT in signal.sigpending()
    assert waited and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.parametrize(("error", "printed"), [
    (EOFError(), False), (ConnectionResetError(), False), (ValueError("a defect"), True)])
def test_only_the_end_of_the_parent_is_no_traceback(
        capsys: pytest.CaptureFixture[str], error: Exception, printed: bool) -> None:
    processes._unless_parent_left(type(error), error, None)
    assert ("a defect" in capsys.readouterr().err) == printed


def test_the_system_is_asked_only_where_it_can_kill_with_the_parent(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not processes._killed_with_parent()


def test_what_follows_a_parent_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def end(code: int) -> None:
        assert code == 1
        raise Ended

    worker = FORK.Process(target=time.sleep, args=(0.1,))
    worker.start()
    monkeypatch.setattr(os, "_exit", end)  # after the fork, or the worker would not end by itself
    with pytest.raises(Ended):
        processes._follow(worker)
    worker.join(20)
    assert worker.exitcode == 0


@pytest.mark.parametrize(("heard", "error", "told"), [
    (None, KeyboardInterrupt(), "it was stopped by an interrupt"),
    ("SIGTERM", ValueError("of a library"), "it was stopped by SIGTERM"),
    (None, OutputError("a rule", seen="a fact", hint="a hint"), "a rule, but a fact"),
    (None, MemoryError(), "enough memory"), (None, ValueError("a defect"), None)])
def test_a_command_tells_what_ended_it_but_defects_keep_their_traceback(
        heard: str | None, error: BaseException, told: str | None) -> None:
    stop = processes.Stop()
    stop.heard = heard
    problem = group._problem(error, stop)
    assert (problem is None) == (told is None) and (told or "") in str(problem)
