"""Checkpoints of every kind, whole, damaged and hostile."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sanrobust.errors import CheckpointError
from sanrobust.zoo.build import build
from sanrobust.zoo.checkpoint import (
    METADATA_KEY, read_facts, read_metadata, read_state_dict, save_safetensors,
)
from sanrobust.zoo.digest import state_digest
from sanrobust.zoo.fit import fitting, head_classes, load_strict
from sanrobust.zoo.forms import imagenet_config, small_config
from zoo_files import SMALL, official_layout, trained

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, 2.0])}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(
        torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("new_format", [True, False])
def test_reads_zip_and_legacy_files(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "a.bin"
    torch.save(STATE, path, _use_new_zipfile_serialization=new_format)
    assert same(read_state_dict(path), STATE)


def test_knows_safetensors_by_content_not_by_name(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    save_file(STATE, path)
    assert state_digest(read_state_dict(path)) == state_digest(STATE)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "model_ema"])
def test_finds_the_state_inside_a_training_checkpoint(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, key: STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth"), STATE)


def test_reads_the_numpy_numbers_that_training_scripts_leave(tmp_path: Path) -> None:
    torch.save({"best": np.float64(0.75), "n": np.int64(3), "state_dict": STATE},
               tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth"), STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_drops_a_prefix_that_every_name_has(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in STATE.items()}, tmp_path / "a.pth")
    assert same(read_state_dict(tmp_path / "a.pth"), STATE)


def test_drops_one_prefix_only_and_never_in_the_middle(tmp_path: Path) -> None:
    torch.save({"module.module.fc.weight": torch.ones(1), "module.a.module.b": torch.ones(1)},
               tmp_path / "a.pth")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["module.fc.weight", "a.module.b"]


def test_keeps_a_prefix_that_some_names_lack(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_state_dict(tmp_path / "a.pth")) == ["module.a", "b"]


class Hostile:
    """Creates a file when it is unpickled, if anything runs it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def hostile_files(mark: Path) -> dict[str, bytes]:
    files = {f"protocol {number}": pickle.dumps(Hostile(mark), number) for number in range(6)}
    for new_format in (True, False):
        stream = io.BytesIO()
        torch.save({"state_dict": {"w": Hostile(mark)}}, stream,
                   _use_new_zipfile_serialization=new_format)
        files["zip" if new_format else "legacy"] = stream.getvalue()
    return files


@pytest.mark.parametrize("kind", ["zip", "legacy", *(f"protocol {n}" for n in range(6))])
def test_never_runs_what_a_pickle_asks_for(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "hostile.pth"
    path.write_bytes(hostile_files(mark)[kind])
    with pytest.raises(CheckpointError):
        read_state_dict(path)
    assert not mark.exists()


def test_the_hostile_pickle_of_these_tests_does_spring_elsewhere(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    pickle.loads(hostile_files(mark)["protocol 2"])
    assert mark.exists()


def test_says_what_a_hostile_pickle_wanted(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pth"
    path.write_bytes(hostile_files(tmp_path / "it ran")["zip"])
    with pytest.raises(CheckpointError, match=r"wants to run \S+mkdir when it is read"):
        read_state_dict(path)


@pytest.mark.parametrize(("content", "said"), [
    (b"", "it is empty"),
    (b"<!DOCTYPE html><html><body>Quota exceeded</body></html>", "is a web page"),
    (b"\xef\xbb\xbf \n<HTML lang=en>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a text file"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "neither safetensors nor a PyTorch file"),
    (b"\x80\x02" + bytes(range(200, 255)), "is damaged"),
    (b"PK\x03\x04" + bytes(60), "is damaged"),
    ((1 << 20).to_bytes(8, "little") + b'{"fc.weight":', "is damaged"),
])
def test_says_what_a_file_without_weights_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_state_dict(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.995])
def test_says_that_a_truncated_file_is_damaged(tmp_path: Path, kind: str, kept: float) -> None:
    path = tmp_path / "a.pth"
    state = {f"layer{index}.weight": torch.rand(30, 30) for index in range(5)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("new_format", [True, False])
def test_turns_every_flipped_byte_into_a_sentence(tmp_path: Path, new_format: bool) -> None:
    stream = io.BytesIO()
    torch.save(STATE, stream, _use_new_zipfile_serialization=new_format)
    whole, path = stream.getvalue(), tmp_path / "a.pth"
    refused = 0
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A])
                         + whole[position + 1:])
        try:
            read_state_dict(path)
        except CheckpointError:
            refused += 1
    assert refused > 5


def test_refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="must be a readable file"):
            read_state_dict(path)


def test_refuses_a_whole_pickled_model(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"Linear when it is read.*save the model's"):
        read_state_dict(tmp_path / "a.pth")


def test_refuses_a_torchscript_program(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"")
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="is a TorchScript program"):
        read_state_dict(tmp_path / "a.pt")


def test_refuses_a_zip_that_was_compressed_afterwards(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1000))
    with pytest.raises(CheckpointError, match="was compressed afterwards"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize(("value", "said"), [
    ({"w": torch.ones(1), "note": "text"}, "'note'"), ({"w": torch.ones(2).to_sparse()}, "'w'"),
    ({3: torch.ones(1)}, "3 in"), ({}, "an empty table"), (torch.ones(2), "a tensor"),
    ([torch.ones(2)], "type list"),
])
def test_refuses_anything_but_named_plain_tensors(tmp_path: Path, value: object,
                                                  said: str) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=said):
        read_state_dict(tmp_path / "a.pth")


