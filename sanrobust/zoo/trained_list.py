"""The list beside trained weights, ``TAG.json``: of each file its hash and how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sanrobust.errors import OutputError
from sanrobust.files import write_text
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.store import locked


def enter(path: Path, arch: str, facts: Mapping[str, object]) -> None:
    """Enter one file's facts into the list ``path``: the paper's nine first, then variants.

    Raises OutputError when the list does not read or cannot be written.
    """
    with locked(path.with_name(path.name + ".lock")):  # others may train into the same folder
        known = {**read(path), arch: dict(facts)}
        others = sorted(set(known) - set(PAPER_ORDER))
        ordered = {name: known[name] for name in (*PAPER_ORDER, *others) if name in known}
        write_text(path, json.dumps(ordered, indent=2) + "\n")


def read(path: Path) -> dict[str, object]:
    """Return the list, empty when there is none; raises OutputError for one that is no list."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, perhaps for ever
            raise ValueError("it is no regular file")
        known = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            raise ValueError("it is no object")
        return known
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise OutputError("the list of trained weights must be JSON",
                          seen=f"{path} does not read ({error})",
                          hint="remove that file or name another folder with --out") from error
