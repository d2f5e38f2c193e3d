"""The one door to a model: from a name, and perhaps a file, to a classifier ready to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sanrobust.errors import CheckpointError, DownloadError, SanrobustError, UsageError
from sanrobust.files import sha256_file
from sanrobust.zoo import catalog, store
from sanrobust.zoo.build import build
from sanrobust.zoo.checkpoint import load_strict, read_facts, read_state_dict
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.download import Progress, download
from sanrobust.zoo.entry import (
    Entry, Packaged, Remote, Stored, Unpublished, Untrained,
)
from sanrobust.zoo.external import create_external, is_external
from sanrobust.zoo.facts import entry_from_facts
from sanrobust.zoo.names import LISTING, parse, quoted

Say = Callable[[str], None]


def create_model(name: str, *, checkpoint: Path | None = None, tag: str = catalog.DEFAULT_TAG,
                 overrides: Mapping[str, Any] | None = None, num_classes: int | None = None,
                 progress: Progress | None = None, say: Say = lambda _: None) -> Classifier:
    """Return the classifier called ``name``, on the CPU.

    Args:
        name: an entry (``san10-pair.in1k``), an architecture alone, with or without options
            (``san10-pair(relation=hadamard)``), ``torchvision/NAME``, ``timm/NAME`` or
            ``package.module:callable``.
        checkpoint: a file whose weights are used instead of the entry's own; the classifier is
            then called ``arch.STEM`` after it.
        tag: the entry meant when ``name`` is an architecture alone.
        overrides: preprocessing fields that replace the entry's; those that are None do not.
        num_classes: length of the logits; by default the checkpoint's or the entry's.
        progress: told how far a download has come, in bytes.
        say: told in a sentence what a user must know of a download.

    Raises UnknownNameError, CheckpointError, DownloadError or ModelError, each with the way out.
    """
    chosen = {key: value for key, value in (overrides or {}).items() if value is not None}
    if is_external(name):
        return create_external(name, checkpoint=checkpoint, overrides=chosen,
                               num_classes=num_classes)
    if checkpoint is not None:
        entry = catalog.find_form(name, tag=tag)
        return _from_checkpoint(name, entry, checkpoint, chosen, num_classes)
    entry = catalog.find(name, tag=tag)
    if num_classes not in (None, entry.architecture.num_classes):
        if not isinstance(entry.weights, Untrained):
            raise UsageError(f"--num-classes must be {entry.architecture.num_classes} for "
                             f"{entry.name}", seen=f"it is {num_classes}",
                             hint="leave it out, or give other weights with --checkpoint FILE")
        entry = _with_classes(entry, num_classes)
    return _from_entry(entry, chosen, progress, say)


def fetch(entry: Entry, *, progress: Progress | None = None, say: Say = lambda _: None) -> Path:
    """Return the local file of a published entry's weights, downloaded when it is not here yet.

    The file's hash is the publisher's or, where there is none, that of the first file from which
    the model could be loaded, which ``say`` is told. Raises UsageError for an entry that is not
    published anywhere.
    """
    remote = entry.weights
    if not isinstance(remote, Remote):
        raise UsageError("a model to download must have a published address",
                         seen=f"{entry.name} has none", hint=f"see {LISTING}")
    path = store.download_path(entry.name)
    with store.locked(path.with_name(path.name + ".lock")):
        expected = remote.sha256 or store.pinned(path)
        if path.exists():
            _require_hash(path, expected, f"remove {path} and run again")
            if expected is not None:
                return path
        else:
            expected = download(remote.url, path, sha256=expected, name=entry.name,
                                page=remote.page, progress=progress)
        if remote.sha256 is None:
            _require_loads(entry, path, remote)
            store.pin(path, sha256_file(path))
            say(f"{entry.name}: the publisher gives no hash; recorded SHA-256 {store.pinned(path)} "
                "of this first download, to which every later use is held")
    return path


@dataclass(frozen=True)
class Verification:
    """What checking an entry found.

    Attributes:
        name: the entry's full name.
        status: ``ok``; ``absent`` when there are no weights on this machine to check;
            ``failed``.
        detail: one sentence.
    """

    name: str
    status: Literal["ok", "absent", "failed"]
    detail: str


def verify(entry: Entry) -> Verification:
    """Check an entry's weights: their hash, a strict load, and finite logits for a plain image.

    Nothing is downloaded.
    """
    if isinstance(entry.weights, Unpublished):
        return Verification(entry.name, "absent", entry.weights.reason)
    if isinstance(entry.weights, Remote) and not store.download_path(entry.name).exists():
        return Verification(entry.name, "absent", "not downloaded yet; its first use does that")
    try:
        classifier = _from_entry(entry, {})
        _require_store_digest(entry, classifier)
        side = entry.preprocessing.img_size
        # Noise will not do: the products of a deep patchwise network, which has no softmax,
        # overflow float32 on images so far from its training.
        mean = torch.tensor(entry.preprocessing.mean).view(1, 3, 1, 1)
        with torch.no_grad():
            logits: Tensor = classifier(mean.expand(1, 3, side, side))
    except SanrobustError as error:
        return Verification(entry.name, "failed", str(error))
    return Verification(entry.name, "ok", f"{classifier.source}, {logits.shape[1]} classes, "
                                          f"weights {classifier.weights_digest[:12]}")


def _from_entry(entry: Entry, overrides: Mapping[str, Any], progress: Progress | None = None,
                say: Say = lambda _: None) -> Classifier:
    weights = entry.weights
    if isinstance(weights, Untrained):
        network = _built(entry, weights.seed)
        return _classifier(entry, network, overrides, f"initial values of seed {weights.seed}")
    path = _local_file(entry, progress, say)
    return _loaded(entry, path, entry.name, overrides)


def _local_file(entry: Entry, progress: Progress | None, say: Say) -> Path:
    weights = entry.weights
    if isinstance(weights, Packaged):
        path = catalog.WEIGHTS_FOLDER / weights.filename
        _require_hash(path, weights.sha256, "install sanrobust again")
        return path
    if isinstance(weights, Stored):
        path = store.weights_path(entry.name)
        _require_hash(path, weights.sha256,
                      f"add the weights again with sanrobust zoo add {entry.name} FILE")
        return path
    if isinstance(weights, Remote):
        return fetch(entry, progress=progress, say=say)
    assert isinstance(weights, Unpublished)
    raise CheckpointError(f"{entry.name} must have weights to be measured",
                          seen=_without_hint(weights.reason)[0],
                          hint=_without_hint(weights.reason)[1])


def _without_hint(reason: str) -> tuple[str, str]:
    """Split an entry's reason, ``what is so; what to do``, into an error's two parts."""
    seen, _, hint = reason.partition("; ")
    return seen, hint or "give weights of your own with --checkpoint FILE"


def _require_hash(path: Path, expected: str | None, hint: str) -> None:
    try:
        found = sha256_file(path)
    except OSError as error:
        raise CheckpointError("the weights must be on this machine",
                              seen=f"reading {path} failed ({error.strerror or error})",
                              hint=hint) from error
    if expected is not None and found != expected:
        raise CheckpointError(f"{path} must have the recorded SHA-256 {expected}",
                              seen=f"it has {found}", hint=hint)


def _require_loads(entry: Entry, path: Path, remote: Remote) -> None:
    """Load a file of unknown hash once, so that only one that serves is ever recorded."""
    try:
        _loaded(entry, path, entry.name, {})
    except CheckpointError as error:
        path.unlink()
        raise DownloadError(f"{remote.url} must send the weights of {entry.name}",
                            seen=f"what it sent was removed because {error.seen}",
                            hint=f"open {remote.page or remote.url} in a browser, save the file "
                                 f"and type: sanrobust zoo add {entry.name} FILE") from error


def _require_store_digest(entry: Entry, classifier: Classifier) -> None:
    if not isinstance(entry.weights, Stored):
        return
    recorded = store.records()[entry.name].state_digest
    if classifier.weights_digest != recorded:
        raise CheckpointError(f"the tensors of {entry.name} must have the recorded digest "
                              f"{recorded}", seen=f"they have {classifier.weights_digest}",
                              hint=f"add them again with sanrobust zoo add {entry.name} FILE")


def _from_checkpoint(name: str, entry: Entry, checkpoint: Path, overrides: Mapping[str, Any],
                     num_classes: int | None) -> Classifier:
    state = read_state_dict(checkpoint)
    facts = read_facts(checkpoint)
    classes = None  # what the logits of a file without facts stand for is not known
    if facts is not None:
        told = entry_from_facts(facts, tag=entry.tag, weights=Stored("", ""))
        _require_arch(entry, told, checkpoint)
        # The file of our own training says which form it is; a bare architecture name does not.
        entry = told if parse(name).tag is None else entry
        classes = told.classes
    if num_classes is None:
        head = state.get("fc.weight")
        num_classes = int(head.shape[0]) if head is not None and head.ndim == 2 else None
    if num_classes is not None:
        entry = _with_classes(entry, num_classes)
    if len(classes or ()) == entry.architecture.num_classes:
        entry = replace(entry, classes=classes)
    network = _built(entry, 0)
    load_strict(network, state, name=name, source=str(checkpoint))
    tag = checkpoint.name.removesuffix(checkpoint.suffix).removeprefix(f"{entry.arch}.")
    return _classifier(entry, network, overrides, str(checkpoint), name=f"{entry.arch}.{tag}")


def _require_arch(entry: Entry, told: Entry, checkpoint: Path) -> None:
    """Variants can have the same shapes: those of another one would load and mean nothing."""
    if told.arch != entry.arch:
        raise CheckpointError(f"the weights must belong to {entry.arch}",
                              seen=f"{checkpoint} says that they are those of {told.arch}",
                              hint=f"type --model {quoted(told.arch)}")


def _loaded(entry: Entry, path: Path, name: str, overrides: Mapping[str, Any]) -> Classifier:
    network = _built(entry, 0)
    load_strict(network, read_state_dict(path), name=name, source=str(path))
    return _classifier(entry, network, overrides, str(path))


def _built(entry: Entry, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators too, whose state is not saved here.
        torch.default_generator.manual_seed(seed)
        return build(entry.architecture)


def _with_classes(entry: Entry, num_classes: int) -> Entry:
    return replace(entry, architecture=replace(entry.architecture, num_classes=num_classes),
                   classes=None)


def _classifier(entry: Entry, network: torch.nn.Module, overrides: Mapping[str, Any], source: str,
                *, name: str | None = None) -> Classifier:
    return Classifier(network, name=name or entry.name,
                      preprocessing=replace(entry.preprocessing, **overrides),
                      num_classes=entry.architecture.num_classes, source=source,
                      classes=entry.classes)
