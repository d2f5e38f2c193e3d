"""Checkpoints that are damaged, hostile or no weights: each is to be refused in one sentence.

They are named for a small SAN10 (``--model san10-pair`` on the digits); every file differs from
weights that would load in the one thing that its name says. Nothing here is ever to be run: what
a file wants to run makes the folder ``it-ran`` beside it.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from hostile.pickle_parts import (
    HEAD, STOP, called, named, number, numbers, older, storage, table, tensor, text, zipped,
)
from sanrobust.zoo import catalog
from sanrobust.zoo.facts import facts
from zoo_files import trained

RAN = "it-ran"

State = dict[str, Any]
_CUTS = 20


def checkpoints(folder: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """Write one hostile checkpoint after another into ``folder`` and yield its name and path.

    The seed decides where files are cut. A file may be removed before the next is asked for.
    """
    state, mark = trained(), str(folder / RAN)
    families: tuple[tuple[str, dict[str, bytes]], ...] = (
        ("pickle", pickles(mark)), ("storage", storages()), ("zip", zips()),
        ("older", olders()), ("safetensors", safetensors(state)), ("weights", weights(state)),
        ("name", names(state)), ("cut", cuts(state, random.Random(seed))))
    for family, files in families:
        for name, content in files.items():
            path = folder / f"{family}-{name}.pth"
            path.write_bytes(content)
            yield f"{family}: {name}", path


def pickles(mark: str) -> dict[str, bytes]:
    """Instructions that run something, never end, or take all memory or the stack."""
    # Each tuple holds the one before it twice.
    laughs = b"]q\x000" + b"".join(
        b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) + b"0"
        for n in range(100)) + b"h\x64"
    values = {
        "runs": called("os.mkdir", text(mark)),
        "runs-by-inst": b"(" + text(mark) + b"ios\nmkdir\n",
        "runs-by-obj": b"(" + named("os.mkdir") + text(mark) + b"o",
        "runs-by-newobj": named("subprocess.Popen") + b"(" + text(f"mkdir {mark}") + b"t\x81",
        "runs-by-stack": text("os") + text("mkdir") + b"\x93" + text(mark) + b"\x85R",
        "runs-by-path": text("torch") + text("serialization.os.mkdir") + b"\x93" + text(mark)
        + b"\x85R",
        "runs-by-build": called("argparse.Namespace") + called("os.mkdir", text(mark)) + b"b",
        "runs-within-subclass": called("torch._tensor._rebuild_from_type_v2", named("os.mkdir"),
                                       named("torch.Tensor"), text(mark) + b"\x85", b"}"),
        "subclass-in-subclass": called("torch._tensor._rebuild_from_type_v2", named(
            "torch._tensor._rebuild_from_type_v2"), named("torch.Tensor"), b"))))t", b"}"),
        "extension": b"\x82\x01",
        "loads-from-network": called("torch.hub.load", text("a/b"), text("c")),
        "bytearray": called("builtins.bytearray", number(4 << 30)),
        "tensor-of-any-size": called("torch.Tensor", number(10 ** 10)),
        "storage-of-any-size": called("torch.storage.UntypedStorage", number(10 ** 11)),
        "numpy-of-any-size": called("numpy.core.multiarray.scalar",
                                    called("numpy.dtype", text("V2000000000"))),
        "numpy-objects": called("numpy.core.multiarray.scalar", called("numpy.dtype", text("O")),
                                b"C\x08AAAAAAAA"),
        "deep-tuples": b"}" + b")" + b"\x85" * 200_000 + b"Ns",
        "deep-lists": b"]" * 200_000 + b"a" * 199_999,
        "deep-tables": (b"}" + text("model")) * 10_000 + b"}" + b"s" * 10_000,
        "laughs": laughs,
        "laughs-as-extra-state": b"}(" + text("fc.weight") + tensor()
        + text("_extra_state") + laughs + b"u",
        "copies-of-a-text": text("a" * 1_000_000) + b"q\x00" + (
            named("_codecs.encode") + b"h\x00" + text("latin1") + b"\x86R0") * 10_000,
        "copies-of-a-table": b"}(" + b"NN" * 1000 + b"uq\x00" + (
            named("collections.OrderedDict") + b"h\x00\x85R0") * 5_000,
        "itself": b"}q\x00" + text("model") + b"h\x00s",
        "itself-many-times": b"}q\x00(" + b"".join(
            text(name) + b"h\x00" for name in ("model", "net", "ema", "state_dict", "module"))
        + b"u",
        "colliding-keys": b"}(" + b"".join(number(n * (2 ** 61 - 1)) + b"N"
                                           for n in range(20_000)) + b"u",
        "too-many-instructions": b"N0" * 1_100_000,
        "number-without-end": b"\x8b\xff\xff\xff\x7f" + bytes(100),
        "long-number": b"\x8b" + struct.pack("<i", 300_000) + b"\x11" * 300_000,
        "text-without-end": b"\x8d" + struct.pack("<Q", 2 ** 62) + b"abc",
        "bytes-without-end": b"\x8e" + struct.pack("<Q", 2 ** 40) + b"abc",
        "frame-without-end": b"\x95" + struct.pack("<Q", 2 ** 63 - 1),
        "memory-far-away": b"Nr\xff\xff\xff\xff",
        "memory-never-written": b"h\x07", "empty-stack": b"0000", "no-mark": b"t", "no-value": b"",
        "two-values": b"NN", "buffer": b"\x97", "text-storage": b"P0\n",
        "fills-a-number": b"K\x01NNs", "odd-table": b"}(Nu", "unhashable": b"}]Ns",
        "bad-codec": called("_codecs.encode", text("a"), text("latiX1")),
        "not-utf8": b"X\x02\x00\x00\x00\xff\xfe", "calls-a-number": b"K\x01)R",
        "list": b"]" + tensor() + b"a", "number": b"K\x01", "none": b"N", "empty": b"}",
        "another-device": table({"w": called("torch._utils._rebuild_meta_tensor_no_storage")}),
        "numpy-weights": table({"w": called("numpy.core.multiarray._reconstruct", b"N")}),
    }
    whole = {f"{name}-bare": HEAD + value + STOP for name, value in values.items()
             if name in ("runs", "deep-tuples", "bytearray", "text-without-end")}
    return {name: zipped(value) for name, value in values.items()} | whole


def storages() -> dict[str, bytes]:
    """Tensors that lie beyond their storage, and storages that are none."""
    float8 = called("torch._utils._rebuild_tensor_v3", storage(), number(0), numbers((1,)),
                    numbers((1,)), b"\x89", b"}", text("float32"))
    values = {
        "larger-than-its-record": tensor(shape=(10 ** 7,), within=storage(count=10 ** 7)),
        "smaller-than-its-record": tensor(shape=(5,), within=storage(count=5)),
        "stride-beyond": tensor(stride=(100,)), "negative-stride": tensor(5, (5,), (-1,)),
        "negative-offset": tensor(-5, (5,)), "negative-shape": tensor(0, (-1,)),
        "offset-beyond": tensor(2 ** 62), "shape-overflows": tensor(0, (2 ** 62, 4), (0, 0)),
        "shape-of-2-to-the-80": tensor(0, (2 ** 80,), (0,)),
        "1000-dimensions": tensor(0, (1,) * 1000, (1,) * 1000),
        "fewer-strides": tensor(0, (2, 2), (1,)), "text-for-offset": called(
            "torch._utils._rebuild_tensor_v2", storage(), text("0"), numbers((1,)), numbers((1,))),
        "too-few-arguments": called("torch._utils._rebuild_tensor_v2", storage()),
        "no-dtype": float8, "missing-record": tensor(within=storage(key="7")),
        "path-for-record": tensor(within=storage(key="../../etc/passwd")),
        "negative-count": tensor(within=storage(count=-1)),
        "count-of-2-to-the-80": tensor(within=storage(count=2 ** 80)),
        "unknown-type": tensor(within=storage(kind=text("FloatStorage"))),
        "type-is-no-storage": tensor(within=storage(kind=named("torch.float32"))),
        "short": tensor(within=b"(" + text("storage") + b"tQ"), "no-tuple": tensor(within=b"NQ"),
        "two-types": b"0".join((tensor(), tensor(
            within=storage(count=5, kind=named("torch.DoubleStorage"))))),
        "a-list-for-storage": tensor(within=b"]"),
        "repeated": tensor(0, (10 ** 12,), (0,)),
    }
    return {name: zipped(table({"fc.weight": value})) for name, value in values.items()}


def zips() -> dict[str, bytes]:
    """Archives that lie."""
    value = table({"fc.weight": tensor()})
    plain = zipped(value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, on the second of two records of one name
        twice = zipped(value, members={"a/data/0": bytes(40)})
    directory, end = plain.rindex(b"PK\1\2"), plain.rindex(b"PK\5\6")
    local = plain.rindex(b"PK\3\4")

    def patched(position: int, data: bytes) -> bytes:
        return plain[:position] + data + plain[position + len(data):]

    return {
        "deflated": zipped(value, {"0": bytes(10 ** 6)}, method=zipfile.ZIP_DEFLATED),
        "bomb": zipped(text("a" * 10 ** 8), {}, method=zipfile.ZIP_BZIP2),
        "lzma": zipped(value, method=zipfile.ZIP_LZMA), "twice": twice,
        "climbing-name": zipped(value, {}, members={"../../climbed": b"x"}),
        "absolute-name": zipped(value, {}, members={"/tmp/climbed": b"x"}),
        "script": zipped(value, members={"a/constants.pkl": b""}),
        "other": _archive({"word/document.xml": b"<a/>"}), "empty": _archive({}),
        "no-folder": _archive({"data.pkl": HEAD + value + STOP}),
        "odd-byte-order": zipped(value, members={"a/byteorder": b"middle"}),
        "many-records": zipped(value, members={f"a/data/x{n}": b"" for n in range(3_000)}),
        "encrypted": patched(directory + 8, b"\1"), "sizes-differ": patched(directory + 24, b"\7"),
        "record-of-4-gigabytes": patched(directory + 20, b"\xff\xff\xff\x7f" * 2),
        "zip64-without-sizes": patched(directory + 20, b"\xff\xff\xff\xff" * 2),
        "points-elsewhere": patched(directory + 42, b"\3\0\0\0"),
        "points-beyond": patched(directory + 42, b"\xff\xff\xff\x7f"),
        "no-local-header": patched(local, b"PK\3\5"),
        "long-local-name": patched(local + 26, b"\xff\xff"),
        "directory-of-4-gigabytes": patched(end + 12, b"\xff\xff\xff\x7f"),
        "directory-beyond": patched(end + 16, b"\xff\xff\xff\x7f"),
        "more-records-than-there-are": patched(end + 8, b"\xff\xff\xff\xff"),
    }


def olders() -> dict[str, bytes]:
    """Files of torch.save's older format that lie, and one of the format before it."""
    value = table({"fc.weight": tensor()})
    view = b"(" + text("1") + number(5) + number(100) + b"t"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return {
        "no-keys": older(value, ()), "another-key": older(value, ("1",)),
        "key-twice": older(value, ("0", "0")), "keys-without-end": older(value, ("0",) * 1000),
        "another-count": older(value, data=b"\x0b" + bytes(47)),
        "negative-count": older(value, data=b"\xff" * 48), "no-storages": older(value, data=b""),
        "view-beyond": older(table({"w": tensor(within=storage(more=view))})),
        "runs": older(called("os.mkdir", text("it-ran"))), "magic-alone": older(value)[:14],
        "another-magic": HEAD + number(7) + STOP + older(value)[15:], "tar": tar.getvalue(),
    }


