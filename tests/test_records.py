"""Records: whole chunks or none, each image once, one specification per folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sanrobust import files
from sanrobust.errors import OutputError
from sanrobust.preprocessing import Preprocessing
from sanrobust.experiments.pgd import PGD
from sanrobust.experiments.rotation import ROTATION
from sanrobust.records import RunStore, chunked, ids_digest, read_records
from sanrobust.runs import open_run
from sanrobust.spec import RunSpec

SPEC = RunSpec(experiment="rotate", model="m.t", weights="00", preprocessing=Preprocessing(),
               data="d", data_digest="11", images=4)


def rows(ids: Sequence[str], view: str = "none") -> dict[str, list[object]]:
    count = len(ids)
    values: dict[str, list[object]] = {name: [None] * count for name in ROTATION.records.columns}
    values.update(image=list(ids), label=[1] * count, view=[view] * count, pred=[1] * count,
                  top5_hit=[True] * count, prob_label=[0.5] * count)
    return values


def test_appended_rows_read_back_in_order(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows(["b", "a"]))
        store.append(rows(["c"]))
    table = read_records(store.folder, "rotate", SPEC.digest)
    assert table.column("image").to_pylist() == ["b", "a", "c"]
    assert table.column_names == list(ROTATION.records.columns)


def test_recorded_images_survive_reopening_and_leftovers_are_swept(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows(["a", "b"]))
        leftover = store.folder / "records" / "000001.parquet.xyz.tmp"
        leftover.write_bytes(b"half a chunk")
    with RunStore(tmp_path, SPEC) as store:
        assert store.recorded() == {"a", "b"}
        assert not leftover.exists()
        store.append(rows(["c"]))
        assert store.recorded() == {"a", "b", "c"}


def test_an_image_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows(["a"]))
        store.append(rows(["a"]))
        with pytest.raises(OutputError, match="a stands twice"):
            store.recorded()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC), pytest.raises(OutputError, match="another one is writing"):
        with RunStore(tmp_path, SPEC):
            pass


def test_fresh_goes_beside_the_old_run_and_resume_takes_the_newest(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as first:
        first.append(rows(["a"]))
    with RunStore(tmp_path, SPEC, fresh=True) as second:
        assert second.recorded() == set()
        second.append(rows(["b"]))
    with RunStore(tmp_path, SPEC) as third:
        assert third.folder == second.folder != first.folder
        assert third.recorded() == {"b"}
    assert read_records(first.folder, "rotate", SPEC.digest).column("image").to_pylist() == ["a"]


def test_another_specification_gets_another_folder(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows(["a"]))
    with RunStore(tmp_path, replace(SPEC, weights="02")) as other:
        assert other.recorded() == set()


def test_a_folder_written_for_another_specification_is_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.write_header({})
        path = store.folder / "run.json"
    other = replace(SPEC, weights="02")
    path.write_text(json.dumps({"spec": other.as_dict(), "spec_digest": other.digest}))
    with pytest.raises(OutputError, match="one specification"), RunStore(tmp_path, SPEC):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"spec": 3}'])
def test_a_damaged_header_is_named(tmp_path: Path, content: str) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.write_header({})
        (store.folder / "run.json").write_text(content)
    with pytest.raises(OutputError, match="run.json does not"):
        open_run(store.folder)


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows(["a"]))
        chunk = store.folder / "records" / "000000.parquet"
        chunk.write_bytes(chunk.read_bytes()[:-9])
        with pytest.raises(OutputError, match="000000.parquet does not"):
            store.recorded()


def test_images_of_a_lost_chunk_count_as_not_recorded_and_its_number_is_not_used_again(
        tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows(["a"]))
        store.append(rows(["b"]))
        (store.folder / "records" / "000000.parquet").unlink()
    with RunStore(tmp_path, SPEC) as store:
        assert store.recorded() == {"b"}
        store.append(rows(["a"]))
    assert sorted(path.name for path in (store.folder / "records").iterdir()) == [
        "000001.parquet", "000002.parquet"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_second_writer_that_no_lock_stopped_overwrites_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    with RunStore(tmp_path, SPEC) as store:
        if not links:
            monkeypatch.setattr(files.os, "link", refuse)
        with monkeypatch.context() as patch:
            patch.setattr("sanrobust.records.FileLock.acquire", lambda *_: None)
            with RunStore(tmp_path, SPEC) as second:
                second.append(rows(["a"]))
        with pytest.raises(OutputError, match="another one has written .*000000.parquet"):
            store.append(rows(["b"]))
        assert store.recorded() == {"a"}
        assert not list(store.folder.rglob("*.tmp"))


def test_a_column_that_an_earlier_version_did_not_write_is_null(tmp_path: Path) -> None:
    spec = replace(SPEC, experiment="pgd")
    with RunStore(tmp_path, spec) as store:
        values = {name: [None] for name in PGD.records.columns}
        store.append({**values, "image": ["a"], "zero_gradient": [[0.5]]})
        path = store.folder / "records" / "000000.parquet"
        pq.write_table(pq.read_table(path).drop_columns(["zero_gradient"]), path)
        store.append({**values, "image": ["b"], "zero_gradient": [[0.5]]})
    read = read_records(store.folder, "pgd", spec.digest)
    assert read.column("zero_gradient").to_pylist() == [None, [0.5]]


def test_a_chunk_of_another_run_is_refused_and_one_of_an_earlier_version_read(
        tmp_path: Path) -> None:
    chunks = []
    for spec in (SPEC, replace(SPEC, weights="02")):
        with RunStore(tmp_path, spec) as store:
            store.append(rows(["a"]))
        chunks.append(store.folder / "records" / "000000.parquet")
    own, other = chunks
    own.write_bytes(other.read_bytes())
    with pytest.raises(OutputError, match="000000.parquet was measured for another one"):
        read_records(own.parents[1], "rotate", SPEC.digest)
    pq.write_table(pq.read_table(other).replace_schema_metadata(None), own)
    assert len(read_records(own.parents[1], "rotate", SPEC.digest)) == 1


def test_the_digest_of_ids_does_not_depend_on_their_order() -> None:
    assert ids_digest(["a", "b"]) == ids_digest(["b", "a"]) != ids_digest(["a", "c"])


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "must have room"),
                                               (errno.EACCES, "must be writable")])
def test_a_refused_write_says_why_and_leaves_the_old_chunks(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows(["a"]))

        def refuse(*_: object) -> None:
            raise OSError(number, "no")

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", refuse)
            with pytest.raises(OutputError, match=words):
                store.append(rows(["b"]))
        assert store.recorded() == {"a"}
        assert not list(store.folder.rglob("*.tmp"))


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="must be writable"), RunStore(tmp_path / "file", SPEC):
        pass


def test_blocks_are_cut_at_the_same_places() -> None:
    assert [list(block) for block in chunked(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
