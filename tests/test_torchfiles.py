"""Storages of torch.save's files: what a pickle says of them, and what the file then has."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from sanrobust.zoo import torchfiles
from sanrobust.zoo.pickles import _Name
from sanrobust.zoo.stored import Unreadable
from sanrobust.zoo.checkpoint import read_weights

FLOAT = _Name("torch.FloatStorage")
VALUES = torch.arange(4, dtype=torch.float32)


def storages() -> torchfiles._Storages:
    """A file with one storage, called 0, of four numbers."""
    return torchfiles._Storages(lambda key, dtype: VALUES.view(torch.uint8),
                                lambda key, size: key == "0" and size == 16)


def test_a_storage_is_read_whole_or_in_part() -> None:
    whole = storages().persistent(("storage", FLOAT, "0", "cpu", 4))
    assert whole.dtype is torch.float32 and torch.equal(whole.read().view(torch.float32), VALUES)
    part = storages().persistent(("storage", FLOAT, "0", "cpu", 4, ("1", 1, 2)))
    assert torch.equal(part.read().view(torch.float32), VALUES[1:3])


@pytest.mark.parametrize(("told", "reason"), [
    (("module", FLOAT, "0", "cpu", 4), "a storage as none"),
    (("storage", FLOAT, 0, "cpu", 4), "a storage as none"),
    (("storage", FLOAT, "0", "cpu", -4), "a storage as none"),
    (("storage", FLOAT, "0", "cpu", True), "a storage as none"),
    (("storage", "torch.FloatStorage", "0", "cpu", 4), "no type of storage"),
    (("storage", FLOAT, "1", "cpu", 4), "missing or has another size"),
    (("storage", FLOAT, "0", "cpu", 5), "missing or has another size"),
    (("storage", FLOAT, "0", "cpu", 4, ("1", 3, 2)), "reaches beyond it"),
    (("storage", FLOAT, "0", "cpu", 4, ("1", -1, 2)), "reaches beyond it"),
])
def test_what_fits_no_storage_is_refused(told: tuple[object, ...], reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        storages().persistent(told)


def test_one_storage_is_not_described_in_two_ways() -> None:
    found = storages()
    found.persistent(("storage", FLOAT, "0", "cpu", 4))
    with pytest.raises(Unreadable, match="in two ways"):
        found.persistent(("storage", _Name("torch.HalfStorage"), "0", "cpu", 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int16, torch.uint8])
def test_a_file_of_a_machine_of_the_other_byte_order_is_read(tmp_path: Path,
                                                             dtype: torch.dtype) -> None:
    value = torch.arange(1, 5).to(dtype)
    torch.save({"weight": value}, tmp_path / "here.pt")
    with zipfile.ZipFile(tmp_path / "here.pt") as here, \
            zipfile.ZipFile(tmp_path / "there.pt", "w") as there:
        for name in here.namelist():
            content = here.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                content = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(
                    -1, dtype.itemsize).flip(1).numpy().tobytes()
            there.writestr(name, content)
    found = read_weights(tmp_path / "there.pt").state["weight"]
    assert torch.equal(found, value)


def test_a_file_that_ends_before_a_storage_does_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(bytes(8))
    assert torchfiles._read(path, 4, 4).tolist() == [0] * 4
    for start, size in ((4, 5), (9, 0), (-1, 2)):
        with pytest.raises(Unreadable, match="ends early"):
            torchfiles._read(path, start, size)
