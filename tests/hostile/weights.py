"""Files that are no weights, or not those of the model that is named."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from hostile.case import Case

MODEL = "resnet26.untrained-small"


def weights(folder: Path, seed: int) -> Iterator[Case]:
    """Yield damaged checkpoints as weights of a run and for the store."""
    for name, path in (*_more(folder, seed), *_own(folder, seed)):
        file = str(path.relative_to(folder))
        yield Case(f"rotate {name}", ("rotate", "-m", MODEL, "--checkpoint", file,
                                      "--num-samples", "2", "--out", "o"), folder)
        yield Case(f"zoo add {name}", ("zoo", "add", "--like", MODEL, "resnet26.mine", file),
                   folder)


def _more(folder: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """Yield the files of `hostile.checkpoints`, where that module is there."""
    if find_spec("hostile.checkpoints") is not None:
        from hostile.checkpoints import checkpoints
        yield from checkpoints(folder, seed)


def _own(folder: Path, seed: int) -> Iterator[tuple[str, Path]]:
    import torch
    from safetensors.torch import save_file

    from sanrobust.zoo.build import build
    from sanrobust.zoo.forms import small_config
    state = dict(build(small_config("resnet26", 10)).state_dict())
    torch.save(state, folder / "sound.pth")
    save_file(state, folder / "sound.safetensors")
    order = random.Random(seed)
    for name, content in _headers():
        (folder / name).write_bytes(content)
        yield name, folder / name
    for number in range(40):
        for sound in ("sound.pth", "sound.safetensors"):
            path = folder / f"{number}-{sound}"
            content = (folder / sound).read_bytes()
            path.write_bytes(content[:order.randrange(len(content))])
            yield f"cut {path.name}", path


def _headers() -> Iterator[tuple[str, bytes]]:
    """Yield safetensors files whose header lies."""
    for name, claimed in (("huge", 2**63), ("long", 2**40), ("none", 0), ("short", 3)):
        yield f"header-{name}.safetensors", struct.pack("<Q", claimed) + b'{"a":1}'
    for name, value in (
            ("list", []), ("deep", None), ("type", {"a": 1}),
            ("dtype", {"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}}),
            ("shape", {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
            ("large", {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}),
            ("beyond", {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]}}),
            ("escape", {"\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})):
        text = b"[" * 100_000 if value is None else json.dumps(value).encode()
        yield f"header-{name}.safetensors", struct.pack("<Q", len(text)) + text + b"\0" * 4
