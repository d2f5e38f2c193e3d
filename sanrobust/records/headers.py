"""``run.json``, what a run is and when it was begun: JSON that holds a hash of all that it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sanrobust.errors import OutputError, UnknownNameError
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.files import atomic_write
from sanrobust.spec import digest_of

HEADER_NAME = "run.json"
SEALED_FROM = "sealed_from"
"""Key of a header under which stands the number of the first chunk that holds its hash."""
BLOCK_SIZE = "block_size"
"""Key of a header under which stands how many images a block has."""
_SEAL = "sha256"
_SPEC_KEYS = frozenset(("experiment", "model", "weights", "preprocessing", "data", "data_digest",
                        "images", "settings"))


def read_header(path: Path) -> dict[str, object]:
    """Return the content of a ``run.json``, without its hash.

    Raises OutputError when it is none, or is not as it was written. One of an earlier version
    holds no hash, and no number of the first chunk that does.
    """
    try:
        header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(header, dict) or not isinstance(header.get("spec"), dict):
            raise ValueError("no specification in it")
        lacking = _SPEC_KEYS - set(header["spec"])
        if lacking:
            raise ValueError(f"its specification lacks {', '.join(sorted(lacking))}")
        if header.setdefault("spec_digest", digest_of(header["spec"])) != digest_of(header["spec"]):
            raise ValueError("its specification was changed after it was written")
        if SEALED_FROM in header or _SEAL in header:
            header = unsealed(header)
    except (OSError, ValueError, RecursionError) as error:
        instead = "delete it and type" if path.exists() else "type"
        raise OutputError("a run's header must read back", seen=f"{path} does not ({error})",
                          hint=f"restore it, or {instead} the command that measured it again, "
                               "which goes on with the run's records") from error
    _require_known(path, header["spec"])
    return header


def unsealed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return facts without their hash; raises ValueError where it is not theirs."""
    if facts.pop(_SEAL, None) != digest_of(facts):
        raise ValueError("it was changed after it was written")
    return facts


def sealed_text(facts: Mapping[str, object]) -> bytes:
    """Return facts with a hash of them all as JSON."""
    sealed = {**facts, _SEAL: digest_of(facts)}
    return (json.dumps(sealed, indent=2) + "\n").encode()


def write_header_file(path: Path, header: Mapping[str, object], *, replace: bool = True) -> None:
    """Write ``run.json`` with a hash of all that it says.

    Raises NameTaken where there is one already and ``replace`` is False.
    """
    with atomic_write(path, replace=replace) as stream:
        stream.write(sealed_text(header))


def _require_known(path: Path, spec: Mapping[str, object]) -> None:
    """Refuse records of an experiment that is not there, or of a later version of it."""
    try:
        known = EXPERIMENTS.get(str(spec["experiment"])).records.version
    except UnknownNameError as error:
        raise OutputError("a run must be of a known experiment", seen=f"in {path} {error.seen}",
                          hint="install the package that adds it") from error
    version = spec.get("record_schema", 1)
    if not isinstance(version, int) or not 1 <= version <= known:
        raise OutputError(f"records must be of a schema up to {known}",
                          seen=f"{path} is of another version's schema, {version}",
                          hint="install the newest sanrobust, or measure into another folder with "
                               "--out")
