"""Parts of hand-made pickles (protocol 2 unless said otherwise) and of torch.save's zip format."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping, Sequence

HEAD, STOP = b"\x80\x02", b"."
MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"  # the number at the start of the older format


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def named(name: str) -> bytes:
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def table(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(key: str = "0", count: int = 10, kind: bytes = named("torch.FloatStorage"),
            more: bytes = b"") -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(count) + more + b"tQ"


def tensor(offset: int = 0, shape: Sequence[int] = (10,), stride: Sequence[int] = (1,),
           within: bytes | None = None) -> bytes:
    return called("torch._utils._rebuild_tensor_v2", storage() if within is None else within,
                  number(offset), numbers(shape), numbers(stride), b"\x89", b"}")


def zipped(value: bytes, records: Mapping[str, bytes] | None = None, *,
           members: Mapping[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file in torch.save's format whose pickle makes ``value``."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        archive.writestr("a/data.pkl", HEAD + value + STOP)
        for key, data in ({"0": bytes(40)} if records is None else records).items():
            archive.writestr(f"a/data/{key}", data)
        for name, data in (members or {}).items():
            archive.writestr(name, data)
    return stream.getvalue()


def older(value: bytes, keys: Sequence[str] = ("0",), data: bytes = b"\x0a" + bytes(47)) -> bytes:
    """Return a file in torch.save's older format whose pickle makes ``value``."""
    version, system = number(1001), table({"little_endian": b"\x88"})
    listed = b"](" + b"".join(map(text, keys)) + b"e"
    return b"".join(HEAD + each + STOP for each in (MAGIC, version, system, value, listed)) + data
