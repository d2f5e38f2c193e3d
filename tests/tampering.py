"""Folders of saved images as an enemy or a bad disk leaves them, and words of the answer."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sanrobust.spec import digest_of
from test_save_adversarial import lying, npz, png


def sealed(folder: Path, facts: dict[str, object]) -> None:
    """Write a source with the hash of what it says."""
    facts.pop("sha256", None)
    facts["sha256"] = digest_of(facts)
    (folder / "source.json").write_text(json.dumps(facts))


def rewrite(folder: Path, change: Callable[[list[dict[str, str]]], object]) -> None:
    """Change the rows of an index as a forger does who knows of the hashes."""
    rows = list(csv.DictReader(io.StringIO((folder / "index.csv").read_text())))
    names = list(rows[0])
    change(rows)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [name for name in names if name in rows[0]])
    writer.writeheader()
    writer.writerows(rows)
    content = stream.getvalue().encode()
    (folder / "index.csv").write_bytes(content)
    facts = json.loads((folder / "source.json").read_text())
    sealed(folder, {**facts, "index_sha256": hashlib.sha256(content).hexdigest()})


def forged(content: bytes, suffix: str = "png") -> Callable[[Path], None]:
    """Put other content in the place of the last image, with its hash."""
    def change(folder: Path) -> None:
        def renamed(rows: list[dict[str, str]]) -> None:
            name = rows[-1]["file"].replace("png", suffix)
            (folder / name).write_bytes(content)
            rows[-1].update(file=name, sha256=hashlib.sha256(content).hexdigest())
        rewrite(folder, renamed)
    return change


def cell(name: str, value: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda rows: rows[3].update({name: value}))


def fact(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: sealed(folder, {
        **json.loads((folder / "source.json").read_text()), name: value})


def first(folder: Path) -> Path:
    return sorted(folder.glob("*.png"))[0]


def bad_spec(**facts: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        known = json.loads((folder / "source.json").read_text())
        sealed(folder, {**known, "spec": {**known["spec"], **facts}})
    return change


def plane() -> bytes:
    """A small PNG whose header names many pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    small = png("RGB", (1, 1))
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (lambda folder: first(folder).write_bytes(
        first(folder).read_bytes()[:-1] + b"x"), "must be as it was written"),
    "a missing file": (lambda folder: first(folder).unlink(), "1 file is ("),
    "a folder for a file": (lambda folder: [first(folder).rename(folder / "x"),
                                            (folder / "0").mkdir()], "not in"),
    "an endless file": (lambda folder: first(folder).open("r+b").truncate(1 << 40), "must be as"),
    "a pipe for a file": (lambda folder: [
        name := first(folder), name.unlink(), os.mkfifo(name)], "not in"),
    "a changed index": (lambda folder: (folder / "index.csv").write_bytes(
        (folder / "index.csv").read_bytes().replace(b",4,", b",5,", 1)), "was changed after"),
    "a changed source": (lambda folder: (folder / "source.json").write_text(
        (folder / "source.json").read_text().replace("right", "wrong", 1)), "was changed after"),
    "no index": (lambda folder: (folder / "index.csv").unlink(), "must be a readable file"),
    "an empty index": (lambda folder: rewrite(folder, lambda rows: [
        row.clear() for row in rows[1:]] and rows.__delitem__(slice(1, None)) or rows[0].update(
            file="")), "no name of a saved image"),
    "a path out of the folder": (cell("file", "../../run.json"), "no name of a saved image"),
    "an absolute path": (cell("file", "/etc/passwd"), "no name of a saved image"),
    "a file named twice": (lambda folder: rewrite(folder, lambda rows: rows[3].update(
        file=rows[2]["file"])), "name one file"),
    "no hash": (cell("sha256", ""), "no SHA-256"),
    "a label that is none": (cell("label", "many"), "no whole number"),
    "another label": (cell("label", "99"), "two labels"),
    "a radius that is none": (cell("eps", "inf"), "no number"),
    "a budget twice": (lambda folder: rewrite(folder, lambda rows: rows[1].update(
        step=rows[0]["step"], iters=rows[0]["iters"])), "one file in each budget"),
    "no column of labels": (lambda folder: rewrite(folder, lambda rows: [
        row.pop("label") for row in rows]), "lacks label"),
    "a target beyond the classes": (cell("target", "77"), "must be classes of the model"),
    "a side of millions": (bad_spec(preprocessing={"img_size": 10**7}), "no number that"),
    "a specification without a model": (bad_spec(model=None), "of another kind"),
    "classes without names": (fact("classes", [1, 2, 3, 4, 5, 6]), "not as many"),
    "another form": (fact("form", 3), "another version's form"),
    "nothing but a number": (lambda folder: (folder / "source.json").write_text("7"), "changed"),
    "no JSON": (lambda folder: (folder / "source.json").write_text("{"), "JSONDecodeError"),
    "deep JSON": (lambda folder: (folder / "source.json").write_text("[" * 99999), "must be as"),
    "bytes that are no text": (lambda folder: (folder / "source.json").write_bytes(b"\xff"),
                               "must be as"),
    "a forged PNG": (forged(b"\x89PNG\r\n\x1a\nnothing"), "it is no PNG"),
    "half a PNG": (forged(png("RGB", (32, 32))[:-40]), "damaged"),
    "a PNG of another size": (forged(png("RGB", (64, 32))), "64x32"),
    "a PNG that claims a plane": (forged(plane()), "10000x10000"),
    "an NPZ of another shape": (forged(npz(np.zeros((1, 32, 32), np.float32)), "npz"), "(1, 32"),
    "an NPZ of another type": (forged(npz(np.zeros((3, 32, 32))), "npz"), "float64"),
    "a pickle in an NPZ": (forged(npz(np.full((3, 8, 8), print, dtype=object)), "npz"), "object"),
    "an NPZ that claims a plane": (forged(lying("(3, 1000000, 1000000)"), "npz"), "1000000"),
    "an NPZ with less than it says": (forged(lying("(3, 32, 32)"), "npz"), "has not the"),
}
