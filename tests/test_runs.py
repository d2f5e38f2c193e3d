"""Runs on disk: a header that is true, records that are whole, and damage that hides nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from made_runs import append, blocks_of, make_old_run, rows as made_rows
from sanrobust.errors import Interrupted, OutputError
from sanrobust.experiments.rotation import ROTATION
from sanrobust.header import complete, missing, started
from sanrobust.preprocessing import Preprocessing
from sanrobust.records import RunStore, write_header_file
from sanrobust.runs import Run, find_runs, identity, models_meant, near, open_run, select
from sanrobust.spec import RunSpec

IDS = ("a", "b", "c", "d")
SPEC = RunSpec(experiment="rotate", model="m.t", weights="00", preprocessing=Preprocessing(),
               data="d", data_digest="11", images=len(IDS))


def rows(ids: Sequence[str]) -> dict[str, list[object]]:
    count = len(ids)
    values: dict[str, list[object]] = {name: [None] * count for name in ROTATION.records.columns}
    values.update(image=list(ids), label=[1] * count, view=["none"] * count, pred=[1] * count,
                  top5_hit=[True] * count, prob_label=[0.5] * count)
    return values


def test_the_header_of_a_complete_run_has_the_seconds_of_its_processes(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store, blocks_of(4):
        with started(store, IDS, facts={}, remarks={}):
            time.sleep(0.3)
            append(store, rows(IDS))
        assert float(str(store.header()["seconds"])) >= 0.3


def measure(out: Path, *parts: Sequence[str], spec: RunSpec = SPEC, command: str = "") -> Run:
    """Make a run of these parts, complete when they hold every image."""
    with RunStore(out, spec) as store, blocks_of(len(parts[0])):
        with started(store, IDS, facts={"command": command, "device": "cpu"},
                     remarks={"probe": ["m.t: it is random"]}):
            for part in parts:
                append(store, rows(part))
    return open_run(store.folder)


def test_a_complete_run_reads_back(tmp_path: Path) -> None:
    run = measure(tmp_path, "ab", "cd")
    assert run.complete and run.records()["image"].tolist() == list(IDS)
    assert list(run.remarks()) == ["m.t: it is random"]


def test_a_run_that_ends_without_all_its_images_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="lacks 1 of 4: type the same command again"):
        measure(tmp_path, "abc")
    (run,) = find_runs(tmp_path, "rotate").runs
    assert not run.complete and run.last_start["status"] == "failed"


@pytest.mark.parametrize("lost", ["block-000000", "block-000001"], ids=["first", "last"])
def test_a_complete_run_with_a_lost_block_is_an_error_that_names_the_command(
        tmp_path: Path, lost: str) -> None:
    run = measure(tmp_path, "ab", "cd", command="sanrobust rotate -m m.t")
    (run.folder / "records" / f"{lost}.parquet").unlink()
    with pytest.raises(OutputError, match="holds 2 of 4: type sanrobust rotate -m m.t --out "):
        run.records()


def test_images_of_another_set_in_a_complete_run_are_an_error(tmp_path: Path) -> None:
    run = measure(tmp_path, "ab", "cd")
    (run.folder / "records" / "block-000001.parquet").unlink()
    with RunStore(tmp_path, SPEC) as store:
        store.take_up(["a", "b", "c", "x"])
        store.append(1, rows("c"))
        store.append(1, rows("x"))
        with pytest.raises(OutputError, match="block-000001.parquet does not .it holds other"):
            complete(store, IDS)
    with pytest.raises(OutputError, match="some of other images"):
        open_run(run.folder).records()


def test_images_of_another_set_in_a_part_are_an_error(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        store.take_up(["a", "b", "c", "x"])
        store.append(0, rows("cx"))
        with pytest.raises(OutputError, match="1 of others .the first is x."):
            missing(store, IDS)


def test_the_header_says_how_a_run_was_begun_and_each_process_has_a_file(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="after 2 of 4"), RunStore(tmp_path, SPEC) as store:
        with started(store, IDS, facts={"device": "cpu", "batch_size": 2}, remarks={},
                     batch_size=2):
            append(store, rows("ab"))
            raise KeyboardInterrupt
    begun = open_run(store.folder)
    assert begun.header["status"] == "running" and not begun.complete
    with RunStore(tmp_path, SPEC) as store:
        assert missing(store, IDS) == 2
        with started(store, IDS, facts={"device": "cuda:0", "batch_size": 64}, remarks={}):
            append(store, rows("cd"))
    run = open_run(store.folder)
    assert run.header["status"] == "complete" and run.header["device"] == "cpu"
    assert [(each.facts["device"], each.facts["batch_size"], each.facts["status"], each.alive)
            for each in run.starts] == [("cpu", 2, "interrupted", False),
                                        ("cuda:0", 64, "complete", False)]
    assert run.header["started"] == begun.header["started"]
    assert run.last_start["device"] == "cuda:0"


def test_a_header_of_the_first_version_is_gone_on_with(tmp_path: Path) -> None:
    run = make_old_run(tmp_path, "ab", sealed=False, status="interrupted", spec=SPEC)
    header = {key: value for key, value in run.header.items() if key != "starts"}
    (run.folder / "run.json").write_text(json.dumps({**header, "weights_source": "a file"}))
    with RunStore(tmp_path, SPEC) as store:
        with started(store, IDS, facts={"batch_size": 9, "weights_source": "b"}, remarks={}):
            append(store, made_rows("cd"))
    run = open_run(store.folder)
    assert run.header["started"] == header["started"] and float(str(run.header["seconds"])) >= 5
    assert run.source == "a file" and run.last_start["batch_size"] == 9


def test_an_earlier_run_without_the_digest_of_its_ids_is_readable(tmp_path: Path) -> None:
    run = measure(tmp_path, "ab", "cd")
    header = {key: value for key, value in run.header.items() if key != "ids_digest"}
    assert len(Run(run.folder, header).records()) == 4


def test_a_damaged_header_hides_no_other_run(tmp_path: Path) -> None:
    good = measure(tmp_path, "abcd")
    bad = measure(tmp_path, "abcd", spec=replace(SPEC, model="n.t"))
    (bad.folder / "run.json").write_text("{")
    found = find_runs(tmp_path, "rotate")
    assert [run.folder for run in found.runs] == [good.folder]
    assert [bad.folder.name in str(error) for error in found.damaged] == [True]


@pytest.mark.parametrize(("key", "value"), [("model", "other.t"), ("images", 3), ("data", "e")])
def test_a_specification_changed_by_hand_is_noticed(tmp_path: Path, key: str,
                                                    value: object) -> None:
    path = measure(tmp_path, "abcd").folder / "run.json"
    header = json.loads(path.read_text())
    header["spec"][key] = value
    path.write_text(json.dumps(header))
    (error,) = find_runs(tmp_path, "rotate").damaged
    assert "changed after it was written" in str(error)


@pytest.mark.parametrize("key", ["model", "weights", "settings"])
def test_a_specification_that_lacks_a_part_is_noticed(tmp_path: Path, key: str) -> None:
    path = measure(tmp_path, "abcd").folder / "run.json"
    header = json.loads(path.read_text())
    del header["spec"][key]
    path.write_text(json.dumps(header))
    (error,) = find_runs(tmp_path, "rotate").damaged
    assert f"lacks {key}" in str(error)


@pytest.mark.parametrize("change", [
    {"weights": "01"}, {"data_digest": "12"}, {"images": 3}, {"code": "ab"}, {"model": "n.t"},
    {"data": "e"}, {"precision": "bfloat16"}, {"preprocessing": Preprocessing(img_size=32)},
    {"settings": {"seed": 1}},
], ids=lambda change: next(iter(change)))
def test_rows_are_one_only_where_everything_that_decides_them_agrees(
        change: dict[str, object]) -> None:
    other = replace(SPEC, **change)  # type: ignore[arg-type]
    assert identity(run_of(SPEC), {}) == identity(run_of(SPEC), {})
    assert identity(run_of(SPEC), {}) != identity(run_of(other), {})


def test_the_list_of_budgets_does_not_decide_a_row_but_its_own_budget_does() -> None:
    one, both = ({"budgets": [{"eps": 8.0, "step": step, "iters": 2} for step in steps]}
                 for steps in ((4.0,), (4.0, 2.0)))
    alone, beside = (run_of(replace(SPEC, experiment="pgd", settings=each)) for each in (one, both))
    budget = {"eps": 8.0, "step": 4.0, "iters": 2}
    assert identity(alone, budget) == identity(beside, budget)
    assert identity(beside, budget) != identity(beside, {**budget, "step": 2.0})


def run_of(spec: RunSpec) -> Run:
    return Run(Path(spec.run_id), {"spec": spec.as_dict()})


def test_runs_are_selected_by_folder_model_and_data() -> None:
    first, second = run_of(SPEC), run_of(replace(SPEC, model="m.u", data="e"))
    both = (first, second)
    assert select(both) == both
    assert select(both, models=["m.t"]) == (first,) and select(both, models=["m"]) == both
    assert select(both, data=["e"]) == (second,)
    assert select(both, names=[first.name]) == select(both, names=[SPEC.digest[:12]]) == (first,)
    assert select(both, models=["m.t"], data=["e"]) == ()
    again = replace(first, folder=first.folder.with_name(f"{first.name}.2"))
    assert select((first, again), names=[SPEC.digest[:12]]) == (first, again)
    assert select((first, again), names=[f"{SPEC.digest[:12]}.2"]) == (again,)
    assert select(both, names=["m.t", str(SPEC.data)]) == ()


def test_a_run_is_being_written_while_a_process_measures_it(tmp_path: Path) -> None:
    with RunStore(tmp_path, SPEC) as store:
        with started(store, IDS, facts={}, remarks={}):
            assert open_run(store.folder).is_being_written()
            append(store, rows(IDS))
    assert not open_run(store.folder).is_being_written()


def test_a_run_whose_last_process_could_not_say_so_is_complete(tmp_path: Path) -> None:
    run = measure(tmp_path, "ab", "cd")
    write_header_file(run.folder / "run.json", {**run.header, "status": "running"})
    assert open_run(run.folder).complete


def test_what_goes_on_with_a_run_measures_all_parts() -> None:
    for words in ("--shard 2/3 -b 4", "--shard=2/3 -b 4", "-b 4 --shard 2/3", "-b 4"):
        run = Run(Path("o/runs/r"), {"command": f"sanrobust pgd {words}"})
        assert run.again() == "type sanrobust pgd -b 4 --out o"


def test_a_model_is_meant_by_every_name_that_a_table_gives_it() -> None:
    names = {"san10-pair.digits", "san10-pair(relation=hadamard).digits", "mine:Net", "mine:net",
             "timm/resnet50.a1_in1k"}

    def meant(name: str) -> list[str]:
        return sorted(models_meant(name, names))

    for name in ("san10-pair", "SAN10-pair", "SAN10-pair (digits)", "San10-Pair.Digits"):
        assert meant(name) == ["san10-pair.digits"], name
    for name in ("SAN10-pair (hadamard)", "san10-pair (Hadamard) (digits)"):
        assert meant(name) == ["san10-pair(relation=hadamard).digits"], name
    assert meant("mine:Net") == ["mine:Net"] and meant("MINE:NET") == ["mine:Net", "mine:net"]
    assert meant("timm/resnet50") == ["timm/resnet50.a1_in1k"] and meant("resnet50") == []
    assert near("SAN10-piar", names).startswith("did you mean san10-pair?")
    assert near("nothing like it", names) == ""
