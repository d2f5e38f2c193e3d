"""The reader of checkpoints' pickles: what it makes of instructions, and what it refuses."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
import torch

from sanrobust.zoo import pickles
from sanrobust.zoo.checkpoint import read_weights
from sanrobust.zoo.pickles import Opaque, Unsafe, element_type, unpickled
from sanrobust.zoo.stored import Unreadable


def read(content: bytes) -> object:
    return unpickled(io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [
    None, True, -3, 2**200, 1.5, "text \u00e9", b"bytes", [1, [2]], (1, 2, 3, 4), {"a": {"b": ()}},
    OrderedDict(a=1), Counter(a=2),
])
def test_plain_values_are_read_as_python_does(value: object, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize(("content", "value"), [
    (b"K\x0120.", 1),
    (b"K\x012\x86.", (1, 1)),
    (b"K\x01K\x020.", 1),
    (b"K\x01(K\x02K\x031.", 1),
    (b"(lp0\ng0\n0.", []),
    (b"]\x94K\x07a.", [7]),
])
def test_values_are_doubled_dropped_and_remembered(content: bytes, value: object) -> None:
    assert read(content) == value


@pytest.mark.parametrize(("content", "reason"), [
    (b"Pname\n.", "instruction PERSID"),
    (b"K\x01Q.", "a storage as none"),
    (b"K\x01\x86.", "more values than there are"),
    (b"K\x01)R.", "calls what is no function"),
    (b"K\x01K\x02K\x03s.", "a table that is none"),
    (b"}(K\x01u.", "a table that is none"),
    (b"K\x01K\x02a.", "a list that is none"),
    (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00utf-7tR.", "an unknown encoding"),
    (b"ctorch._tensor\n_rebuild_from_type_v2\n(K\x01K\x01)K\x01tR.", "in an unknown way"),
    (b"\x8b\x00\x01\x00\x00" + b"\x01" * 256 + b".", "a whole number of"),
    (b"K\x01", "end early"),
    (b"K\x01K\x02.", "end early"),
    (b"h\x05.", "end early"),
    (b"a.", "more values than there are"),
])
def test_what_does_not_read_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(content)


@pytest.mark.parametrize("content", [b"cos\nsystem\n(X\x02\x00\x00\x00lstR.",
                                     b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.",
                                     b"ctorch\nTensor\n)R."])
def test_what_wants_to_run_is_named(content: bytes) -> None:
    with pytest.raises(Unsafe, match=r"os\.system|torch\.Tensor"):
        read(content)


def test_a_pickle_may_not_work_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MOST_INSTRUCTIONS", 100)
    assert read(pickle.dumps([0] * 90)) == [0] * 90
    with pytest.raises(Unreadable, match="more than 100 instructions"):
        read(pickle.dumps([0] * 101))


def test_keys_that_are_neither_text_nor_small_numbers_are_kept_as_their_kind() -> None:
    found = read(pickle.dumps({(1, 2): "a", 2**63: "b", "c": 1}))
    assert isinstance(found, dict) and found["c"] == 1
    assert sorted(key.kind for key in found if isinstance(key, Opaque)) == ["int", "tuple"]


def test_a_storage_has_a_type_that_torch_has() -> None:
    assert element_type(pickles._Name("torch.HalfStorage")) is torch.float16
    assert element_type(pickles._Name("torch.cuda.FloatStorage")) is torch.float32
    assert element_type(pickles._Name("torch.storage.UntypedStorage")) is torch.uint8
    for kind in (pickles._Name("torch.RandomStorage"), "torch.FloatStorage", None):
        with pytest.raises(Unreadable, match="no type of storage"):
            element_type(kind)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_with_attributes_and_parts_of_storages_are_read(tmp_path: Path,
                                                                zipped: bool) -> None:
    noted = torch.arange(4.)
    noted.note = "an attribute"  # type: ignore[attr-defined]
    state = {"noted": noted, "part": torch.arange(12.).view(3, 4)[1:, ::2],
             "parameter": torch.nn.Parameter(torch.ones(2))}
    torch.save(state, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "file.pt").state
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value.detach()), name
