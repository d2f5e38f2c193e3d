"""Records: whole files or none, each image once, one specification per folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from made_runs import IDS, SPEC, append, blocks_of, make_run, record_files, rows, write_chunk
from sanrobust import files
from sanrobust.errors import OutputError
from sanrobust.experiments.pgd import PGD
from sanrobust.experiments.rotation import ROTATION
from sanrobust.header import missing
from sanrobust.records import Plan, RunStore, ids_digest, read_records
from sanrobust.runs import open_run
from sanrobust.spec import RunSpec


def images(store: RunStore) -> list[str]:
    table = read_records(store.folder, store.spec.experiment, store.spec.digest, columns=())
    return list(dict.fromkeys(table.column("image").to_pylist()))


def opened(store: RunStore, block: int, ids: Sequence[str] = IDS) -> RunStore:
    """Begin or take up a run, cut into blocks of so many images."""
    with blocks_of(block):
        store.begin(dict, 1)
    store.take_up(ids)
    return store


def test_blocks_read_back_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        opened(store, 2)
        append(store, rows("dc"))
        append(store, rows("b"))
        append(store, rows("a"))
    assert images(store) == list(IDS)
    table = read_records(store.folder, "rotate", SPEC.digest)
    assert table.column_names == list(ROTATION.records.columns)
    assert [path.name for path in (store.folder / "records").iterdir()] == [
        "block-000000.parquet", "block-000001.parquet"]


def test_recorded_images_survive_reopening_and_leftovers_are_swept(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        append(opened(store, 4), rows("ab"))
        leftover = store.folder / "records" / f".sanrobust-{files.host()}-4194305-x.tmp"
        leftover.write_bytes(b"half a file of a process that is no more")
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 2 and store.todo(0) == [2, 3]
        assert not leftover.exists()
        append(store, rows("c"))
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 1


def test_an_image_that_stands_twice_in_a_file_is_an_error(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        opened(store, 4).append(0, rows("aa"))
        with pytest.raises(OutputError, match="a stands twice"):
            missing(store, IDS)


def test_an_image_of_two_blocks_is_an_error(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        opened(store, 2)
        store.append(0, rows("ab"))
        store._plan = Plan(("a", "b", "b", "c"), 2)
        store.append(1, rows("bc"))
    with pytest.raises(OutputError, match="b stands twice"):
        images(store)


def test_two_processes_write_one_run_and_the_same_files(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as first, RunStore(tmp_path, SPEC) as second:
        for store in (first, second):
            opened(store, 2)
        append(first, rows("a"))
        append(second, rows("ab"))
        content = (first.folder / "records" / "block-000000.parquet").read_bytes()
        append(first, rows("b"))
        append(first, rows("cd"))
        append(second, rows("cd"))
    assert images(first) == list(IDS)
    found = sorted((first.folder / "records").iterdir())
    assert [path.name for path in found] == ["block-000000.parquet", "block-000001.parquet"]
    assert found[0].read_bytes() == content


def test_fresh_goes_beside_the_old_run_and_resume_takes_the_newest(tmp_path: Path) -> None:
    first = make_run(tmp_path, "abcd")
    with RunStore(tmp_path, SPEC, fresh=True) as second:
        assert missing(second, IDS) == 4
        append(opened(second, 4), rows("b"))
    with RunStore(tmp_path, SPEC) as third:
        assert third.folder == second.folder != first.folder
        assert missing(third, IDS) == 3


def test_processes_of_one_launch_share_a_fresh_attempt(tmp_path: Path) -> None:
    make_run(tmp_path, "abcd")
    folders = []
    for launch in ("one", "one", "two", "two", None):
        with RunStore(tmp_path, SPEC, fresh=True, launch=launch) as store:
            store.begin(lambda: {"launch": launch}, 1)
            folders.append(store.folder.name.rpartition(".")[2])
    assert folders == ["2", "2", "3", "3", "4"]


def test_another_specification_gets_another_folder(tmp_path: Path) -> None:
    make_run(tmp_path, "abcd")
    with RunStore(tmp_path, replace(SPEC, weights="02")) as other:
        assert missing(other, IDS) == 4


def test_a_folder_written_for_another_specification_is_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path, "abcd").folder / "run.json"
    other = replace(SPEC, weights="02")
    path.write_text(json.dumps({"spec": other.as_dict(), "spec_digest": other.digest}))
    with pytest.raises(OutputError, match="one specification"), RunStore(tmp_path, SPEC):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"spec": 3}'])
def test_a_damaged_header_is_named(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path, "abcd")
    (run.folder / "run.json").write_text(content)
    with pytest.raises(OutputError, match="run.json does not"):
        open_run(run.folder)


@pytest.mark.parametrize("part", ["abcd", "ab"], ids=["a block", "a part"])
def test_a_damaged_file_is_named(tmp_path: Path, part: str) -> None:
    with RunStore(tmp_path, SPEC) as store:
        append(opened(store, 4), rows(part))
    (path,) = (store.folder / "records").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(OutputError, match=f"{path.name} does not"):
        images(store)


def test_images_of_a_lost_block_are_measured_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ab", "cd")
    before = run.records()
    record_files(run)[0].unlink()
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 2 and store.missing() == [0]
    assert make_run(tmp_path, "ab").records().equals(before)


@pytest.mark.parametrize("block", [3, 7])
def test_blocks_are_cut_as_the_header_says_or_as_the_files_where_it_is_lost(
        tmp_path: Path, block: int) -> None:
    run = make_run(tmp_path, "ab", "cd")
    (run.folder / "run.json").unlink()
    record_files(run)[1].unlink()
    again = make_run(tmp_path, "cd", block=block)
    assert again.complete and again.header["block_size"] == 2


def test_a_file_of_another_cut_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, "ab", "cd")
    other = make_run(tmp_path / "o", "abcd")
    path = run.folder / "records" / "block-000000.parquet"
    path.write_bytes(record_files(other)[0].read_bytes())
    with pytest.raises(OutputError, match="block-000000.parquet does not .it is of blocks of 4"):
        run.records()


def test_a_column_that_an_earlier_version_did_not_write_is_null(tmp_path: Path) -> None:
    spec = replace(SPEC, experiment="pgd")
    values = {name: [None] for name in PGD.records.columns}
    with RunStore(tmp_path, spec) as store:
        path = store.folder / "records" / "000000.parquet"
        write_chunk(path, {**values, "image": ["a"], "zero_gradient": [[0.5]]}, spec)
        pq.write_table(pq.read_table(path).drop_columns(["zero_gradient"]), path)
        store.take_up(IDS)
        store.append(0, {**values, "image": ["b"], "zero_gradient": [[0.5]]})
    read = read_records(store.folder, "pgd", spec.digest)
    assert read.column("zero_gradient").to_pylist() == [None, [0.5]]


def test_a_file_of_another_run_is_refused_and_a_chunk_of_an_earlier_version_read(
        tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "abcd", spec=spec) for spec in (SPEC, replace(SPEC, weights="02"))]
    own, other = (record_files(run)[0] for run in runs)
    own.write_bytes(other.read_bytes())
    with pytest.raises(OutputError, match="block-000000.parquet was measured for another one"):
        runs[0].records()
    own.unlink()
    (runs[0].folder / "run.json").unlink()
    chunk = own.with_name("000000.parquet")
    pq.write_table(pq.read_table(other).replace_schema_metadata(None), chunk)
    assert len(read_records(own.parents[1], "rotate", SPEC.digest)) == 20


def test_the_digest_of_ids_does_not_depend_on_their_order() -> None:
    assert ids_digest(["a", "b"]) == ids_digest(["b", "a"]) != ids_digest(["a", "c"])


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "must have room"),
                                               (errno.EACCES, "must be writable")])
def test_a_refused_write_says_why_and_leaves_the_other_files(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, "no")

    with RunStore(tmp_path, SPEC) as store:
        append(opened(store, 4), rows("a"))
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", refuse)
            with pytest.raises(OutputError, match=words):
                append(store, rows("b"))
        assert images(store) == ["a"]
        assert not list(store.folder.rglob("*.tmp"))


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="must be writable"), RunStore(
            tmp_path / "file", RunSpec(**{**vars(SPEC)})):
        pass
