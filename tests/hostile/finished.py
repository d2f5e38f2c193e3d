"""A finished run of which bits flip, files vanish and facts change: refused, or the same table."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile.case import Case
from hostile.driver import run

MODEL = "resnet26.untrained-small"
TABLE = "o/rotation.csv"
_VALUES: tuple[Any, ...] = (None, "", "x", -1, 0, 2**70, 1.5, True, [], {}, [[]], "\x1b[2J",
                            "n" * 5000, "complete", "../x")


def records(folder: Path, seed: int) -> Iterator[Case]:
    """Yield copies of one run, each with one damage to its records; `table` is asked for."""
    for number, (copy, order) in enumerate(_copies(folder, seed, 2000)):
        files = sorted(path for path in (copy / "o" / "runs").rglob("*.parquet"))
        name = _damage(order.choice(files), order)
        yield _case(f"{number} {name}", copy, folder)


def headers(folder: Path, seed: int) -> Iterator[Case]:
    """Yield copies of one run, each with one fact of its ``run.json`` changed."""
    for number, (copy, order) in enumerate(_copies(folder, seed, 2000)):
        path = next((copy / "o" / "runs").glob("*/run.json"))
        name = order.choice((_cut, _edit, _edit, _edit))(path, order)
        yield _case(f"{number} {name}", copy, folder)


def _case(name: str, copy: Path, folder: Path) -> Case:
    return Case(name, ("table", "rotate", "--out", "o"), copy,
                expected=(TABLE, (folder / "sound" / TABLE).read_bytes()))


def _copies(folder: Path, seed: int, number: int) -> Iterator[tuple[Path, random.Random]]:
    sound = folder / "sound"
    sound.mkdir()
    answer = run(Case("sound", ("rotate", "-m", MODEL, "--num-samples", "6", "--out", "o"), sound))
    assert answer.code == 0, answer.err
    for place in range(number):
        copy = folder / str(place)
        shutil.copytree(sound, copy)
        yield copy, random.Random(f"{seed} {place}")


def _damage(path: Path, order: random.Random) -> str:
    content = bytearray(path.read_bytes())
    place = order.randrange(len(content))
    match order.choice(("flip", "flip", "flip", "cut", "empty", "zeros", "rename", "remove")):
        case "flip":
            content[place] ^= 1 << order.randrange(8)
            path.write_bytes(content)
            return f"flip in byte {place} of {path.name}"
        case "cut":
            path.write_bytes(content[:place])
            return f"{path.name} cut at {place}"
        case "empty":
            path.write_bytes(b"")
            return f"{path.name} emptied"
        case "zeros":
            path.write_bytes(bytes(len(content)))
            return f"{path.name} zeroed"
        case "rename":
            path.rename(path.with_name("999999.parquet"))
            return f"{path.name} renamed"
    path.unlink()
    return f"{path.name} removed"


def _cut(path: Path, order: random.Random) -> str:
    content = path.read_bytes()
    path.write_bytes(content[:order.randrange(len(content))])
    return "run.json cut"


def _edit(path: Path, order: random.Random) -> str:
    """Give one fact, at any depth, another value."""
    header = json.loads(path.read_text("utf-8"))
    place, keys = header, []
    while True:
        key = order.choice(sorted(place))
        keys.append(key)
        if not (isinstance(place[key], dict) and place[key] and order.random() < 0.7):
            break
        place = place[key]
    value = order.choice([each for each in _VALUES if each != place[key]])
    place[key] = value
    path.write_text(json.dumps(header), "utf-8")
    return f"{'.'.join(keys)} = {str(value)[:20]!r}"
