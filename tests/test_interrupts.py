"""Signals that stop a command wait while something is saved, and are heard afterwards."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path

import pytest

from made_runs import IDS, SPEC, rows
from sanrobust.errors import OutputError
from sanrobust.evaluate import _Buffer
from sanrobust.experiments.base import Columns, stacked
from sanrobust.processes import end_if_stopped, stoppable, uninterrupted
from sanrobust.records import RunStore


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_heard_when_the_block_has_ended(number: signal.Signals) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    done = []
    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            with uninterrupted():
                signal.raise_signal(number)
                with uninterrupted():
                    signal.raise_signal(number)
                done.append("saved")
            done.append("not reached")
        assert done == ["saved"] and signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


def test_a_signal_that_was_ignored_stays_so_and_other_threads_are_left_alone() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with uninterrupted():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with uninterrupted():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_an_error_of_the_block_is_not_hidden() -> None:
    with pytest.raises(OutputError), uninterrupted():
        raise OutputError("a", seen="b", hint="c")


class Interrupting(dict[str, list[object]]):
    """Columns at which Ctrl-C comes while they are read."""

    def __getitem__(self, name: str) -> list[object]:
        signal.raise_signal(signal.SIGINT)
        return super().__getitem__(name)


def test_ctrl_c_while_rows_are_joined_costs_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stacked([Interrupting(rows("a"))])  # so it is without care
    with RunStore(tmp_path, SPEC) as store:
        store.take_up(IDS)
        with pytest.raises(KeyboardInterrupt), _Buffer(store, 0) as buffer:
            buffer.add([rows("a")], 1)
            buffer.add([Interrupting(rows("b"))], 1)
        store.take_up(IDS)
        assert store.todo(0) == [2, 3]


def test_ctrl_c_while_a_file_is_written_neither_loses_nor_doubles_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.take_up(IDS)
        append = store.append

        def interrupted(block: int, columns: Columns) -> None:
            signal.raise_signal(signal.SIGINT)
            append(block, columns)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(store, "append", interrupted)
        with pytest.raises(KeyboardInterrupt), _Buffer(store, 0) as buffer:
            buffer.add([rows("a")], 1)
            buffer.flush()
        store.take_up(IDS)
        assert store.todo(0) == [1, 2, 3]


def test_a_stop_that_went_unheard_is_raised_again() -> None:
    with stoppable():
        end_if_stopped()
        with contextlib.suppress(KeyboardInterrupt):  # as where an object is deleted
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            end_if_stopped()
    end_if_stopped()