def safetensors(state: State) -> dict[str, bytes]:
    """Headers that lie."""
    whole = save(state)
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8:8 + length]), whole[8 + length:]

    def written(change: Callable[[dict[str, Any]], object]) -> bytes:
        changed = json.loads(json.dumps(header))
        change(changed)
        return _headed(json.dumps(changed).encode(), data)

    def told(facts: str) -> bytes:
        return written(lambda each: each.update(__metadata__={"sanrobust": facts}))

    first, second = [name for name in header if name != "__metadata__"][:2]
    return {
        **{f"length-{name}": struct.pack("<Q", size) + whole[8:] for name, size in (
            ("0", 0), ("1", 1), ("one-more", length + 1), ("of-the-file", len(whole)),
            ("of-100-megabytes", 10 ** 8), ("largest", 2 ** 64 - 1))},
        "overlapping": written(lambda each: each[first].update(
            data_offsets=each[second]["data_offsets"])),
        "backwards": written(lambda each: each[first]["data_offsets"].reverse()),
        "hole": _headed(json.dumps(header).encode(), data + bytes(16)),
        "beyond": written(lambda each: each[first].update(data_offsets=[0, 2 ** 60])),
        "negative-offset": written(lambda each: each[first].update(data_offsets=[-4, 0])),
        "overflowing-shape": written(lambda each: each[first].update(shape=[2 ** 62, 2 ** 62])),
        "negative-shape": written(lambda each: each[first].update(shape=[-1])),
        "fractional-shape": written(lambda each: each[first].update(shape=[0.5])),
        "unknown-dtype": written(lambda each: each[first].update(dtype="F7")),
        "another-dtype": written(lambda each: each[first].update(dtype="I8")),
        "no-dtype": written(lambda each: each[first].pop("dtype")),
        "number-for-tensor": written(lambda each: each.update({first: 3})),
        "number-in-metadata": written(lambda each: each.update(__metadata__={"a": 1})),
        "deep": _headed(b'{"a":' + b"[" * 200_000, data),
        "not-utf8": _headed(b'{"\xff\xfe":1}', data), "no-json": _headed(b"{abc", data),
        "no-tensors": _headed(b"{}", b""), "header-alone": whole[:8 + length],
        **{f"facts-{name}": told(each) for name, each in false_facts().items()},
    }


