"""Runs that rot or are tampered with: refused by name, and the others shown."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from made_runs import IDS, SPEC, make_old_run, make_run, record_files
from sanrobust.errors import OutputError
from sanrobust.header import complete, missing
from sanrobust.records import RunStore
from sanrobust.runs import Run, find_runs, open_run
from sanrobust.summary import rebuild


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def outcome_of(run: Run, path: Path, bit: int) -> str:
    """Flip a bit, read the run, and flip it back; what reads differently is an error."""
    whole = run.records()
    flip(path, bit)
    try:
        found = open_run(run.folder)
        assert found.header == run.header and found.records().equals(whole), (path.name, bit)
        return "without effect"
    except OutputError as error:
        assert str(path) in error.seen
        return "refused"
    finally:
        flip(path, bit)


def sweep(out: Path, flips: int | None) -> Counter[tuple[str, str]]:
    """Flip single bits, all of them or so many of each file, and count what comes of it."""
    run, chance = make_run(out, "ab", "cd"), random.Random(0)
    outcomes: Counter[tuple[str, str]] = Counter()
    for path in (run.folder / "run.json", *record_files(run)):
        bits = range(8 * path.stat().st_size)
        for bit in bits if flips is None else chance.sample(bits, flips):
            outcomes[path.name, outcome_of(run, path, bit)] += 1
    return outcomes


def test_a_flipped_bit_is_refused_by_name_or_changes_nothing(tmp_path: Path) -> None:
    outcomes = sweep(tmp_path, flips=80)
    assert (outcomes["block-000000.parquet", "refused"]
            == outcomes["block-000001.parquet", "refused"] == 80)
    assert outcomes["run.json", "refused"] > 70


@pytest.mark.slow
def test_no_flipped_bit_of_a_run_changes_what_is_read(tmp_path: Path) -> None:
    outcomes = sweep(tmp_path, flips=None)
    print({f"{name} {outcome}": count for (name, outcome), count in sorted(outcomes.items())})
    assert outcomes["block-000000.parquet", "without effect"] == 0


def test_of_two_runs_the_damaged_one_is_named_and_the_other_shown(tmp_path: Path) -> None:
    make_run(tmp_path, "abcd")
    bad = make_run(tmp_path, "abcd", spec=replace(SPEC, model="n.t"))
    flip(record_files(bad)[0], 801)
    shown = rebuild(tmp_path, "rotate")
    assert shown.frame["model"].tolist() == ["m.t"]
    assert shown.problem is not None and str(record_files(bad)[0]) in shown.problem.seen
    assert "delete it and type" in shown.problem.hint


def test_the_images_of_a_damaged_block_are_measured_again_when_it_is_deleted(
        tmp_path: Path) -> None:
    run = make_run(tmp_path, "ab", "cd")
    flip(record_files(run)[0], 801)
    with pytest.raises(OutputError, match="block-000000.parquet does not"), RunStore(
            tmp_path, SPEC) as store:
        complete(store, IDS)
    record_files(run)[0].unlink()
    assert len(make_run(tmp_path, "ab").records()) == len(run.records())


def test_a_run_with_a_damaged_block_is_not_declared_complete(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="lacks 2 of 4"):
        make_run(tmp_path, "ab")
    run, = find_runs(tmp_path, "rotate").runs
    flip(record_files(run)[0], 801)
    with pytest.raises(OutputError, match="block-000000.parquet does not"):
        make_run(tmp_path, "cd")
    assert open_run(run.folder).header["status"] != "complete"
    with pytest.raises(OutputError, match="block-000000.parquet does not"):
        rebuild(tmp_path, "rotate")


@pytest.mark.parametrize(("key", "value"), [
    ("status", "running"), ("ids_digest", "00"), ("probe", []), ("order", 7), ("block_size", 7),
    ("sealed_from", 2), ("command", "other"), ("seconds", 1.0), ("new", 1), ("sha256", "0" * 64)])
def test_a_changed_fact_of_a_header_is_noticed(tmp_path: Path, key: str, value: object) -> None:
    path = make_run(tmp_path, "abcd").folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(OutputError, match="run.json does not .it was changed"):
        open_run(path.parent)


@pytest.mark.parametrize("keys", [("sha256",), ("sealed_from",), ("sha256", "sealed_from"),
                                  ("sha256", "sealed_from", "order", "spec_digest")])
def test_a_header_that_lost_its_hash_is_not_taken_for_an_earlier_versions(
        tmp_path: Path, keys: tuple[str, ...]) -> None:
    path = make_run(tmp_path, "abcd").folder / "run.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in header.items() if key not in keys}))
    with pytest.raises(OutputError, match="run.json"):
        open_run(path.parent).records()
    with pytest.raises(OutputError, match="run.json"), RunStore(tmp_path, SPEC) as store:
        missing(store, IDS)


def test_records_of_another_schema_are_not_read(tmp_path: Path) -> None:
    spec = {**SPEC.as_dict(), "record_schema": 2}
    (tmp_path / "run.json").write_text(json.dumps({"spec": spec}))
    with pytest.raises(OutputError, match="another version's schema"):
        open_run(tmp_path)


def test_a_chunk_that_lost_its_hash_is_not_taken_for_an_earlier_versions(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ab", "cd")
    path = record_files(run)[1]
    pq.write_table(pq.read_table(path), path)
    for read in (run.records, lambda: sound(run)):
        with pytest.raises(OutputError, match="000001.parquet does not .it has lost its hash"):
            read()
    old = make_old_run(tmp_path / "old", "ab", "cd")
    path = record_files(old)[1]
    pq.write_table(pq.read_table(path), path)
    with pytest.raises(OutputError, match="000001.parquet does not .it has lost its hash"):
        old.records()


def sound(run: Run) -> None:
    """Look at a run as its last process does."""
    with RunStore(run.folder.parents[1], SPEC) as store:
        complete(store, IDS)


def test_files_that_were_renamed_swapped_doubled_or_cut_are_named(tmp_path: Path) -> None:
    def tampered(name: str) -> tuple[Run, Path, Path]:
        run = make_run(tmp_path / name, "ab", "cd")
        return run, *record_files(run)

    run, first, second = tampered("renamed")
    second.rename(second.with_name("block-000007.parquet"))
    with pytest.raises(OutputError, match="block-000007.parquet does not"):
        run.records()
    with pytest.raises(OutputError, match="block-000007.parquet does not"):
        make_run(run.folder.parents[1], "cd")
    run, first, second = tampered("swapped")
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    for read in (run.records, lambda: sound(run)):
        with pytest.raises(OutputError, match="block-000000.parquet does not"):
            read()
    for name in ("000002.parquet", "0.parquet", "000000-000001.parquet", "block-000002.parquet"):
        run, first, second = tampered(f"doubled as {name}")
        shutil.copy(first, first.with_name(name))
        for read in (run.records, lambda: sound(run)):
            with pytest.raises(OutputError, match=f"{name} does not"):
                read()
        assert first.exists() and second.exists()
    run, first, second = tampered("doubled as a part")
    second.unlink()
    shutil.copy(first, first.with_name("block-000001.000002-000003.ab.parquet"))
    with pytest.raises(OutputError, match="000003.ab.parquet does not"):
        sound(run)
    run, first, second = tampered("cut")
    for length in (0, 1, 7, second.stat().st_size - 1):
        second.write_bytes(second.read_bytes()[:length])
        for read in (run.records, lambda: sound(run)):
            with pytest.raises(OutputError, match="000001.parquet does not"):
                read()


def test_a_run_of_an_earlier_version_reads_and_is_sealed_where_it_goes_on(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "new", "abcd").records()
    old = make_old_run(tmp_path, "ab", "cd", sealed=False)
    assert "sealed_from" not in old.header and old.records().equals(whole)
    record_files(old)[1].unlink()
    again = make_run(tmp_path, "cd", block=2)
    assert again.header["sealed_from"] == 1 and "order" not in again.header
    assert again.records().equals(whole)
    path = record_files(again)[1]
    pq.write_table(pq.read_table(path), path)
    with pytest.raises(OutputError, match="block-000001.parquet does not .it has lost its hash"):
        again.records()


def test_what_a_process_says_of_itself_decides_nothing_and_is_left_out_when_damaged(
        tmp_path: Path) -> None:
    run = make_run(tmp_path, "abcd")
    (path,) = (run.folder / "starts").iterdir()
    before = rebuild(tmp_path, "rotate").text
    for content in (b"", b"[]", b"{}", b"\xff", b"[" * 99999, path.read_bytes()[:-9]):
        path.write_bytes(content)
        assert run.starts == [] and rebuild(tmp_path, "rotate").text == before


def test_a_run_whose_header_is_gone_goes_on_with_its_records(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ab", "cd")
    (run.folder / "run.json").write_text("{")
    with pytest.raises(OutputError, match="delete it and type"):
        open_run(run.folder)
    (run.folder / "run.json").unlink()
    assert make_run(tmp_path).records().equals(run.records())
    assert len(find_runs(tmp_path, "rotate").runs) == 1
