"""`sanrobust status`: how far runs are and who is at work, from files alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Command
from made_runs import IDS, SPEC, append, blocks_of, make_old_run, make_run, record_files, rows
from sanrobust.errors import OutputError
from sanrobust.header import started
from sanrobust.records import RunStore
from sanrobust.shards import Shard
from sanrobust.status import _duration, status_lines


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_runs_is_told_in_one_sentence(command: Command, tmp_path: Path,
                                                       there: bool) -> None:
    result = command("status", tmp_path if there else tmp_path / "absent")
    assert result.exit_code == OutputError.exit_code and len(result.output.splitlines()) == 1
    assert ("holds none" if there else "there is no folder") in result.output


def test_complete_and_unfinished_runs_are_told(command: Command, tmp_path: Path) -> None:
    whole = make_run(tmp_path, "ab", "cd")
    half = replace(SPEC, model="n.t")
    with pytest.raises(OutputError):
        make_run(tmp_path, "ab", spec=half)
    lines = command("status", tmp_path).stdout.splitlines()
    assert lines[0].startswith(f"{whole.name}: complete, 4 images, measured 20")
    assert lines[1] == f"{half.run_id}: 2 of 4 images; 1 of 2 blocks; 2 missing"
    assert lines[2].startswith("  nobody is at work: ended with an error after 2 of 4 images")
    assert "type sanrobust rotate -m m.t --out" in lines[2] and len(lines) == 3


def test_who_is_at_work_is_told_with_rate_and_time_left(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store, blocks_of(2):
        with started(store, IDS, facts={}, remarks={}, shard=Shard(1, 3, "--shard 2/3")) as start:
            start.claim(0)
            append(store, rows("a"))
            start.count(1)
            start._recent[0] = (start._recent[0][0] - 100, 0)
            start.write("running")
            first, speed, worker = status_lines(tmp_path)
            append(store, rows("bcd"))
    assert first.endswith("1 of 4 images; 0 of 2 blocks; 3 missing")
    assert speed.startswith("  0.01 images/s over the last minutes, about 5 min left")
    assert ", part 2 of 3, since 20" in worker and "at block 0, 1 images so far" in worker


def test_failed_images_are_counted(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store, blocks_of(2):
        with started(store, IDS, facts={}, remarks={}):
            append(store, rows("ac", error="damaged"))
            append(store, rows("b"))
            (line, _, _) = status_lines(tmp_path)
            append(store, rows("d"))
    assert "3 of 4 images, 2 of them failed; 1 of 2 blocks" in line
    assert ": complete, 4 images, 2 of them failed" in next(status_lines(tmp_path))


def test_runs_of_earlier_versions_are_told(tmp_path: Path) -> None:
    make_old_run(tmp_path, "ab", "c", status="interrupted")
    make_old_run(tmp_path, "abcd", spec=replace(SPEC, model="n.t"), sealed=False)
    lines = list(status_lines(tmp_path))
    assert sum(": complete, 4 images, measured 2026-01-01" in line for line in lines) == 1
    assert sum(": 3 of 4 images; 1 missing" in line for line in lines) == 1
    assert any("was interrupted after 3 of 4 images" in line for line in lines)


def test_a_damaged_run_hides_no_other_and_is_named_at_the_end(command: Command,
                                                              tmp_path: Path) -> None:
    bad = make_run(tmp_path, "abcd")
    good = make_run(tmp_path, "abcd", spec=replace(SPEC, model="n.t"))
    (bad.folder / "run.json").write_text(json.dumps({"spec": 3}))
    result = command("status", tmp_path)
    assert result.exit_code == OutputError.exit_code and good.name in result.stdout
    assert "run.json does not" in result.stderr
    (bad.folder / "run.json").unlink()
    (path,) = record_files(good)
    path.write_bytes(b"")
    assert f"{path.name} does not" in command("status", tmp_path).output


@pytest.mark.parametrize(("seconds", "words"), [
    (3, "3 s"), (59, "1 min"), (3600, "1 h 0 min"), (5400, "1 h 30 min"), (100_000, "1 d 3 h")])
def test_times_are_told_as_people_say_them(seconds: float, words: str) -> None:
    assert _duration(seconds) == words


def test_status_reads_no_rows_and_writes_nothing(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "ab", "cd")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    from sanrobust.records import reader

    def refuse(*_: object) -> None:
        raise AssertionError("rows are read")

    monkeypatch.setattr(reader, "read_sealed", refuse)
    assert len(list(status_lines(tmp_path))) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_was_stopped_before_its_header_is_none_yet(command: Command, tmp_path: Path
                                                              ) -> None:
    whole = make_run(tmp_path, "abcd")
    with RunStore(tmp_path, replace(SPEC, model="n.t")) as begun:
        assert begun.folder.is_dir()
    for words in (("status", tmp_path), ("table", "--out", tmp_path)):
        result = command(*words)
        assert result.exit_code == 0 and begun.folder.name not in result.output
    (whole.folder / "run.json").unlink()
    told = command("status", tmp_path).output
    assert "run.json does not" in told and "or type the command that measured it again" in told
