"""Many small chunks become few, and a kill at any moment loses and doubles nothing."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from made_runs import IDS, SPEC, as_of_an_earlier_version, chunk_files, make_run, rows
from sanrobust import chunks as chunks_module
from sanrobust import records as records_module
from sanrobust.chunks import Chunk, chunks_in
from sanrobust.errors import OutputError
from sanrobust.header import missing
from sanrobust.records import RunStore
from sanrobust.runs import Run, open_run

MANY = tuple(f"{number:03d}" for number in range(12))
MANY_SPEC = replace(SPEC, images=len(MANY))


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge as soon as there are five chunks, up to six images in one."""
    monkeypatch.setattr(records_module, "MOST_UNMERGED", 4)
    monkeypatch.setattr(chunks_module, "FULL_ROWS", 30)


def many_chunks(out: Path) -> Run:
    return make_run(out, *((image,) for image in MANY), ids=MANY)


def test_a_long_run_has_few_chunks_and_the_same_records(tmp_path: Path, soon: None) -> None:
    run = many_chunks(tmp_path)
    assert [path.stem for path in chunk_files(run)] == ["000000-000005", "000006-000009",
                                                        "000010", "000011"]
    assert run.records()["image"].drop_duplicates().tolist() == list(MANY)
    assert run.records().equals(make_run(tmp_path / "whole", MANY, ids=MANY).records())


def test_a_run_of_many_chunks_that_an_earlier_version_left_is_merged_at_the_next_start(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = many_chunks(tmp_path)
    before = run.records()
    as_of_an_earlier_version(run)
    monkeypatch.setattr(records_module, "MOST_UNMERGED", 4)
    with RunStore(tmp_path, MANY_SPEC) as store:
        assert missing(store, MANY) == 0
    (chunk,) = chunk_files(run)
    assert chunk.name == "000000-000011.parquet"
    assert open_run(run.folder).complete and open_run(run.folder).records().equals(before)


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", range(15))
def test_a_kill_while_chunks_are_merged_loses_and_doubles_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    run = many_chunks(tmp_path)
    before, steps = run.records(), 0

    def step(*_: object, **__: object) -> None:
        nonlocal steps
        steps += 1
        if steps > moment:
            raise Killed

    unlink = Path.unlink
    write_chunk = records_module.write_chunk
    with monkeypatch.context() as patch:
        patch.setattr(records_module, "MOST_UNMERGED", 4)
        patch.setattr(Path, "unlink", lambda *args, **more: (step(), unlink(*args, **more)))
        patch.setattr(records_module, "write_chunk", lambda *args: (step(), write_chunk(*args)))
        ends = pytest.raises(Killed) if moment < 14 else nullcontext()
        with ends, RunStore(tmp_path, MANY_SPEC):
            pass
    assert open_run(run.folder).records().equals(before)
    with RunStore(tmp_path, MANY_SPEC) as store:
        assert missing(store, MANY) == 0
        store.append(rows(["more"]))
    assert len(set(chunks_in(run.folder / "records").standing)) == len(chunk_files(run))


def test_what_a_kill_left_is_kept_until_the_chunk_in_its_place_reads_back(tmp_path: Path) -> None:
    left = make_run(tmp_path / "left", "ab", "cd")
    run = make_run(tmp_path, "ab", "cd")
    with RunStore(tmp_path, SPEC) as store:
        store._merge()  # as once there are more of them
    (merged,) = chunk_files(run)
    for path in chunk_files(left):
        shutil.copy(path, merged.parent)
    merged.write_bytes(merged.read_bytes()[:-9])
    with pytest.raises(OutputError, match="000000-000001.parquet does not"), RunStore(
            tmp_path, SPEC):
        pass
    assert len(chunk_files(run)) == 3
    merged.unlink()
    assert make_run(tmp_path).records().equals(left.records())


def test_a_reader_starts_again_when_chunks_are_merged_under_its_hands(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "ab", "cd")
    before, read_chunk, merged = run.records(), records_module.read_chunk, []

    def merge_first(*args: object) -> object:
        if not merged:
            merged.append(True)
            with RunStore(tmp_path, SPEC) as store:
                store._merge()
        return read_chunk(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(records_module, "read_chunk", merge_first)
    assert run.records().equals(before) and len(chunk_files(run)) == 1


def test_of_chunks_of_one_range_none_hides_the_other(tmp_path: Path) -> None:
    for name in ("000000-000001", "0-1", "000001", "000002-000001"):
        (tmp_path / f"{name}.parquet").touch()
    found = chunks_in(tmp_path)
    assert [chunk.path.stem for chunk in found.standing] == ["0-1", "000000-000001"]
    assert found.replaced == (Chunk(1, 1, tmp_path / "000001.parquet"),)
    assert found.next_number == 2


def test_images_that_failed_count_by_their_last_records(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows("ab"))
        store.append(rows("cd", error="damaged"))
        assert store.recorded() == set(IDS) and store.recorded(but_failed=True) == set("ab")
        store.append(rows("c"))
        store.append(rows("d", error="damaged again"))
        assert store.recorded() == set(IDS) and store.recorded(but_failed=True) == set("abc")
        store._merge()
        assert store.recorded() == set(IDS) and store.recorded(but_failed=True) == set("abc")
        store.append(rows("a"))
        with pytest.raises(OutputError, match="a stands twice"):
            store.recorded()


def test_an_excluded_image_has_not_failed(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.append(rows("ab", error="excluded: its label is the target"))
        assert store.recorded(but_failed=True) == set("ab")