def false_facts() -> dict[str, str]:
    """What our own training writes beside weights, changed where it then means nothing."""
    true = facts(catalog.find("san10-pair.digits"))
    within: dict[str, dict[str, dict[str, Any]]] = {
        "preprocessing": {
            "mean-nan": {"mean": [float("nan")] * 3}, "std-0": {"std": [0, 1, 1]},
            "mean-text": {"mean": "abc"}, "mean-of-2": {"mean": [0, 0]},
            "side-fraction": {"img_size": 32.5}, "side-huge": {"img_size": 10 ** 9},
            "crop-tiny": {"crop_pct": 5e-324}, "more": {"more": 1}},
        "architecture": {
            "kind": {"kind": "\x1b[2J"}, "pools": {"pools": None}, "layers": {"layers": [10 ** 9]},
            "layers-nested": {"layers": [[[1]]] * 5}, "widths": {"widths": [2 ** 40] * 5},
            "classes-none": {"num_classes": 0}, "classes-huge": {"num_classes": 10 ** 12},
            "design": {"design": {"attention": "eval"}}, "layers-true": {"layers": [True] * 5},
            "footprints": {"footprints": [10 ** 6] * 5}, "pools-nested": {"pools": [[1]] * 5}},
    }
    changed = {f"{part}-{name}": {**true, part: {**true[part], **change}}  # type: ignore[dict-item]
               for part, changes in within.items() for name, change in changes.items()}
    changed |= {"arch": {**true, "arch": "\x1b[2Jresnet50"}, "top1": {**true, "top1": -1},
                "class-names": {**true, "classes": ["\x1b[2J\n"] * 10},
                "data": {**true, "data": 3}, "none": {}, "list": []}  # type: ignore[dict-item]
    return {"deep": "[" * 200_000, "no-json": "{", "digits": "1" * 10_000,
            **{name: json.dumps(each) for name, each in changed.items()}}


