"""Small image files and folders for the tests."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Return an RGB image of random pixels; ``size`` is (width, height)."""
    width, height = size
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def save_noise(path: Path, size: tuple[int, int] = (12, 10), seed: int = 0) -> Path:
    """Write `noise` to ``path``, in the format of its suffix, making the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(size, seed).save(path)
    return path


def class_tree(folder: Path, files: Mapping[str, Sequence[str]]) -> Path:
    """Fill ``folder`` with one subfolder per class that holds the named images."""
    for class_name, names in files.items():
        (folder / class_name).mkdir(parents=True, exist_ok=True)
        for seed, name in enumerate(names):
            save_noise(folder / class_name / name, seed=seed)
    return folder


def flat_folder(folder: Path, labels: Mapping[str, int]) -> tuple[Path, Path]:
    """Fill ``folder`` with the images that ``labels`` names; return it and its labels file."""
    for seed, name in enumerate(labels):
        save_noise(folder / name, seed=seed)
    lines = [f"{name},{index}" for name, index in labels.items()]
    return folder, write_lines(folder / "labels.csv", ["file,class_index", *lines])


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    """Write lines of text and return the path."""
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def png_header_claiming(path: Path, width: int, height: int) -> Path:
    """Write a PNG of a few bytes that claims to be ``width`` by ``height`` pixels."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
                     + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b""))
    return path
