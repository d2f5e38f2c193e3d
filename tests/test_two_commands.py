"""Runs in the order of their starts whatever the clock says, and tables of two commands at once."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from made_runs import SPEC, make_old_run, make_run
from sanrobust import header, runs, summary
from sanrobust.errors import OutputError
from sanrobust.runs import find_runs, tables_locked
from sanrobust.summary import rebuild, summarise


def shown(out: Path) -> list[str]:
    return pd.read_csv(out / "rotation.csv")["run_id"].tolist()


@pytest.mark.parametrize("earlier", [False, True], ids=["this version's", "an earlier version's"])
def test_a_fresh_run_is_the_newer_one_though_the_clock_was_set_back(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    first = (make_old_run(tmp_path, "abcd", sealed=False) if earlier
             else make_run(tmp_path, "abcd"))
    monkeypatch.setattr(header, "now", lambda: "2001-01-01T00:00:00.000+00:00")
    second = make_run(tmp_path, "abcd", fresh=True)
    other = make_run(tmp_path, "abcd", spec=replace(SPEC, model="a.t"))
    assert [run.name for run in find_runs(tmp_path, "rotate").runs] == [
        first.name, second.name, other.name]
    rebuild(tmp_path, "rotate")
    assert second.name in shown(tmp_path) and first.name not in shown(tmp_path)


def test_going_on_with_a_run_keeps_its_place(tmp_path: Path) -> None:
    first = make_run(tmp_path, "ab", "cd")
    second = make_run(tmp_path, "abcd", spec=replace(SPEC, model="n.t"))
    (first.folder / "records" / "block-000001.parquet").unlink()
    make_run(tmp_path, "cd")
    assert [run.order for run in find_runs(tmp_path, "rotate").runs] == [1, 2]
    assert find_runs(tmp_path, "rotate").runs[1].name == second.name


def test_a_table_that_was_begun_earlier_does_not_stand_over_a_later_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "abcd")
    has_read, may_write = threading.Event(), threading.Event()
    write_table = summary.write_table

    def slowly(*args: object) -> object:
        if threading.current_thread() is slow:
            has_read.set()
            assert may_write.wait(20)
        return write_table(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(summary, "write_table", slowly)
    slow = threading.Thread(target=rebuild, args=(tmp_path, "rotate"))
    slow.start()
    assert has_read.wait(20)
    later = make_run(tmp_path, "abcd", spec=replace(SPEC, model="n.t"))
    quick = threading.Thread(target=summarise, args=([later], tmp_path))
    quick.start()
    quick.join(0.3)
    assert quick.is_alive()  # it waits for its turn
    may_write.set()
    slow.join(20)
    quick.join(20)
    assert shown(tmp_path) == [later.name]


def test_a_command_does_not_wait_for_ever_for_another_ones_table(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "abcd")
    monkeypatch.setattr(runs, "TABLES_SECONDS", 0.2)
    with tables_locked(tmp_path):
        with pytest.raises(OutputError, match="type sanrobust table --out"):
            rebuild(tmp_path, "rotate")
    rebuild(tmp_path, "rotate")


def test_a_folder_without_runs_gets_no_lock(tmp_path: Path) -> None:
    with tables_locked(tmp_path / "absent"):
        pass
    assert not list(tmp_path.iterdir())


def test_an_order_that_is_no_number_is_none(tmp_path: Path) -> None:
    run = make_old_run(tmp_path, "abcd", sealed=False)
    old = json.loads((run.folder / "run.json").read_text())
    (run.folder / "run.json").write_text(json.dumps({**old, "order": "first"}))
    assert [each.order for each in find_runs(tmp_path, "rotate").runs] == [0]
