"""Paths that lead to no file, to no end or to something else, for every option that takes one."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

from image_files import save_noise

from hostile.case import Case

MODEL = "resnet26.untrained-small"
_FEW = "-m", MODEL, "--num-samples", "2"
# What lies at these paths is neither a file of ours nor a folder.
NEITHER = ("pipe", "socket", "dangling", "loop", "ring/a", "/dev/zero", "/dev/stdin", "/dev/full",
           "/dev/null/x", "file/below", "n" * 300, "n" * 5000, "d/" * 3000 + "x", "\x1b[2J",
           "a\nb", "\udce9", "~nosuchuser/x", "loop/x", "/proc/self/mem", "absent")
FOLDERS = ("folder", ".", "/", "..", "folder/")
FILES = ("empty", "zeros", "file", "image.png")
OPTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (("rotate", "--data", "flat", "--labels="), (*_FEW, "--out", "o"),
     (*NEITHER, *FOLDERS, *FILES, "")),
    (("rotate", "--data", "tree", "--class-map="), (*_FEW, "--out", "o"),
     (*NEITHER, *FOLDERS, *FILES, "")),
    (("pgd", "--targets=file:"), (*_FEW, "--out", "o"), (*NEITHER, *FOLDERS, *FILES, "")),
    (("rotate", "--checkpoint="), (*_FEW, "--out", "o"), (*NEITHER, *FOLDERS, *FILES, "")),
    (("rotate", "--data="), (*_FEW, "--out", "o"), (*NEITHER, *FILES, "folder")),
    (("rotate", "--data", "cifar10", "--data-root="), (*_FEW, "--out", "o"),
     (*NEITHER, *FILES, "folder")),
    (("rotate", "--out="), _FEW, (*set(NEITHER) - {"absent", "a\nb", "\x1b[2J", "\udce9"},
                                  *FILES, "")),
    (("train", "--out="), ("-m", "resnet26", "--epochs", "1"), ("file", "/dev/null/x", "loop",
                                                                "n" * 300, "")),
    (("train", "--data", "tree", "--held-out="), ("-m", "resnet26", "--out", "o"),
     (*NEITHER, *FILES, "folder")),
    (("zoo", "add", "--like", MODEL, "resnet26.mine", ""), (), (*NEITHER, *FOLDERS, *FILES)),
    (("show", "attention", "--image="), ("--out", "o"), (*NEITHER, *FOLDERS, "empty", "file")),
    (("table", "--out="), (), (*NEITHER, *FILES, "folder", "")),
)
VARIABLES = (
    {"SANROBUST_HOME": "/dev/null/x"}, {"SANROBUST_HOME": "~nosuchuser"},
    {"SANROBUST_HOME": "n" * 300}, {"SANROBUST_HOME": "loop"}, {"SANROBUST_HOME": "file"},
    {"SANROBUST_DATA": "\x1b[2J"}, {"SANROBUST_DATA": "n" * 5000}, {"SANROBUST_DATA": "pipe"},
    {"SANROBUST_BACKEND": "\x1b[2J"}, {"SANROBUST_BACKEND": "9" * 4400})


def places(folder: Path, seed: int) -> Iterator[Case]:
    """Yield every path that leads nowhere in every option, in an order of the seed."""
    _fill(folder)
    tried = [Case(f"{' '.join(before)}{path[:30]!r}", (*before[:-1], before[-1] + path, *behind),
                  folder) for before, behind, paths in OPTIONS for path in paths]
    for env in VARIABLES:
        argv = ("zoo", "add", "--like", MODEL, "resnet26.mine", "weights.pth") \
            if "SANROBUST_HOME" in env else ("rotate", *_FEW, "--out", "o")
        tried.append(Case(repr(env)[:60], argv, folder, env=env))
    random.Random(seed).shuffle(tried)
    yield from tried


def _fill(folder: Path) -> None:
    import torch

    from sanrobust.zoo.build import build
    from sanrobust.zoo.forms import small_config
    for name in ("flat/a.png", "tree/x/a.png", "tree/y/b.png", "image.png"):
        save_noise(folder / name, size=(32, 32))
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "file").write_text("text\n")
    with (folder / "zeros").open("wb") as stream:
        stream.truncate(1 << 30)
    os.mkfifo(folder / "pipe")
    os.symlink("nothing", folder / "dangling")
    os.symlink("loop", folder / "loop")
    (folder / "ring").mkdir()
    os.symlink("b", folder / "ring" / "a")
    os.symlink("a", folder / "ring" / "b")
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
    os.chdir(here)
    torch.save(build(small_config("resnet26", 10)).state_dict(), folder / "weights.pth")
