"""The user's store of weights: what enters, what is refused, and what it remembers."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import Command
from sanrobust.errors import CheckpointError, UnknownNameError, UsageError
from sanrobust.files import sha256_file
from sanrobust.zoo import catalog, store
from sanrobust.zoo.checkpoint import (
    METADATA_KEY, read_facts, read_state_dict, save_safetensors,
)
from sanrobust.zoo.digest import state_digest
from sanrobust.zoo.entry import Stored
from sanrobust.zoo.facts import entry_from_facts, facts as facts_of
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.forms import small_config
from zoo_files import trained

LIKE = "san10-pair.untrained-small"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "epoch90.pth"
    torch.save({"epoch": 90, "state_dict": {f"module.{key}": value for key, value in
                                            trained().items()}}, path)
    return path


def test_home_is_the_named_folder_or_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANROBUST_HOME", "~/weights")
    assert store.home() == Path.home() / "weights"
    monkeypatch.delenv("SANROBUST_HOME")
    assert store.home() == Path.home() / ".cache" / "sanrobust"


def test_an_absent_store_is_empty(folder: Path) -> None:
    assert store.records() == {}
    assert not folder.exists()


def test_keeps_the_weights_alone_and_remembers_their_hashes(folder: Path, weights: Path) -> None:
    record = store.add("san10-pair.mine", weights, like=catalog.find(LIKE))
    kept = folder / "san10-pair.mine.safetensors"
    assert record.entry.weights == Stored(kept.name, sha256_file(kept))
    assert record.source == weights.name
    assert record.source_sha256 == sha256_file(weights)
    assert record.state_digest == state_digest(trained()) == state_digest(read_state_dict(kept))
    assert store.records() == {"san10-pair.mine": record}


def test_takes_form_and_preprocessing_from_the_entry_it_is_like(weights: Path) -> None:
    like = catalog.find(LIKE)
    entry = store.add("san10-pair.mine", weights, like=like).entry
    assert (entry.architecture, entry.preprocessing, entry.data) == (
        like.architecture, like.preprocessing, "digits")


def test_takes_everything_from_the_facts_that_training_wrote(tmp_path: Path) -> None:
    form = small_config("san15-patch", 4)
    trained_entry = replace(catalog.find("san15-patch.untrained-small"), architecture=form,
                            data="shapes", top1=91.5, reference="sanrobust train ...")
    facts = json.dumps(facts_of(trained_entry))
    path = tmp_path / "best.safetensors"
    save_safetensors(trained(form), path, {METADATA_KEY: facts})
    entry = store.add("san15-patch.mine", path).entry
    assert replace(entry, tag="", weights=Stored("", "")) == replace(
        trained_entry, tag="", weights=Stored("", ""))


def test_takes_the_imagenet_form_when_nothing_says_otherwise(weights: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it fits san10-pair\.untrained-small: choose the "
                       r"name san10-pair\.TAG and add --like san10-pair\.untrained-small"):
        store.add("san10-pair.mine", weights)


def test_takes_the_number_of_classes_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(trained(small_config("san10-pair", 3)), path)
    entry = store.add("san10-pair.three", path, like=catalog.find(LIKE)).entry
    assert (entry.architecture.num_classes, entry.data) == (3, store.UNKNOWN_DATA)


def test_names_the_model_that_other_weights_belong_to(tmp_path: Path) -> None:
    torch.save(trained(small_config("san15-pair", 10)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"choose the name san15-pair\.TAG and add --like"):
        store.add("san10-pair.mine", tmp_path / "a.pth", like=catalog.find(LIKE))
    assert store.records() == {}


def test_the_architecture_of_like_must_be_that_of_the_name(weights: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--like says san10-pair: choose the name "
                       r"san10-pair\.mine"):
        store.add("san15-pair.mine", weights, like=catalog.find(LIKE))


def test_in1k_means_a_thousand_classes(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="must have the 1000 classes"):
        store.add("san10-pair.in1k", weights, like=catalog.find(LIKE))


@pytest.mark.parametrize("name", [
    "mine", "san10-pair.", ".mine", "../san10-pair.mine", "san10-pair.mine/x", "san10-pair.a.b",
    "San10-pair.mine", "san10-pair.mine\n", "san10-pair.mi ne", "/tmp/a.b", "san10-pair.\u0661",
])
def test_refuses_names_that_are_no_plain_file_name(name: str, weights: Path) -> None:
    for function in (store.weights_path, store.download_path):
        with pytest.raises(UsageError, match="must be ARCH.TAG"):
            function(name)
    with pytest.raises(UsageError):
        store.add(name, weights)


def test_refuses_an_unknown_architecture(weights: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean san10-pair"):
        store.add("san10-par.mine", weights)


@pytest.mark.parametrize("tag", store.RESERVED_TAGS)
def test_refuses_the_packages_own_tags(tag: str, weights: Path) -> None:
    with pytest.raises(UsageError, match="belongs to the package"):
        store.add(f"san10-pair.{tag}", weights)


def test_refuses_a_checkpoint_without_a_classifier(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="must hold fc.weight"):
        store.add("san10-pair.mine", tmp_path / "a.pth")


def test_a_name_is_replaced_only_when_that_is_asked_for(folder: Path, weights: Path,
                                                        tmp_path: Path) -> None:
    first = store.add("san10-pair.mine", weights, like=catalog.find(LIKE))
    other = tmp_path / "b.pth"
    torch.save(trained(seed=5), other)
    with pytest.raises(UsageError, match="in the store already.*--overwrite"):
        store.add("san10-pair.mine", other, like=catalog.find(LIKE))
    assert store.records() == {"san10-pair.mine": first}
    record = store.add("san10-pair.mine", other, like=catalog.find(LIKE), overwrite=True)
    assert store.records() == {"san10-pair.mine": record}
    assert record.state_digest == state_digest(trained(seed=5))
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json", "index.json.lock", "san10-pair.mine.safetensors"]


def test_the_stored_file_can_be_added_elsewhere_without_like(folder: Path, weights: Path,
                                                             tmp_path: Path) -> None:
    first = store.add("san10-pair.mine", weights, like=catalog.find(LIKE))
    kept = (folder / "san10-pair.mine.safetensors").rename(tmp_path / "sent by a friend")
    second = store.add("san10-pair.friend", kept)
    assert second.entry.architecture == first.entry.architecture
    assert second.state_digest == first.state_digest


def _add(number: int, weights: str) -> None:
    torch.set_num_threads(1)
    store.add(f"san10-pair.n{number}", Path(weights), like=catalog.find(LIKE))


def test_adds_at_the_same_time_lose_nothing(weights: Path) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    workers = [context.Process(target=_add, args=(number, str(weights))) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert sorted(store.records()) == [f"san10-pair.n{number}" for number in range(4)]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 99, "entries": {}}', '{"version": 1}'])
def test_a_damaged_index_says_how_to_go_on(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"remove \S+index\.json and add the weights again"):
        store.records()


@pytest.mark.parametrize(("name", "change"), [
    ("../../evil.mine", {}), ("san10-pair.mine", {"facts": {}}),
    ("san15-pair.mine", {}), ("san10-pair.mine", {"sha256": 3}),
])
def test_a_row_that_was_tampered_with_is_refused(folder: Path, weights: Path, name: str,
                                                 change: dict[str, object]) -> None:
    store.add("san10-pair.mine", weights, like=catalog.find(LIKE))
    content = json.loads((folder / "index.json").read_text())
    row = content["entries"].pop("san10-pair.mine")
    content["entries"][name] = {**row, **change}
    (folder / "index.json").write_text(json.dumps(content))
    assert name not in store.records() and set(store.damaged()) == {name}
    assert all(entry.name != name for entry in catalog.entries())
    assert catalog.find("san10-pair.digits").name == "san10-pair.digits"
    if "/" not in name:
        with pytest.raises(CheckpointError, match="add the weights again"):
            catalog.find(name)


@pytest.mark.parametrize(("key", "value"), [
    ("arch", 3), ("architecture", {"kind": "vit"}), ("architecture", None), ("top1", 140),
    ("preprocessing", {"img_size": 0, "mean": [0, 0, 0], "std": [1, 1, 1]}), ("note", None),
])
def test_facts_that_describe_no_model_are_refused(key: str, value: object) -> None:
    facts = {**facts_of(catalog.find(LIKE)), key: value}
    with pytest.raises(CheckpointError, match="must describe a model of the zoo"):
        entry_from_facts(facts, tag="mine", weights=Stored("", ""))


@pytest.mark.parametrize("change", [
    {"layers": [10**9, 1, 1, 1, 1]}, {"layers": [900, 900, 1, 1, 1]}, {"num_classes": 10**12},
    {"widths": [10**8] * 5}, {"layers": ["1"] * 5}, {"attention": "none"}, {"depth": 3},
    {"num_classes": 0},
])
def test_facts_cannot_ask_for_a_network_beyond_reason(change: dict[str, object]) -> None:
    facts = facts_of(catalog.find(LIKE))
    form = facts["architecture"]
    assert isinstance(form, dict)
    with pytest.raises(CheckpointError, match="must describe a model of the zoo"):
        entry_from_facts({**facts, "architecture": {**form, **change}}, tag="mine",
                         weights=Stored("", ""))


@pytest.mark.parametrize("name", ["san10-pair.in1k", "resnet50.in1k", LIKE,
                                  "resnet26.untrained-small"])
def test_facts_bring_an_entry_back_through_json(name: str) -> None:
    entry = catalog.find(name)
    facts = json.loads(json.dumps(facts_of(entry)))
    assert entry_from_facts(facts, tag=entry.tag, weights=Stored("", "")) == replace(
        entry, weights=Stored("", ""))


def test_facts_travel_in_the_stored_file(folder: Path, weights: Path) -> None:
    entry = store.add("san10-pair.mine", weights, like=catalog.find(LIKE)).entry
    facts = read_facts(folder / "san10-pair.mine.safetensors")
    assert facts is not None
    assert facts["num_classes"] == 10
    assert isinstance(entry.architecture, SanConfig)


def test_a_pin_is_kept_beside_the_file_for_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    assert store.pinned(path) is None
    store.pin(path, "ab" * 32)
    assert store.pinned(path) == "ab" * 32
    assert (tmp_path / "a.pth.sha256").read_text() == f"{'ab' * 32}  a.pth\n"


def test_a_damaged_pin_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "a.pth.sha256").write_text("")
    with pytest.raises(CheckpointError, match="must be a SHA-256"):
        store.pinned(tmp_path / "a.pth")


def test_the_store_lies_where_the_environment_says(tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.home() == tmp_path / "home"  # named by SANROBUST_HOME
    monkeypatch.delenv("SANROBUST_HOME")
    assert store.home() == tmp_path / "cache" / "sanrobust"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert store.home() == tmp_path / ".cache" / "sanrobust"


def test_a_home_of_nobody_is_a_sentence(command: Command,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANROBUST_HOME", "~nosuchuser/store")
    result = command("zoo", "list")
    assert result.exit_code == 2 and "set SANROBUST_HOME to a folder" in result.output


def test_the_list_says_what_its_columns_are(command: Command) -> None:
    assert command("zoo", "list").output.splitlines()[0].split() == ["name", "top-1", "weights"]


def test_the_command_keeps_weights_until_it_is_told_to_replace_them(
        command: Command, weights: Path) -> None:
    words = ("zoo", "add", "san10-pair.mine", weights, "--like", LIKE)
    assert command(*words).exit_code == 0
    result = command(*words)
    assert result.exit_code == 2 and "--overwrite" in result.output
    assert command(*words, "--overwrite").exit_code == 0