def test_digest_is_the_same_for_pickled_and_safetensors_copies(tmp_path: Path) -> None:
    state = {**trained(), "half": torch.rand(3).half(), "brain": torch.rand(3).bfloat16(),
             "view": torch.rand(3, 4).t(), "empty": torch.empty(0)}
    torch.save(state, tmp_path / "a.pth")
    save_safetensors(state, tmp_path / "a.safetensors", {METADATA_KEY: "{}"})
    digests = {state_digest(read_state_dict(tmp_path / name)) for name in
               ("a.pth", "a.safetensors")}
    assert digests == {state_digest(state)}


@pytest.mark.parametrize("other", [
    {"w": torch.tensor([1.0, 2.5])}, {"v": torch.tensor([1.0, 2.0])},
    {"w": torch.tensor([[1.0, 2.0]])}, {"w": torch.tensor([1.0, 2.0]).view(torch.int32)},
])
def test_digest_tells_values_names_shapes_and_dtypes_apart(
        other: dict[str, torch.Tensor]) -> None:
    assert state_digest({"w": torch.tensor([1.0, 2.0])}) != state_digest(other)


def test_saves_tensors_that_share_memory_and_reads_the_metadata_back(tmp_path: Path) -> None:
    path, whole = tmp_path / "a.safetensors", torch.arange(6.0)
    save_safetensors({"a": whole[:3], "b": whole}, path, {METADATA_KEY: '{"arch": "x"}'})
    assert same(read_state_dict(path), {"a": whole[:3], "b": whole})
    assert read_metadata(path) == {METADATA_KEY: '{"arch": "x"}'}
    assert read_facts(path) == {"arch": "x"}


def test_a_pickle_has_no_metadata(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    assert read_metadata(tmp_path / "a.pth") == {}
    assert read_facts(tmp_path / "a.pth") is None


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_facts_that_are_no_table_are_damage(tmp_path: Path, text: str) -> None:
    save_safetensors(STATE, tmp_path / "a", {METADATA_KEY: text})
    with pytest.raises(CheckpointError, match="is damaged"):
        read_facts(tmp_path / "a")


def test_loads_the_authors_layout_bit_for_bit(tmp_path: Path) -> None:
    form, path = imagenet_config("san10-pair"), tmp_path / "model_best.pth"
    wanted = official_layout(form, path)
    network = build(form)
    load_strict(network, read_state_dict(path), name="san10-pair", source=str(path))
    assert same(dict(network.state_dict()), wanted)


def test_loads_files_older_than_the_batch_counter() -> None:
    state = {key: value for key, value in trained().items()
             if not key.endswith("num_batches_tracked")}
    network = build(SMALL)
    load_strict(network, state, name="x", source="y")
    assert same({key: value for key, value in network.state_dict().items() if key in state}, state)


def test_says_which_model_a_deeper_networks_weights_fit() -> None:
    state = trained(small_config("san15-pair", 10))
    with pytest.raises(CheckpointError, match=r"unexpected \(first layer0\.2\..*it fits "
                       r"san15-pair\.untrained-small: type --model san15-pair"):
        load_strict(build(SMALL), state, name="san10-pair", source="file")


@pytest.mark.parametrize("arch", ["resnet26", "san15-pair", "san19-patch", "san10-sasa", "sasa38"])
def test_recognises_a_state_by_its_names_and_shapes(arch: str) -> None:
    with torch.device("meta"):
        full, small = build(imagenet_config(arch, 7)), build(small_config(arch, 3))
    assert fitting(full.state_dict()) == arch
    assert fitting(small.state_dict()) == f"{arch}.untrained-small"
    assert fitting(STATE) is None


def test_says_how_many_classes_differ() -> None:
    with pytest.raises(CheckpointError, match="file has 10 classes where the model has 4: "
                       "give weights with the model's number of classes"):
        load_strict(build(small_config("san10-pair", 4)), trained(), name="x", source="file")


def test_names_what_is_missing_and_reshaped_when_no_model_fits() -> None:
    state = trained()
    del state["conv_in.weight"]
    state["bn_in.weight"] = torch.ones(5)
    with pytest.raises(CheckpointError, match=r"1 of \d+ names are missing \(first conv_in.weight"
                       r"\), 1 have another shape \(first bn_in.weight: \(5,\) where the model "
                       r"has \(32,\)\): check that the file holds weights "
                       "of x"):
        load_strict(build(SMALL), state, name="x", source="file")


def test_a_refused_state_leaves_the_network_as_it_was() -> None:
    network = build(SMALL)
    before = state_digest(network.state_dict())
    with pytest.raises(CheckpointError):
        load_strict(network, {**trained(), "more": torch.ones(1)}, name="x", source="file")
    assert state_digest(network.state_dict()) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(value: float) -> None:
    state = trained()
    state["fc.weight"][0, 0] = value
    with pytest.raises(CheckpointError, match="fc.weight in file holds NaN or infinity"):
        load_strict(build(SMALL), state, name="x", source="file")


def test_head_classes_needs_the_rest_to_agree() -> None:
    expected = {"fc.weight": (4, 3), "fc.bias": (4,)}
    assert head_classes(expected, STATE) == 2
    assert head_classes({"fc.weight": (4, 9), "fc.bias": (4,)}, STATE) is None
    assert head_classes({"fc.weight": (2, 3), "fc.bias": (2,)}, STATE) is None
    assert head_classes({**expected, "more": (1,)}, STATE) is None
