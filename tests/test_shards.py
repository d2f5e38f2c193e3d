"""One run by several processes: the same records and the same table, whoever measured what."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pytest

from conftest import Command
from grey_models import CLASSES, folders
from made_runs import IDS, SPEC, append, rows
from sanrobust import device
from sanrobust.errors import UsageError
from sanrobust.header import started
from sanrobust.records import RunStore, Share, Start, starts, starts_of
from sanrobust.runs import find_runs
from sanrobust.shards import Shard, find_shard
from warm_commands import alive

SAN, RESNET = "san10-pair.untrained-small", "resnet26.untrained-small"
SMALL = ("--num-samples", "40", "-b", "4")
AUTOATTACK = ("pgd", "-m", "resnet26.digits", "--attack", "autoattack", "--iters", "3",
              "--queries", "10")
ORDERS = [(1, [1]), (2, [2, 1]), (3, [3, 1, 2]), (5, [4, 2, 5, 1, 3])]


def records(out: Path, experiment: str) -> pd.DataFrame:
    (run,) = find_runs(out, experiment).runs
    assert run.header["status"] == "complete"
    rows = run.records()
    keys = [name for name in ("image", "view", "eps", "step", "iters") if name in rows]
    return rows.astype(object).sort_values(keys, ignore_index=True)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def require_same(out: Path, whole: Path, experiment: str) -> None:
    pd.testing.assert_frame_equal(records(out, experiment), records(whole, experiment))
    # A table names the folder of its run, which the specification alone decides.
    assert files(out) == files(whole)


@pytest.mark.parametrize(("ask", "orders"), [
    (("rotate", "-m", SAN), ORDERS), (("pgd", "-m", RESNET), ORDERS), (AUTOATTACK, ORDERS[:2])])
def test_parts_in_any_order_make_what_one_process_makes(
        command: Command, tmp_path: Path, ask: tuple[str, ...],
        orders: list[tuple[int, list[int]]]) -> None:
    experiment, ask = ask[0], (*ask, *SMALL)
    for count, order in orders:
        out = tmp_path / str(count)
        for index in order:
            result = command(*ask, "--out", out, "--shard", f"{index}/{count}")
            assert result.exit_code == 0, result.output
            is_last = index == order[-1] or find_runs(out, experiment).runs[0].complete
            assert bool(files(out)) == is_last, result.output
            assert ("no table yet" in result.output) != is_last, result.output
        require_same(out, tmp_path / "1", experiment)


def test_a_part_says_which_it_is_what_is_missing_and_who_prints_the_table(
        command: Command, tmp_path: Path) -> None:
    ask = ("rotate", "-m", RESNET, *SMALL, "--out", tmp_path)
    told = command(*ask, "--shard", "2/3").output
    assert "part 2 of 3, by --shard 2/3" in told
    assert "waits for its other parts after 16 of 40 images" in told
    assert "the part that ends last writes the table; sanrobust table --out" in told
    command(*ask, "--shard", "1/3")
    assert "no rotation" in command(*ask, "--shard", "3/3").stdout
    assert "already complete" in command(*ask, "--shard", "3/3").output


def test_a_process_without_a_part_measures_all_that_is_missing(command: Command,
                                                               tmp_path: Path) -> None:
    ask = ("rotate", "-m", RESNET, *SMALL, "--out")
    command(*ask, tmp_path / "o", "--shard", "2/3")
    assert command(*ask, tmp_path / "o").exit_code == 0
    command(*ask, tmp_path / "whole")
    require_same(tmp_path / "o", tmp_path / "whole", "rotate")


def test_what_a_started_part_left_is_measured_by_the_last_one(command: Command,
                                                              tmp_path: Path) -> None:
    ask = ("rotate", "-m", RESNET, *SMALL, "--out")
    for part in ("1/2", "2/2"):
        command(*ask, tmp_path / "o", "--shard", part)
    (run,) = find_runs(tmp_path / "o", "rotate").runs
    for path in files(tmp_path / "o"):
        (tmp_path / "o" / path).unlink()
    (run.folder / "records" / "block-000001.parquet").unlink()  # of part 2, as if it was killed
    told = command(*ask, tmp_path / "o", "--shard", "1/2").output
    assert "what others left" in told
    command(*ask, tmp_path / "whole")
    require_same(tmp_path / "o", tmp_path / "whole", "rotate")


def test_adversarial_images_of_parts_are_those_of_one_process(command: Command,
                                                              tmp_path: Path) -> None:
    folders(tmp_path / "val", [*range(CLASSES)] * 6)
    ask = ("pgd", "-m", "grey_models:right", "--data", tmp_path / "val", "-b", "4",
           "--save-adversarial", "--out")
    for part in ("2/3", "3/3", "1/3"):
        result = command(*ask, tmp_path / "o", "--shard", part)
        assert result.exit_code == 0, result.output
    command(*ask, tmp_path / "whole")
    one, other = ({path.name: path.read_bytes() for path in out.glob("runs/*/adversarial/*")}
                  for out in (tmp_path / "o", tmp_path / "whole"))
    assert one == other and "index.csv" in one and len(one) > 36


# Several processes at once.

def started_at_once(asks: Sequence[Sequence[object]], environments: Sequence[Mapping[str, str]],
                    code: str = "from sanrobust.cli import main; main()") -> list[str]:
    """Start commands at the same moment; return what each said when all have ended well."""
    running = [subprocess.Popen([sys.executable, "-c", code, *map(str, ask)], text=True,
                                env={**os.environ, **environment}, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
               for ask, environment in zip(asks, environments, strict=True)]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said
    return said


@pytest.mark.parametrize("count", [2, 3])
def test_parts_at_once_make_what_one_process_makes(command: Command, tmp_path: Path,
                                                   count: int) -> None:
    ask = ("rotate", "-m", RESNET, *SMALL, "--out")
    command(*ask, tmp_path / "whole")
    said = started_at_once([(*ask, tmp_path / "o", "--shard", f"{part}/{count}")
                            for part in range(1, count + 1)], [{}] * count)
    assert sum("wrote " in each for each in said) >= 1
    require_same(tmp_path / "o", tmp_path / "whole", "rotate")


UNLOCKED = """
import fcntl
fcntl.flock = lambda *_: None
from sanrobust.cli import main
main()
"""


def test_two_processes_on_the_same_part_without_locks_make_the_same(
        command: Command, tmp_path: Path) -> None:
    ask = ("pgd", "-m", RESNET, *SMALL, "--out")
    command(*ask, tmp_path / "whole")
    started_at_once([(*ask, tmp_path / "o", "--shard", "1/1")] * 2, [{}] * 2, UNLOCKED)
    require_same(tmp_path / "o", tmp_path / "whole", "pgd")


def test_a_slurm_array_is_parts(command: Command, tmp_path: Path) -> None:
    ask = ("rotate", "-m", RESNET, *SMALL, "--out")
    command(*ask, tmp_path / "whole")
    said = started_at_once([(*ask, tmp_path / "o")] * 2, [
        {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2",
         "SLURM_ARRAY_TASK_MIN": "7", "SLURM_ARRAY_JOB_ID": "41"} for task in (7, 8)])
    assert "part 1 of 2, by SLURM_ARRAY_TASK_ID of SLURM" in said[0]
    assert "part 2 of 2, by SLURM_ARRAY_TASK_ID of SLURM" in said[1]
    require_same(tmp_path / "o", tmp_path / "whole", "rotate")


def test_torchrun_starts_parts(command: Command, tmp_path: Path) -> None:
    ask = ("rotate", "-m", RESNET, *SMALL, "--out")
    command(*ask, tmp_path / "whole")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "sanrobust", *ask, tmp_path / "o"], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "part 1 of 2, by RANK and WORLD_SIZE" in done.stderr
    require_same(tmp_path / "o", tmp_path / "whole", "rotate")


def test_processes_share_the_images_and_print_one_table(command: Command, tmp_path: Path) -> None:
    ask = ("rotate", "-m", RESNET, *SMALL, "--out")
    command(*ask, tmp_path / "whole")
    (said,) = started_at_once([(*ask, tmp_path / "o", "--processes", "2")], [{}])
    assert "2 processes share the images" in said and said.count("wrote ") == 1
    require_same(tmp_path / "o", tmp_path / "whole", "rotate")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_one_signal_stops_all_processes_and_the_same_command_goes_on(
        command: Command, tmp_path: Path, number: signal.Signals) -> None:
    ask = ("pgd", "-m", RESNET, "--num-samples", "96", "-b", "16", "--eps", "8", "--step", "2",
           "--iters", "12", "--out")
    child = subprocess.Popen([sys.executable, "-m", "sanrobust", *ask, str(tmp_path / "o"),
                              "--processes", "2"], text=True, start_new_session=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while child.poll() is None and not list(tmp_path.glob("o/runs/*/records/*")):
        time.sleep(0.01)
    child.send_signal(number)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == (-number if number == signal.SIGKILL else 130), said
    assert "Traceback" not in said
    until = time.monotonic() + 10
    while alive(child.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(child.pid)
    assert command(*ask, tmp_path / "o").exit_code == 0
    command(*ask, tmp_path / "whole")
    require_same(tmp_path / "o", tmp_path / "whole", "pgd")


def test_an_error_of_one_process_is_told_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "sanrobust", "rotate", "-m", "no_such_module:make",
                           *SMALL, "--processes", "2", "--out", tmp_path], text=True,
                          capture_output=True)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert done.stderr.count("no_such_module") < 4


# Which part a process is.

@pytest.mark.parametrize(("typed", "environment", "part"), [
    (None, {}, "1/1"), ("2/3", {}, "2/3"), ("1/1", {"RANK": "1", "WORLD_SIZE": "2"}, "1/1"),
    (None, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, "2/4"),
    (None, {"RANK": "0", "WORLD_SIZE": "1"}, "1/1"),
    (None, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, "4/8"),
    (None, {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"},
     "4/8"),
    # A batch script, which is one process however many tasks were asked for.
    (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "5"}, "1/1"),
    (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "5", "SLURM_STEP_ID": "0"},
     "1/1"),
    (None, {"SLURM_PROCID": "0", "SLURM_JOB_ID": "5"}, "1/1"),
    (None, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "4",
            "SLURM_ARRAY_TASK_MIN": "7"}, "3/4"),
    (None, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5",
            "SLURM_ARRAY_TASK_STEP": "2"}, "3/3"),
    (None, {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "1",
            "SLURM_ARRAY_TASK_MIN": "9"}, "1/1"),
    (None, {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, "5/6"),
    (None, {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, "2/2"),
])
def test_the_part_is_found(typed: str | None, environment: dict[str, str], part: str) -> None:
    assert str(find_shard(typed, environment)) == part


@pytest.mark.parametrize(("typed", "environment", "words"), [
    ("0/4", {}, "i from 1 to n"), ("5/4", {}, "i from 1"), ("1/0", {}, "i from 1"),
    ("a/b", {}, "'a/b'"), ("1", {}, "'1'"), ("-1/4", {}, "'-1/4'"), ("1/4/2", {}, "'1/4/2'"),
    ("1/999999999", {}, "at most 100000"), (None, {"RANK": "x", "WORLD_SIZE": "2"}, "RANK"),
    (None, {"RANK": "2", "WORLD_SIZE": "2"}, "they are 2 and 2"),
    (None, {"SLURM_PROCID": "9", "SLURM_NTASKS": "8"}, "they are 9 and 8"),
    (None, {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3",
            "SLURM_ARRAY_TASK_MIN": "1"}, "without gaps"),
])
def test_what_is_no_part_is_refused(typed: str | None, environment: dict[str, str],
                                    words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_shard(typed, environment)


def test_options_that_exclude_each_other_are_refused(command: Command, tmp_path: Path) -> None:
    ask = ("rotate", "-m", RESNET, "--out", tmp_path)
    for more, words in ((("--shard", "1/2", "--processes", "2"), "leave out one"),
                        (("--shard", "1/2", "--fresh"), "started together")):
        result = command(*ask, *more)
        assert result.exit_code == 2 and words in result.output


# Who takes which block.

def share(store: RunStore, shard: Shard) -> tuple[Share, Start]:
    start = Start(store.folder, store.token, {"shard": [shard.index, shard.count]})
    start.write("running")
    return Share(store, start, shard), start


def taken_up(tmp_path: Path) -> RunStore:
    with RunStore(tmp_path, SPEC) as store:
        store.begin(lambda: {"block_size": 1}, 1)
        store.write_header({**store.header(), "block_size": 1})
        store.take_up(IDS)
    return store


def test_a_block_that_a_living_process_measures_is_left_to_it(tmp_path: Path) -> None:
    one, other = taken_up(tmp_path), taken_up(tmp_path)
    first, its_start = share(one, Shard())
    second, _ = share(other, Shard())
    assert first.take(0) and not second.take(0) and second.take(1)
    assert next(second.left()) == 2
    its_start.end()  # as the system does for a process that is killed
    assert second.take(0)


def test_a_claim_of_long_ago_is_not_waited_for(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = taken_up(tmp_path), taken_up(tmp_path)
    first, _ = share(one, Shard())
    second, _ = share(other, Shard())
    assert first.take(0) and not second.take(0)
    monkeypatch.setattr(starts, "FRESH_SECONDS", -1.0)
    assert second.take(0)


def test_blocks_of_a_part_that_nobody_started_are_left_to_it(tmp_path: Path) -> None:
    one, other = taken_up(tmp_path), taken_up(tmp_path)
    first, _ = share(one, Shard(0, 2))
    assert first.own == [0, 2]
    for block, image in ((0, "a"), (2, "c")):
        assert first.take(block)
        append(one, rows(image))
    assert list(first.left()) == []
    _, its_start = share(other, Shard(1, 2))
    its_start.end()
    assert next(first.left()) == 3  # from the last one on


def test_a_part_that_ends_first_is_done_and_the_last_one_completes_the_run(tmp_path: Path) -> None:
    for shard, images in ((Shard(1, 2), "bd"), (Shard(0, 2), "ac")):
        store = taken_up(tmp_path)
        with started(store, IDS, facts={}, remarks={}, shard=shard):
            append(store, rows(images))
    assert [each.facts["status"] for each in starts_of(store.folder)] == ["done", "complete"]
    (run,) = find_runs(tmp_path, "rotate").runs
    assert run.complete and len(run.records()) == 20


@pytest.mark.parametrize(("local", "there", "index"), [(0, 4, 0), (3, 4, 3), (3, 1, 0)])
def test_each_process_of_a_machine_takes_a_device_of_its_own(
        monkeypatch: pytest.MonkeyPatch, local: int, there: int, index: int) -> None:
    monkeypatch.setattr(device, "cuda_refusal", lambda: None)
    monkeypatch.setattr(device.torch.cuda, "device_count", lambda: there)
    assert str(device.choose_device("auto", local)) == f"cuda:{index}"
    assert str(device.choose_device("auto")) == "cuda"
    assert str(device.choose_device("cpu", local)) == "cpu"
