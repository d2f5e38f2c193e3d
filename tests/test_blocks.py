"""Blocks: cut at the same places, saved in parts, merged when whole; runs of earlier versions."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from made_runs import (IDS, SPEC, append, blocks_of, make_old_run, make_run, record_files, rows,
                       write_chunk)
from sanrobust.errors import OutputError
from sanrobust.header import complete, missing
from sanrobust.records import Plan, RunStore, batches_of, store as store_module
from sanrobust.records import sealed
from sanrobust.records.names import files_in
from sanrobust.records.plan import block_size
from sanrobust.runs import Run, open_run
from dataclasses import replace

MANY = tuple(f"{number:03d}" for number in range(40))


def opened(store: RunStore, block: int) -> RunStore:
    with blocks_of(block):
        store.begin(dict, 1)
    store.take_up(IDS)
    return store


def test_batches_are_cut_at_the_same_places_whichever_images_are_done() -> None:
    within = range(8, 16)
    assert list(batches_of(within, within, 3)) == [[8, 9, 10], [11, 12, 13], [14, 15]]
    assert list(batches_of([9, 13, 14], within, 3)) == [[9], [13], [14]]


@pytest.mark.parametrize("images", [1, 40, 451, 50_000, 1_000_000])
@pytest.mark.parametrize("batch_size", [1, 4, 64, 256, 2**31 - 1])
def test_a_block_is_whole_batches_and_every_image_is_in_one(images: int, batch_size: int) -> None:
    size = block_size(images, batch_size)
    assert size % batch_size == 0
    if batch_size <= 256:
        assert size <= 2048 + batch_size
    plan = Plan(range(images), size)  # type: ignore[arg-type]
    cut = [plan.positions(block) for block in range(plan.blocks)]
    assert cut[0].start == 0 and cut[-1].stop == images
    assert all(one.stop == other.start for one, other in zip(cut, cut[1:]))


def test_a_block_is_saved_in_parts_of_which_many_become_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MOST_PARTS", 3)
    spec = replace(SPEC, images=len(MANY))
    with RunStore(tmp_path, spec) as store, blocks_of(len(MANY)):
        store.begin(dict, 1)
        store.take_up(MANY)
        counts = []
        for image in MANY[:-1]:
            store.append(0, rows([image]))
            counts.append(len(list((store.folder / "records").iterdir())))
        assert max(counts) == 3
        with RunStore(tmp_path, spec) as other:  # as after a kill
            assert missing(other, MANY) == 1
        store.append(0, rows(MANY[-1:]))
    (path,) = (store.folder / "records").iterdir()
    assert path.name == "block-000000.parquet"


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", range(7))
def test_a_kill_while_parts_become_a_block_loses_and_doubles_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    with RunStore(tmp_path, SPEC) as store:
        opened(store, 4)
        for image in "abc":
            append(store, rows(image))
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1
            if steps > moment:
                raise Killed

        unlink, write = Path.unlink, store_module.write_sealed
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *args, **more: (step(), unlink(*args, **more)))
            patch.setattr(store_module, "write_sealed", lambda *args: (step(), write(*args)))
            with pytest.raises(Killed) if moment < 4 else nullcontext():
                append(store, rows("d"))
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == (1 if moment == 0 else 0)
        opened(store, 4)
        if moment == 0:
            append(store, rows("d"))
        assert complete(store, IDS)
    run = open_run(store.folder)
    assert run.records().equals(make_run(tmp_path / "whole", "abcd").records())
    assert [path.name for path in record_files(run)] == ["block-000000.parquet"]


def test_parts_stay_until_the_block_in_their_place_reads_back(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        append(opened(store, 4), rows("abc"))
        (part,) = (store.folder / "records").iterdir()
        content = part.read_bytes()
        append(store, rows("d"))
    (block,) = (store.folder / "records").iterdir()
    part.write_bytes(content)
    block.write_bytes(block.read_bytes()[:-9])
    with pytest.raises(OutputError, match="block-000000.parquet does not"), RunStore(
            tmp_path, SPEC) as store:
        missing(store, IDS)
    assert part.exists()
    block.unlink()
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 1


def test_a_reader_starts_again_when_parts_become_a_block_under_its_hands(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sanrobust.records import reader
    with RunStore(tmp_path, SPEC) as store:
        append(opened(store, 4), rows("ab"))
        append(store, rows("c"))
        read, merged = sealed.read_sealed, []

        def merge_first(*args: object) -> object:
            if not merged:
                merged.append(True)
                with RunStore(tmp_path, SPEC) as other:
                    append(opened(other, 4), rows("abcd"))
            return read(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(reader, "read_sealed", merge_first)
        assert len(open_run(store.folder).records()) == 20


def test_images_that_failed_count_by_their_last_records(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        opened(store, 2)
        append(store, rows("ab"))
        append(store, rows("cd", error="damaged"))
        assert store.failing([0, 1]) == {1: 2} and store.todo(1) == []
        assert store.todo(1, retry=True) == [2, 3]
        append(store, rows("c"))
        assert store.failing([0, 1]) == {1: 1}
        append(store, rows("d", error="damaged again"))
    with RunStore(tmp_path, SPEC) as store:
        store.take_up(IDS)
        assert store.failing([0, 1]) == {1: 1} and store.todo(1, retry=True) == [3]
    table = open_run(store.folder).records()
    assert set(table["error"].dropna()) == {"damaged again"} and len(table) == 20


def test_of_an_image_that_failed_in_one_part_the_other_part_counts(tmp_path: Path) -> None:
    for columns in (rows("ab", error="damaged"), rows("b"), rows("b", error="late")):
        with RunStore(tmp_path, SPEC) as store:
            append(opened(store, 4), columns)
    table = open_run(store.folder).records()
    assert table[table["image"] == "b"]["error"].isna().all() and len(table) == 10


def test_an_excluded_image_has_not_failed(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        append(opened(store, 4), rows("abcd", error="excluded: its label is the target"))
        assert store.failing([0]) == {} and store.todo(0, retry=True) == []


# Runs of earlier versions.

def go_on(run: Run, *parts: str, block: int = 2) -> Run:
    return make_run(run.folder.parents[1], *parts, block=block)


@pytest.mark.parametrize("sealed_too", [True, False])
def test_a_run_of_chunks_is_read_as_it_is(tmp_path: Path, sealed_too: bool) -> None:
    run = make_old_run(tmp_path, "a", "bc", "d", sealed=sealed_too)
    header = (run.folder / "run.json").read_bytes()
    whole = make_run(tmp_path / "new", "abcd").records()
    assert run.complete and run.records().equals(whole)
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 0 and store.missing() == []
    assert (run.folder / "run.json").read_bytes() == header and len(record_files(run)) == 3
    assert run.state.recorded == 4 and run.failed == 0


@pytest.mark.parametrize("sealed_too", [True, False])
@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_a_run_of_chunks_is_gone_on_with_in_blocks(tmp_path: Path, sealed_too: bool,
                                                   block: int) -> None:
    run = make_old_run(tmp_path, "a", "bc", sealed=sealed_too, status="interrupted")
    assert not run.complete and run.state.recorded == 3
    again = go_on(run, "d", block=block)
    assert again.complete and again.state.recorded == 4
    assert again.records().equals(make_run(tmp_path / "new", "abcd").records())
    assert again.header["starts"] == run.header["starts"]
    assert [path.name for path in record_files(again)][:2] == ["000000.parquet", "000001.parquet"]
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 0


def test_a_lost_chunk_of_a_run_that_went_on_in_blocks_costs_its_own_images(tmp_path: Path) -> None:
    run = go_on(make_old_run(tmp_path, "a", "bc", status="interrupted"), "d")
    (run.folder / "records" / "000000.parquet").unlink()
    with pytest.raises(OutputError, match="holds 3 of 4"):
        run.records()
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 1 and store.todo(0) == [0]
    assert len(go_on(run, "a").records()) == 20


def test_failed_images_of_chunks_are_measured_again_in_blocks(tmp_path: Path) -> None:
    run = make_old_run(tmp_path, "ab", "cd")
    write_chunk(run.folder / "records" / "000001.parquet", rows("cd", error="damaged"), SPEC)
    with RunStore(tmp_path, SPEC) as store:
        opened(store, 2)
        assert store.failing([0, 1]) == {1: 2} and store.todo(1, retry=True) == [2, 3]
        append(store, rows("c"))
        append(store, rows("d"))
    assert open_run(run.folder).records()["error"].isna().all()


def test_merged_chunks_stand_in_the_place_of_others_until_these_are_gone(tmp_path: Path) -> None:
    run = make_old_run(tmp_path, "ab", "cd")
    merged = run.folder / "records" / "000000-000001.parquet"
    write_chunk(merged, rows("abcd"), SPEC)
    merged_content = merged.read_bytes()
    assert len(run.records()) == 20
    merged.write_bytes(merged_content[:-9])
    with pytest.raises(OutputError, match="000000-000001.parquet does not"), RunStore(
            tmp_path, SPEC) as store:
        missing(store, IDS)
    assert len(record_files(run)) == 3
    merged.write_bytes(merged_content)
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 0
    assert record_files(run) == [merged] and len(run.records()) == 20


def test_of_chunks_of_one_range_none_hides_the_other(tmp_path: Path) -> None:
    for name in ("000000-000001", "0-1", "000001", "000002-000001"):
        (tmp_path / f"{name}.parquet").touch()
    found = files_in(tmp_path)
    assert [chunk.path.stem for chunk in found.chunks] == ["0-1", "000000-000001"]
    assert found.merged_away == (tmp_path / "000001.parquet",)
    assert found.next_chunk == 2


def test_opening_reads_no_rows_of_whole_blocks(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "ab", "cd")

    def refuse(path: Path, *_: object) -> None:
        raise AssertionError(f"{path} is read")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 0
        assert open_run(store.folder).state.whole