def weights(state: State) -> dict[str, bytes]:
    """Tensors that are no weights, or another network's."""
    def with_head(change: Callable[[Tensor], object]) -> State:
        return {**state, "fc.weight": change(state["fc.weight"])}

    def each(change: Callable[[Tensor], Tensor]) -> State:
        return {name: change(value) if value.is_floating_point() else value
                for name, value in state.items()}

    def holding(value: float) -> State:
        head = state["fc.weight"].clone()
        head[0, 0] = value
        return {**state, "fc.weight": head}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are new
        nested = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(5)])
        files = {
            "int8": each(lambda value: value.to(torch.int8)), "bool": each(Tensor.bool),
            "complex": each(lambda value: torch.complex(value, value)),
            "float8": with_head(lambda value: value.to(torch.float8_e4m3fn)),
            "float8-e5m2": each(lambda value: value.to(torch.float8_e5m2)),
            "too-large": with_head(lambda value: value.double() * 1e300),
            "too-small": with_head(lambda value: value.double() * 1e-300),
            "nan": holding(float("nan")), "inf": holding(float("inf")),
            "minus-inf": holding(float("-inf")),
            "sparse": with_head(Tensor.to_sparse), "nested": with_head(lambda _: nested),
            "csr": with_head(Tensor.to_sparse_csr),
            "quantised": with_head(lambda value: torch.quantize_per_tensor(
                value, 0.1, 0, torch.qint8)),
            "valueless": with_head(lambda value: value.to("meta")),
            "a-number": with_head(lambda _: 3.0), "a-table": with_head(lambda value: {"a": value}),
            "repeated": {**state, "fc.weight": torch.zeros(1, 1).expand(2 ** 40, 1)},
            "no-elements": with_head(lambda _: torch.zeros(0, 5)),
            "no-dimensions": with_head(lambda _: torch.tensor(1.0)),
            "transposed": with_head(Tensor.t), "one-more": {**state, "more": torch.zeros(1)},
            "one-less": {name: value for name, value in state.items() if name != "bn_in.weight"},
            "text-counter": {**state, "bn_in.num_batches_tracked": "7"},
        }
        return {name: _saved(value) for name, value in files.items()}


