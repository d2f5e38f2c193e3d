"""Archives, arrays and datasets that cannot serve: one sentence, an exit code, nothing written."""

from __future__ import annotations

import importlib.util
import io
import pickle
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import sanrobust
from conftest import Command
from sanrobust.errors import DataError
from source_files import IDS, IMAGES, LABELS, floats, levels, pack, png, samples

PNG = png(IMAGES[0])


def save_npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def save_pt(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def cut(path: Path, by: int) -> Path:
    path.write_bytes(path.read_bytes()[:-by])
    return path


def whole(path: Path, names: tuple[str, ...] = IDS) -> Path:
    return pack(path, samples(names))


def gzipped(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    return path


def without_end(path: Path) -> Path:
    """Write an archive that stops after its last member."""
    content = whole(path).read_bytes().rstrip(b"\0")
    path.write_bytes(content + b"\0" * (-len(content) % 512))
    return path


def with_damage_between(path: Path) -> Path:
    content = bytearray(whole(path).read_bytes())
    second = content.index(IDS[1].encode())
    content[second + 148:second + 156] = b"damaged!"
    path.write_bytes(content)
    return path


def twice(path: Path) -> Path:
    one = samples(IDS[:1])
    return pack(path, [*one.items(), *one.items()])


def joined(path: Path) -> Path:
    first, second = whole(path, IDS[:2]).read_bytes(), whole(path, IDS[2:4]).read_bytes()
    path.write_bytes(first + second)
    return path


def claiming(path: Path) -> Path:
    """Write an NPZ whose array says that it is of petabytes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {
        "descr": "|u1", "fortran_order": False, "shape": (1 << 40, 100, 100, 3)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", stream.getvalue() + b"\0" * 100)
        archive.writestr("labels.npy", b"")
    return path


def bomb(path: Path) -> Path:
    """Write an NPZ that says in its own list that it unpacks to petabytes."""
    save_npz(path, images=levels(), labels=np.array(LABELS))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24:entry + 28] = struct.pack("<I", 0xfffffff0)
    path.write_bytes(content)
    return path


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (sys.exit, (77,))


def expanded() -> torch.Tensor:
    return torch.zeros(1, 3, 8, 8, dtype=torch.uint8).expand(1 << 40, 3, 8, 8)


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "empty-file.tar": (lambda path: path.write_bytes(b"") and path or path, "is not (empty file)"),
    "empty.tar": (lambda path: pack(path, {}), "there is none in"),
    "no-image.tar": (lambda path: pack(path, {"a.txt": b"x"}), "there is none in"),
    "no-label.tar": (lambda path: pack(path, {"a.png": PNG, "b.png": PNG, "b.cls": b"1"}),
                     "1 image is (a.png) without one"),
    "json-label.tar": (lambda path: pack(path, {"a.png": PNG, "a.json": b'{"x": 1}'}),
                       "1 image is (a.png) without one"),
    "word.tar": (lambda path: pack(path, {"a.png": PNG, "a.cls": b"cat"}), "a.cls holds 'cat'"),
    "negative.tar": (lambda path: pack(path, {"a.png": PNG, "a.cls": b"-1"}), "a.cls holds '-1'"),
    "bool.tar": (lambda path: pack(path, {"a.png": PNG, "a.json": b'{"cls": true}'}),
                 "a.json holds True"),
    "no-json.tar": (lambda path: pack(path, {"a.png": PNG, "a.json": b"{"}), "holds no JSON"),
    "out-of-range.tar": (lambda path: pack(path, {"a.png": PNG, "a.cls": b"6"}),
                         "a.png of out-of-range.tar has label 6"),
    "cut.tar": (lambda path: cut(whole(path), 11000), "cut.tar is not"),
    "cut-in-header.tar": (lambda path: path.write_bytes(
        whole(path).read_bytes()[:700]) and path or path, "is not"),
    "endless.tar": (without_end, "it is cut off"),
    "damaged.tar": (with_damage_between, "something that cannot be read follows its last member"),
    "joined.tar": (joined, "something that cannot be read follows its last member"),
    "text.tar": (lambda path: path.write_text("no archive" * 200) and path or path, "is not"),
    "twice.tar": (twice, "is there twice"),
    "one-key.tar": (lambda path: pack(path, {"a.left.png": PNG, "a.right.png": PNG}),
                    "a.left.png and a.right.png have the same"),
    "packed.tar": (gzipped, "unpack it with gunzip"),
    "control.tar": (lambda path: pack(path, {"a\n.png": PNG, "a\n.cls": b"1"}), "control char"),
    "none.npz": (lambda path: save_npz(path), "holds nothing"),
    "names.npz": (lambda path: save_npz(path, pictures=levels()), "holds pictures"),
    "dtype.npz": (lambda path: save_npz(path, images=levels().astype(int), labels=LABELS),
                  "has int64 (8, 40, 40, 3)"),
    "shape.npz": (lambda path: save_npz(path, images=levels()[..., 0, 0], labels=LABELS),
                  "has uint8 (8, 40)"),
    "short.npz": (lambda path: save_npz(path, images=levels(), labels=LABELS[:2]), "has 2 for 8"),
    "objects.npz": (lambda path: save_npz(path, images=levels(), labels=np.array(
        [Evil()] * 8, dtype=object)), "holds objects of Python"),
    "classes.npz": (lambda path: save_npz(path, images=levels(), labels=LABELS,
                                          classes=["a", "b"]), "2 names and labels up to 5"),
    "cut.npz": (lambda path: cut(save_npz(path, images=levels(), labels=LABELS), 300), "read back"),
    "claiming.npz": (claiming, "which it does not hold"),
    "bomb.npz": (bomb, "bomb.npz "),
    "evil.pt": (lambda path: save_pt(path, {"images": Evil()}), "does not read back"),
    "pickle.pt": (lambda path: path.write_bytes(pickle.dumps(Evil())) and path or path,
                  "does not read back"),
    "cut.pt": (lambda path: cut(save_pt(path, (floats(), torch.tensor(LABELS))), 3000),
               "does not read back"),
    "number.pt": (lambda path: save_pt(path, 3), "it holds 3"),
    "huge.pt": (lambda path: save_pt(path, {"images": expanded(), "labels": torch.zeros(1)}),
                "which it does not hold"),
    "normalised.pt": (lambda path: save_pt(path, (floats() * 4 - 2, torch.tensor(LABELS))),
                      "where pixels lie in [0, 1]"),
    "text.safetensors": (lambda path: path.write_text("x" * 99) and path or path, "read back"),
    "val.zip": (lambda path: path.write_bytes(b"PK") and path or path, "must end in .tar"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_serve_is_refused_in_a_sentence(name: str, command: Command,
                                                    tmp_path: Path) -> None:
    make, words = REFUSED[name]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    make(tmp_path / name)
    done = command("rotate", "-m", "grey_models:right", "--data", tmp_path / name,
                   "--out", tmp_path / "o")
    assert done.exit_code == 3, done.output
    lines = done.stderr.strip().splitlines()
    assert words in lines[-1] and ", but " in lines[-1] and "Traceback" not in done.output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("word", "code", "words"), [
    ("x-{0..3}.tar", 3, "4 files are (the first is"),
    ("x-*.tar", 3, "fits no file"),
    ("x-{0..999}-{0..999}.tar", 3, "names more"),
    ("/nowhere/x.tar", 3, "there is no folder or file"),
    ("hf:", 2, "must have a name"),
])
def test_patterns_and_names_without_anything_are_refused(word: str, code: int, words: str,
                                                         command: Command,
                                                         tmp_path: Path) -> None:
    if word == "hf:" and importlib.util.find_spec("datasets") is None:
        words = "pip install 'sanrobust[hf]'"
    done = command("rotate", "--data", word if word[0] in "/h" else tmp_path / word)
    assert done.exit_code == code and words in done.stderr, done.output


def test_without_the_package_a_sentence_says_what_to_type(command: Command, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    for data in ("hf:cifar10", tmp_path / "saved"):
        done = command("rotate", "--data", data)
        assert done.exit_code == 2 and "type pip install 'sanrobust[hf]'" in done.stderr


def test_a_saved_dataset_that_is_damaged_or_lacks_columns_is_refused(command: Command,
                                                                     tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package is not installed")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "state.json").write_text("{")
    image = {"bytes": PNG, "path": None}
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64")}
    for name, columns, words in (
            ("damaged", {}, "does not"),
            ("no-image", {"label": [1]}, "has none among label"),
            ("no-label", {"image": [image]}, "has none among image"),
            ("hidden", {"image": [image], "label": [-1]}, "label of"),
            ("many", {"image": [image], "label": [9]}, "has label 9")):
        if columns:
            features = datasets.Features({each: kinds[each] for each in columns})
            datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / name)
        done = command("rotate", "-m", "grey_models:right", "--data", tmp_path / name)
        assert done.exit_code == 3 and words in done.stderr, done.output


class Torn(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Its seventh item cannot be had."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        if place == 7:
            raise ValueError("the disk is gone")
        return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(place)), 0


def test_an_item_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="item 7 stopped with ValueError: the disk is gone"):
        sanrobust.rotate("resnet26.digits", data=Torn(), out=tmp_path)
