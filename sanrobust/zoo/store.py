"""The user's own weights: one folder, an index, and a hash for everything in it. No torch.

A file that enters is read safely, checked against its architecture and written again as
safetensors, so what lies in the store holds tensors and nothing else.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sanrobust.errors import CheckpointError, UsageError
from sanrobust.files import output_error, require_writable, sha256_file, write_text
from sanrobust.zoo.entry import Entry, Stored
from sanrobust.zoo.facts import entry_from_facts, facts, require_text
from sanrobust.zoo.forms import imagenet_config
from sanrobust.zoo.names import canonical, parse, quoted

IN1K_TAG = "in1k"
IN1K_CLASSES = 1000
RESERVED_TAGS = ("digits", "cifar10", "cifar10-s1", "cifar10-s2", "cifar10-adv", "untrained",
                 "untrained-small")
UNKNOWN_DATA = "custom"

# Options have capital letters (mapping=LRL), and no two names differ in nothing but case.
_NAME = re.compile(r"[a-z0-9][a-z0-9_+-]*(\([A-Za-z0-9_+,=-]+\))?\.[a-z0-9_+-]+")
_INDEX = "index.json"
_INDEX_VERSION = 1


@dataclass(frozen=True)
class StoreRecord:
    """What the store knows of one set of weights.

    Attributes:
        entry: the catalogue entry, with ``Stored`` weights.
        state_digest: hash of the tensors, the same in any file format.
        source: name of the file that was added.
        source_sha256: hash of that file.
        added: date and time in UTC, ISO 8601.
    """

    entry: Entry
    state_digest: str
    source: str
    source_sha256: str
    added: str


def home() -> Path:
    """Return the store's folder.

    ``SANROBUST_HOME``, else ``sanrobust`` in ``XDG_CACHE_HOME``, else ``~/.cache/sanrobust``.
    Raises UsageError where that is in nobody's home.
    """
    named = os.environ.get("SANROBUST_HOME")
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        if named:
            return Path(named).expanduser()
        # A relative path there is to be ignored, says the XDG Base Directory Specification.
        return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "sanrobust"
    except RuntimeError as error:
        raise UsageError("the store of weights must lie in a folder", seen=f"{named or '~'} "
                         "names no user's home", hint="set SANROBUST_HOME to a folder") from error


def weights_path(name: str) -> Path:
    """Return where the store keeps the weights called ``name`` (``arch.tag``)."""
    require_name(name)
    return home() / f"{name}.safetensors"


def download_path(name: str) -> Path:
    """Return where the store keeps the published file of the model ``name``."""
    require_name(name)
    return home() / "downloads" / f"{name}.pth"


def require_name(name: str) -> None:
    """Raise UsageError unless ``name`` is ``arch.tag``, canonical and safe as a file name."""
    if _NAME.fullmatch(name) is None:
        raise UsageError("the name of stored weights must be ARCH.TAG in small letters, digits, "
                         "'_', '+' and '-'", seen=f"it is {name!r}",
                         hint="choose a name such as san10-pair.mine")
    if "(" in name and canonical(name) != name:
        raise UsageError("the name of stored weights must have its canonical spelling",
                         seen=f"it is {name!r}", hint=f"choose {quoted(canonical(name))}")


def add(name: str, path: Path, *, like: Entry | None = None, overwrite: bool = False,
        use_ema: bool = False, say: Callable[[str], None] = lambda _: None) -> StoreRecord:
    """Check the checkpoint ``path`` and keep its weights as the model ``name``.

    Args:
        name: ``arch.tag``; the architecture may have options, in any spelling; the tag is the
            user's own or ``in1k``.
        path: a checkpoint in any format that `checkpoint.read_weights` reads.
        like: entry whose form and preprocessing the weights share; by default what our own
            training wrote into the file, else the architecture's ImageNet form.
        overwrite: replace weights added under this name before.
        use_ema: take the averaged weights of a checkpoint that holds both.
        say: told in a sentence which of several weights were taken.

    Raises UsageError for a name that cannot be taken or is taken, CheckpointError for a file that
    does not fit, and OutputError when the store cannot be written.
    """
    import torch  # heavy: the listing commands read this module without it

    from sanrobust.zoo import checkpoint
    from sanrobust.zoo.build import build, parameter_shapes
    from sanrobust.zoo.digest import state_digest
    from sanrobust.zoo.fit import class_count, load_strict
    from sanrobust.zoo.wrapping import aligned

    name = canonical(name) if "(" in name else name
    _require_free(name, taken=() if overwrite else _read_index())
    require_writable(home(), weights_path(name).name, _INDEX)
    found = checkpoint.read_weights(path, use_ema=use_ema)
    remark = found.remark(str(path))
    if remark is not None:
        say(remark)
    template = _template(name, like, None if like is not None else checkpoint.read_facts(path))
    state = aligned(found.state, parameter_shapes(template.architecture))
    entry = _planned(name, path, template, _classes(class_count(state), name, path))
    with torch.random.fork_rng(devices=[]):
        network = build(entry.architecture)
    load_strict(network, state, name=name, source=str(path),
                suggestion="choose the name {arch}.TAG and add --like {model}")
    weights = network.state_dict()
    target = weights_path(name)
    with locked(home() / f"{_INDEX}.lock"):
        index = _read_index()
        _require_free(name, taken=() if overwrite else index)
        checkpoint.save_safetensors(weights, target,
                                    {checkpoint.METADATA_KEY: json.dumps(facts(entry))})
        entry = replace(entry, weights=Stored(target.name, sha256_file(target)))
        record = StoreRecord(entry, state_digest(weights), path.name, sha256_file(path), _now())
        index[name] = _as_row(record)
        _write_index(index)
    return record


def records() -> dict[str, StoreRecord]:
    """Return what the store knows by name, in the order in which it was added.

    Weights whose row does not read are left out; see `damaged`. Raises CheckpointError when the
    index as a whole is damaged.
    """
    return {name: row for name, row in _rows().items() if isinstance(row, StoreRecord)}


def damaged() -> dict[str, CheckpointError]:
    """Return by name what is wrong with the rows of the store that do not read."""
    return {name: row for name, row in _rows().items() if isinstance(row, CheckpointError)}


def _rows() -> dict[str, StoreRecord | CheckpointError]:
    found: dict[str, StoreRecord | CheckpointError] = {}
    for name, row in _read_index().items():
        try:
            found[name] = _from_row(name, row)
        except CheckpointError as error:
            found[name] = error
    return found


def pinned(path: Path) -> str | None:
    """Return the SHA-256 to which a downloaded file is held; None before its first use."""
    try:
        text = _pin_file(path).read_text("utf-8")
    except FileNotFoundError:
        return None
    digest = text.partition(" ")[0].strip()
    if re.fullmatch(r"[0-9a-f]{64}", digest) is None:
        raise CheckpointError("a recorded hash must be a SHA-256",
                              seen=f"{_pin_file(path)} holds something else",
                              hint="remove that file and the download beside it, and run again")
    return digest


def pin(path: Path, sha256: str) -> None:
    """Record the SHA-256 of a downloaded file beside it, in the format of ``sha256sum``."""
    write_text(_pin_file(path), f"{sha256}  {path.name}\n")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` against other processes where the system has such locks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        raise output_error(path, error) from error
    with stream:
        try:
            import fcntl  # absent on Windows, where two writers at once are not guarded
        except ImportError:
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)


def _require_free(name: str, taken: Collection[str]) -> None:
    require_name(name)
    parsed = parse(name)
    arch, tag = parsed.architecture, parsed.tag
    if tag in RESERVED_TAGS:
        raise UsageError("the tag of added weights must be your own or in1k",
                         seen=f"{tag} belongs to the package",
                         hint=f"choose another, such as {quoted(f'{arch}.mine')}")
    if name in taken:
        raise UsageError("the name of added weights must be new",
                         seen=f"{name} is in the store already",
                         hint="choose another tag, or replace it with --overwrite")


def _classes(found: int | None, name: str, path: Path) -> int:
    if found is None:
        raise CheckpointError("a checkpoint of the zoo must hold fc.weight (classes, channels)",
                              seen=f"{path} has no such tensor",
                              hint=f"give the weights that belong to {name.partition('.')[0]}")
    return found


def _planned(name: str, path: Path, template: Entry, classes: int) -> Entry:
    """Return the entry that the weights should fit; its hash is not known yet."""
    arch, _, tag = name.partition(".")
    if tag == IN1K_TAG and classes != IN1K_CLASSES:
        raise CheckpointError(f"{name} must have the {IN1K_CLASSES} classes of ImageNet",
                              seen=f"{path} has {classes}",
                              hint=f"choose another tag, such as {quoted(f'{arch}.mine')}")
    same = classes == template.architecture.num_classes
    return replace(template, architecture=replace(template.architecture, num_classes=classes),
                   data=template.data if same else UNKNOWN_DATA,
                   classes=template.classes if same else None)


def _template(name: str, like: Entry | None, model_facts: Mapping[str, object] | None) -> Entry:
    """Return an entry of the form and preprocessing that the weights should have."""
    arch, _, tag = name.partition(".")
    nowhere = Stored("", "")
    if like is not None:
        told = Entry(arch=like.arch, tag=tag, architecture=like.architecture, weights=nowhere,
                     preprocessing=like.preprocessing, data=like.data, classes=like.classes)
    elif model_facts is not None:
        told = entry_from_facts(model_facts, tag=tag, weights=nowhere)
    else:
        return Entry(arch=arch, tag=tag, architecture=imagenet_config(arch), weights=nowhere)
    if told.arch != arch:
        source = "the file says" if like is None else "--like says"
        raise CheckpointError(f"weights named {name} must belong to {arch}",
                              seen=f"{source} {told.arch}",
                              hint="choose the name " + quoted(f"{told.arch}.{tag}"))
    return told


def _as_row(record: StoreRecord) -> dict[str, object]:
    weights = record.entry.weights
    assert isinstance(weights, Stored)
    return {"sha256": weights.sha256, "state_digest": record.state_digest,
            "source": record.source, "source_sha256": record.source_sha256,
            "added": record.added, "facts": facts(record.entry)}


def _from_row(name: str, row: Mapping[str, Any]) -> StoreRecord:
    try:
        weights = Stored(weights_path(name).name, require_text(row["sha256"]))
        entry = entry_from_facts(row["facts"], tag=name.partition(".")[2], weights=weights)
        if entry.name != name:
            raise ValueError(f"{name} is described as {entry.name}")
        return StoreRecord(entry, *(require_text(row[key]) for key in
                                    ("state_digest", "source", "source_sha256", "added")))
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise CheckpointError("the facts of stored weights must describe a model of the zoo",
                              seen=f"those of {name} do not ({error})",
                              hint=f"add the weights again with sanrobust zoo add {quoted(name)} "
                                   "FILE --overwrite") from error


def _read_index() -> dict[str, Any]:
    path = home() / _INDEX
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged_index(f"{path} does not read as JSON") from error
    if not isinstance(content, dict) or content.get("version") != _INDEX_VERSION \
            or not isinstance(content.get("entries"), dict):
        raise _damaged_index(f"{path} is not of version {_INDEX_VERSION}")
    entries: dict[str, Any] = content["entries"]
    return entries


def _write_index(entries: Mapping[str, object]) -> None:
    content = {"version": _INDEX_VERSION, "entries": dict(entries)}
    write_text(home() / _INDEX, json.dumps(content, indent=1) + "\n")


def _damaged_index(seen: str) -> CheckpointError:
    return CheckpointError("the index of the weights store must be whole", seen=seen,
                           hint=f"remove {home() / _INDEX} and add the weights again with "
                                "sanrobust zoo add NAME FILE")


def _pin_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