def names(state: State) -> dict[str, bytes]:
    """Names that are none, are too long or too many, or would tell the terminal what to do."""
    one = torch.zeros(1)
    odd = {"escape": "\x1b[2J\x1b[32mall is well\x1b[0m\nsanrobust: done", "nul": "a\0b",
           "direction": "\u202egnp.exe", "surrogate": "\udcff", "lines": "a\r\nb\u2028c",
           "empty": "", "long": "a" * 1_000_000, "prefixes": "module." * 50_000 + "fc.weight",
           "bell": "\a" * 100}
    chain = {"ema." * depth + "fc.weight": one for depth in range(100)}
    shared, deep = text("w") + tensor() + b"q\x00", state
    for _ in range(50):
        deep = {"model": deep}
    many = b"}(" + shared + b"".join(text(f"{n}.fc.weight") + b"h\x00" for n in range(40_000))
    return {
        **{name: _saved({**state, value: one}) for name, value in odd.items()},
        "averages-of-averages": _saved(chain), "deep": _saved(deep), "many": zipped(many + b"u"),
        "number": _saved({**state, 3: one}), "tuple": _saved({**state, (1, 2): one}),
        "none": _saved({**state, None: one}), "long-number": _saved({**state, 10 ** 600: one}),
        "long-prefix": _saved({"a." * 200 + name: value for name, value in state.items()}),
    }


def cuts(state: State, chance: random.Random) -> dict[str, bytes]:
    """Whole files of each format, cut somewhere in each twentieth."""
    formats = {"zip": _saved(state), "older": _saved(state, new=False), "safetensors": save(state)}
    return {f"{name}-{part}": content[:int((part + chance.random()) * len(content) / _CUTS)]
            for name, content in formats.items() for part in range(_CUTS)}


def _saved(value: object, *, new: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def _archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _headed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data
