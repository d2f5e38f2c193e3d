"""Where variants go by their names: store, facts, checkpoints, runs, tables and commands."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from sanrobust.design import PAIRWISE
from sanrobust.errors import CheckpointError, UsageError
from sanrobust.preprocessing import Preprocessing
from sanrobust.records import RunStore
from sanrobust.spec import RunSpec
from sanrobust.tables import to_csv, to_latex, to_text, with_paper
from sanrobust.zoo import catalog, store, trained_list
from sanrobust.zoo.build import parameter_shapes
from sanrobust.zoo.checkpoint import METADATA_KEY, save_safetensors
from sanrobust.zoo.entry import Stored
from sanrobust.zoo.facts import entry_from_facts, facts
from sanrobust.zoo.forms import small_config
from sanrobust.zoo.resolve import create_model
from table_cases import rotation_row, rotation_table
from zoo_files import ban_network, trained

HADAMARD = "san10-pair(relation=hadamard)"
SUMMATION = "san10-pair(relation=summation)"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ban_network(monkeypatch)
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def saved(tmp_path: Path, typed: str) -> Path:
    """A file as our own training writes it for ``typed``, in its small form."""
    entry = replace(catalog.find(f"{typed}.untrained-small"), top1=90.0)
    path = tmp_path / "best.safetensors"
    save_safetensors(trained(entry.architecture), path, {METADATA_KEY: json.dumps(facts(entry))})
    return path


def test_added_weights_are_found_under_any_spelling(tmp_path: Path, home: Path) -> None:
    typed = "san10-pair( position=absolute, relation=hadamard ).mine"
    record = store.add(typed, saved(tmp_path, typed.removesuffix(".mine")))
    spelled = "san10-pair(relation=hadamard,position=absolute).mine"
    assert record.entry.name == spelled == catalog.names()[-1]
    assert (home / f"{spelled}.safetensors").exists()
    assert catalog.find(typed) == record.entry
    model = create_model(typed)
    assert (model.name, model.weights_digest) == (spelled, record.state_digest)


@pytest.mark.parametrize("name", [
    "san10-pair(position=absolute,relation=dot).mine", "san10-pair(relation=subtraction).mine",
    "san10-pair( relation=dot).mine", "san10-pair().mine", "san10-pair(relation=dot)",
    "san10-pair(relation=dot)/../../x.mine", "san10-pair(relation=../dot).mine",
    "../san10-pair(relation=dot).mine", "san10-pair(relation=dot).../mine",
    "san10-pair(relation=dot).mine/x", "san10-pair(relation=dot).mi ne", "evil(relation=dot).mine",
])
def test_only_canonical_names_are_files_of_the_store(name: str) -> None:
    for path in (store.weights_path, store.download_path):
        with pytest.raises(UsageError):
            path(name)


def test_a_file_of_another_variant_is_refused_even_where_it_would_fit(tmp_path: Path) -> None:
    path = saved(tmp_path, SUMMATION)
    assert parameter_shapes(small_config(SUMMATION)) == parameter_shapes(small_config(HADAMARD))
    with pytest.raises(CheckpointError, match="file says san10-pair.relation=summation"):
        store.add(f"{HADAMARD}.mine", path)
    for name in (HADAMARD, f"{HADAMARD}.untrained-small", "san10-pair"):
        with pytest.raises(CheckpointError, match=r"type --model 'san10-pair\(relation=summation"):
            create_model(name, checkpoint=path)


def test_a_checkpoint_tells_a_variant_its_form(tmp_path: Path) -> None:
    model = create_model("san10-pair(Relation=Summation)", checkpoint=saved(tmp_path, SUMMATION))
    assert model.name == f"{SUMMATION}.best"
    assert model.preprocessing == catalog.SMALL_PREPROCESSING


@pytest.mark.parametrize("typed", ["san10-pair", "san15-patch"])
def test_facts_written_before_there_were_designs_still_load(typed: str) -> None:
    entry = catalog.find(f"{typed}.untrained-small")
    written: dict[str, Any] = json.loads(json.dumps(facts(entry)))
    design = written["architecture"].pop("design")
    written["architecture"]["attention"] = design["attention"]
    found = entry_from_facts(written, tag=entry.tag, weights=entry.weights)
    assert found == replace(entry, note=found.note)


@pytest.mark.parametrize("typed", [
    "san10-pair", "san10-patch", "san10-scalar", "san10-sasa", "resnet26", "sasa26", HADAMARD,
    "sasa26(stem=attention,heads=2,footprint=3)", "san10-pair(footprint=3)", "resnet26(kernel=5)",
    "resnet26(width=32)", "san10-patch(width=96)", "sasa26(heads=2,width=32)",
])
def test_facts_bring_every_kind_of_network_back(typed: str) -> None:
    for tag in ("untrained", "untrained-small"):
        entry = catalog.find(f"{typed}.{tag}")
        written = json.loads(json.dumps(facts(entry)))
        assert entry_from_facts(written, tag=tag, weights=entry.weights) == entry


@pytest.mark.parametrize(("arch", "change"), [
    (HADAMARD, {"design": asdict(PAIRWISE)}),
    ("san10-pair", {"design": {**asdict(PAIRWISE), "relation": "hadamard"}}),
    ("san10-pair", {"design": {**asdict(PAIRWISE), "heads": 10**9}}),
    ("san10-pair", {"design": {"depth": 3}}), ("san10-pair", {"design": None}),
    ("san10-pair", {"footprints": [10**9] * 5}),
    ("san10-pair(footprint=3)", {"footprints": [5] * 5}),
    ("resnet26(kernel=5)", {"kernel": 3}), ("resnet26", {"kernel": 10**6}),
    ("sasa26", {"stem": "none"}), ("sasa26", {"convolutions": 9}), ("sasa26", {"footprint": 3}),
    ("sasa26", {"kind": "resnet"}), ("resnet26(width=32)", {"width": 8}),
    ("san10-pair(width=96)", {"widths": [32, 32, 64, 128, 256]}),
    ("sasa26(width=128)", {"width": 8}),
])
def test_facts_whose_network_is_not_the_one_named_are_refused(arch: str,
                                                              change: dict[str, object]) -> None:
    written: dict[str, Any] = facts(catalog.find(f"{arch}.untrained-small"))
    written = {**written, "architecture": {**written["architecture"], **change}}
    with pytest.raises(CheckpointError, match="must describe a model of the zoo"):
        entry_from_facts(written, tag="mine", weights=Stored("", ""))


# --- runs and tables

def test_variants_with_equal_weights_never_share_a_run(tmp_path: Path) -> None:
    models = [create_model(f"{name}.untrained-small") for name in (HADAMARD, SUMMATION)]
    assert models[0].weights_digest == models[1].weights_digest
    specs = [RunSpec("rotate", model.name, model.weights_digest, Preprocessing(), "digits", "0", 9)
             for model in models]
    folders = {RunStore(tmp_path, spec).folder.name for spec in specs}
    assert len(folders) == 2
    assert all("hadamard" in name or "summation" in name for name in folders)
    assert all(set("()=,") & set(name) == set() for name in folders)


def test_tables_show_variants_behind_their_network() -> None:
    variants = ("san10-pair(relation=hadamard,footprint=5).s1", "sasa26(heads=2).s1",
                "san10-patch.s1", "san10-pair.s1")
    table = rotation_table([rotation_row(name) for name in variants], title="A title")
    listed = [line.split(",none")[0] for line in to_csv(table).splitlines()[1:]]
    assert [variant in line for variant, line in zip(
        (variants[3], variants[0], variants[2], variants[1]), listed, strict=True)] == [True] * 4
    for text in (to_text(table), to_latex(table)):
        assert "SAN10-pair (hadamard, footprint 5)" in text
        assert "sasa26(heads=2).s1" in text


def test_the_papers_numbers_never_stand_beside_a_variant() -> None:
    rows = [rotation_row(name, data="imagenet") for name in (f"{HADAMARD}.a", "san10-pair.in1k")]
    compared = with_paper(rotation_table(rows, title="A title")).rows.set_index("model")
    assert compared.loc["san10-pair.in1k", "paper_none_top1"] == 74.9
    assert compared.loc[[f"{HADAMARD}.a"], "paper_none_top1"].isna().all()


# --- commands

def test_training_writes_and_lists_variants_behind_the_papers_nine(command: Command,
                                                                   tmp_path: Path) -> None:
    (tmp_path / "s1.json").write_text(json.dumps({"san10-pair(relation=dot)": {}, "resnet26": {}}))
    done = command("train", "-m", "resnet26( kernel=5 )", "--epochs", 1, "-b", 256, "--tag", "s1",
                   "--seed", 1, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    listed = json.loads((tmp_path / "s1.json").read_text())
    assert list(listed) == ["resnet26", "resnet26(kernel=5)", "san10-pair(relation=dot)"]
    assert listed["resnet26(kernel=5)"]["command"].startswith(
        "sanrobust train --model 'resnet26(kernel=5)' --data digits --tag s1")
    path = tmp_path / "resnet26(kernel=5).s1.safetensors"
    done = command("zoo", "add", "resnet26(kernel=5).s1", path)
    assert done.exit_code == 0, done.output
    done = command("zoo", "verify", "resnet26(kernel=5).s1")
    assert done.exit_code == 0 and "resnet26(kernel=5).s1 " in done.output
    done = command("rotate", "-m", "resnet26(kernel=5).s1", "--num-samples", 20, "--out", tmp_path)
    assert done.exit_code == 0 and "ResNet26 (kernel 5)" in done.output, done.output


def _enter(folder: Path, worker: int) -> None:
    for number in range(25):
        trained_list.enter(folder / "s1.json", f"resnet26.{worker}.{number}", {})


def test_processes_that_train_into_one_folder_lose_no_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    workers = [context.Process(target=_enter, args=(tmp_path, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(json.loads((tmp_path / "s1.json").read_text())) == 75


@pytest.mark.parametrize(("options", "answer"), [
    (("-m", "san10-pair(relation=hadamar)"), "did you mean hadamard?"),
    (("-m", f"{HADAMARD}.s1"), "has the tag 's1'"),
    (("-m", "resnet26", "-m", "vgg"), "no architecture named 'vgg'"),
    (("-m", "resnet26", "--tag", "../s1"), "must be a plain file name"),
])
def test_training_refuses_a_wrong_name_before_it_starts(command: Command, tmp_path: Path,
                                                        options: tuple[str, ...],
                                                        answer: str) -> None:
    done = command("train", *options, "--out", tmp_path / "out")
    assert done.exit_code == 2 and answer in done.output, done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("experiment", ["rotate", "pgd"])
def test_experiments_take_variants_by_name(command: Command, tmp_path: Path,
                                           experiment: str) -> None:
    done = command(experiment, "-m", "san10-pair( relation=hadamard ).untrained-small",
                   "--data", "digits", "--num-samples", 4, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    runs = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/run.json")]
    assert [run["spec"]["model"] for run in runs] == [f"{HADAMARD}.untrained-small"]
    assert "SAN10-pair (hadamard)" in done.output
    written = "".join(path.read_text() for path in tmp_path.glob("*.csv"))
    assert f"{HADAMARD}.untrained-small" in written
