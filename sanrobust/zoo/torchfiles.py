"""Files that torch.save wrote, in its zip format and its older one, read tensor by tensor.

Positions and sizes are in bytes.
"""

from __future__ import annotations

import io
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sanrobust.zoo.pickles import STUMBLES, element_type, unpickled
from sanrobust.zoo.stored import Storage, Unreadable

_MOST_PICKLED = 1 << 26  # the names and shapes of tensors take a hundredth of it
_SHORT = "it ends early or its content does not read"
_MAGIC = 0x1950a86a20f9469cfc6c
_LOCAL_HEADER = struct.Struct("<26xHH")


class NotWeights(Exception):
    """A zip file holds something else than weights; its text says what."""


def read_zip(path: Path) -> object:
    """Return what a file of torch.save's present format holds, its tensors yet to be read.

    Raises NotWeights, `Unreadable`, `Unsafe`, or OSError for what the system refuses.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, *STUMBLES) as error:
        raise Unreadable("its zip directory does not read") from error
    folder = _require_weights(members, path.stat().st_size)
    records = {member.filename.removeprefix(folder): member for member in members}
    order = _byte_order(path, records.get("byteorder"))

    def read(key: str, dtype: torch.dtype) -> Tensor:
        return _ordered(_record(path, records[f"data/{key}"]), dtype, order)

    def found(key: str, size: int) -> bool:
        return f"data/{key}" in records and records[f"data/{key}"].file_size == size

    if records["data.pkl"].file_size > _MOST_PICKLED:
        raise Unreadable("what it holds beside the tensors is too large")
    return unpickled(io.BytesIO(_record(path, records["data.pkl"]).numpy().tobytes()),
                     _Storages(read, found).persistent)


def _byte_order(path: Path, member: zipfile.ZipInfo | None) -> str:
    order = "little"
    if member is not None:
        order = _record(path, member)[:8].numpy().tobytes().decode("latin1")
    if order not in ("little", "big"):
        raise Unreadable("it names no order of bytes")
    return order


def _require_weights(members: list[zipfile.ZipInfo], size: int) -> str:
    """Return the folder of the records; raises for a zip file of another kind."""
    folder = members[0].filename.partition("/")[0] + "/" if members else ""
    names = {member.filename for member in members}
    if f"{folder}data.pkl" not in names or f"{folder}constants.pkl" in names:
        raise NotWeights("a TorchScript program" if f"{folder}constants.pkl" in names
                         else "some other zip file")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        # torch.save never compresses, and a compressed record could unpack to any size.
        raise NotWeights("a file that was compressed afterwards")
    if any(member.flag_bits & 1 or member.compress_size != member.file_size
           for member in members) or len(names) != len(members):
        raise Unreadable("its zip directory contradicts itself")
    if sum(member.file_size for member in members) > size:
        raise Unreadable("its records are larger than the file, so they overlap")
    return folder


def _record(path: Path, member: zipfile.ZipInfo) -> Tensor:
    """Return the bytes of a record, uint8; torch.save may leave its checksum out."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise Unreadable("its zip directory points beside its records")
    start = member.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))
    return _read(path, start, member.file_size)


def read_legacy(path: Path) -> object:
    """Return what a file of torch.save's older format holds, its tensors yet to be read.

    Such a file is five pickles, the last a list of keys, and behind them the storage of each key:
    the number of its elements in eight bytes, and these. Raises as `read_zip`.
    """
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(_MOST_PICKLED))
    if unpickled(stream) != _MAGIC:
        raise Unreadable("torch.save did not write it")
    unpickled(stream), unpickled(stream)  # the format's version, and the system that wrote it
    starts: dict[str, int] = {}
    storages = _Storages(lambda key, _: _read(path, starts[key], storages.told[key][1]))
    loaded = unpickled(stream, storages.persistent)
    starts.update(_located(path, unpickled(stream), stream.tell(), storages.told))
    return loaded


def _located(path: Path, keys: object, position: int,
             told: Mapping[str, tuple[torch.dtype, int]]) -> Iterator[tuple[str, int]]:
    """Yield where the elements of each storage begin; the first storage lies at ``position``."""
    if not isinstance(keys, list) or len(keys) != len(told) or not all(key in told for key in keys):
        raise Unreadable("its list of storages is another than that of its tensors")
    end = path.stat().st_size
    with path.open("rb") as stream:
        for key in keys:
            dtype, size = told[key]
            stream.seek(position)
            count = int.from_bytes(stream.read(8), "little")
            if count * dtype.itemsize != size or position + 8 + size > end:
                raise Unreadable(_SHORT)
            yield key, position + 8
            position += 8 + size


class _Storages:
    """The storages of one file, each of them read once, when its first tensor is.

    Args:
        read: returns the bytes of a storage by its key and type.
        found: whether the file has a storage of this key and size; always, if it is seen later.

    Attributes:
        told: type and size of each storage that a pickle described, by key.
    """

    def __init__(self, read: Callable[[str, torch.dtype], Tensor],
                 found: Callable[[str, int], bool] = lambda *_: True) -> None:
        self.told: dict[str, tuple[torch.dtype, int]] = {}
        self._read, self._found = cache(read), found

    def persistent(self, told: tuple[Any, ...]) -> Storage:
        """Return the storage that a pickle describes."""
        key, dtype, size = _described(told)
        if self.told.setdefault(key, (dtype, size)) != (dtype, size):
            raise Unreadable("it describes one storage in two ways")
        if not self._found(key, size):
            raise Unreadable("the record of one of its tensors is missing or has another size")
        view = told[5] if len(told) > 5 else None
        if view is None:
            return Storage(dtype, size, partial(self._read, key, dtype))
        _, first, count = view  # a part of a storage, as PyTorch before 0.4 wrote it
        start, end = int(first) * dtype.itemsize, (int(first) + int(count)) * dtype.itemsize
        if not 0 <= start <= end <= size:
            raise Unreadable("a part of a storage reaches beyond it")
        return Storage(dtype, end - start, lambda: self._read(key, dtype)[start:end])


def _described(told: tuple[Any, ...]) -> tuple[str, torch.dtype, int]:
    """Return key, type and size in bytes of the storage that a pickle describes."""
    word, kind, key, _, count = told[:5]
    if word != "storage" or not isinstance(key, str) or type(count) is not int or count < 0:
        raise Unreadable("it describes a storage as none")
    dtype = element_type(kind)
    return key, dtype, count * dtype.itemsize


def _read(path: Path, start: int, size: int) -> Tensor:
    if not 0 <= start <= start + size <= path.stat().st_size:
        raise Unreadable(_SHORT)
    values = torch.empty(size, dtype=torch.uint8)
    with path.open("rb") as stream:
        stream.seek(start)
        if stream.readinto(values.numpy().data) != size:
            raise Unreadable(_SHORT)
    return values


def _ordered(values: Tensor, dtype: torch.dtype, order: str) -> Tensor:
    """Return bytes in the order of this machine."""
    if order != sys.byteorder and dtype.itemsize > 1:
        whole = values[:values.numel() // dtype.itemsize * dtype.itemsize].numpy()
        return torch.from_numpy(whole.view(f"u{dtype.itemsize}").byteswap().view("u1"))
    return values
