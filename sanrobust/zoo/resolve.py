"""The one door to a model: from a name, and perhaps a file, to a classifier ready to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sanrobust.errors import CheckpointError, DownloadError, SanrobustError, UsageError
from sanrobust.files import printable, sha256_file
from sanrobust.preprocessing import Preprocessing
from sanrobust.registry import unknown_name
from sanrobust.zoo import catalog, store
from sanrobust.zoo.build import build, parameter_shapes
from sanrobust.zoo.checkpoint import read_facts, read_state_dict, read_weights
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.download import Progress, download
from sanrobust.zoo.entry import Entry, Packaged, Remote, Stored, Unpublished, Untrained
from sanrobust.zoo.external import create_external, is_external
from sanrobust.zoo.facts import entry_from_facts
from sanrobust.zoo.fit import class_count, load_strict
from sanrobust.zoo.forms import require_side, smallest_input
from sanrobust.zoo.names import LISTING, parse, quoted
from sanrobust.zoo.wrapping import aligned

Say = Callable[[str], None]


def create_model(name: str, *, checkpoint: str | Path | None = None, use_ema: bool = False,
                 tag: str = catalog.DEFAULT_TAG, overrides: Mapping[str, Any] | None = None,
                 num_classes: int | None = None, progress: Progress | None = None,
                 say: Say = lambda _: None) -> Classifier:
    """Return the classifier called ``name``, on the CPU.

    Args:
        name: an entry (``san10-pair.in1k``), an architecture alone, with or without options
            (``san10-pair(relation=hadamard)``), ``torchvision/NAME``, ``timm/NAME`` or
            ``package.module:callable``.
        checkpoint: a file whose weights are used instead of the entry's own; the classifier is
            then called ``arch.STEM`` after it.
        use_ema: take the averaged weights of a checkpoint that holds both.
        tag: the entry meant when ``name`` is an architecture alone.
        overrides: preprocessing fields that replace the entry's; those that are None do not.
        num_classes: length of the logits; by default the checkpoint's or the entry's.
        progress: told how far a download has come, in bytes.
        say: told in a sentence what a user must know of a download or of a checkpoint.

    Raises UsageError for an argument that cannot be meant, UnknownNameError, CheckpointError,
    DownloadError or ModelError, each with the way out.
    """
    chosen = _overrides(overrides)
    path = _checked(name, checkpoint, num_classes)
    if is_external(name):
        return create_external(name, checkpoint=path, use_ema=use_ema, overrides=chosen,
                               num_classes=num_classes, say=say)
    if path is not None:
        return _from_checkpoint(name, catalog.find_form(name, tag=tag), path, chosen, num_classes,
                                use_ema, say)
    entry = catalog.find(name, tag=tag)
    if num_classes not in (None, entry.architecture.num_classes):
        if not isinstance(entry.weights, Untrained):
            raise UsageError(f"num_classes must be {entry.architecture.num_classes} for "
                             f"{entry.name}", seen=f"it is {num_classes}",
                             hint="leave it out, or give other weights as checkpoint")
        entry = _with_classes(entry, num_classes)
    return _from_entry(entry, chosen, progress, say)


def _checked(name: object, checkpoint: object, num_classes: object) -> Path | None:
    """Return the path of a checkpoint; raises UsageError for arguments of other types."""
    if not isinstance(name, str):
        raise UsageError("the name of a model must be text", seen=f"it is a {type(name).__name__}",
                         hint="give a name such as san10-pair.digits, or measure a network itself "
                              "with rotate and pgd")
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise UsageError("num_classes must be a whole number above 0", seen=f"it is {num_classes}",
                         hint="leave it out to have the checkpoint's or the model's own")
    if checkpoint is None or isinstance(checkpoint, (str, Path)):
        return None if checkpoint is None else Path(checkpoint)
    raise UsageError("checkpoint must be the path of a file",
                     seen=f"it is a {type(checkpoint).__name__}",
                     hint="save the weights with torch.save and give the file's path")


def _overrides(overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    chosen = {key: value for key, value in (overrides or {}).items() if value is not None}
    known = [field.name for field in fields(Preprocessing)]
    for key in chosen:
        if key not in known:
            raise unknown_name("field of the preprocessing", key, known,
                               listing=f"the fields {', '.join(known)}")
    return chosen


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
            logits = classifier.checked(mean.expand(1, 3, side, side))
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
                     num_classes: int | None, use_ema: bool, say: Say) -> Classifier:
    weights = read_weights(checkpoint, use_ema=use_ema)
    remark = weights.remark(str(checkpoint))
    if remark is not None:
        say(remark)
    facts = read_facts(checkpoint)
    classes = None  # what the logits of a file without facts stand for is not known
    if facts is not None:
        told = entry_from_facts(facts, tag=entry.tag, weights=Stored("", ""))
        _require_arch(entry, told, checkpoint)
        # The file of our own training says which form it is; a bare architecture name does not.
        entry = told if parse(name).tag is None else entry
        classes = told.classes
    state = aligned(weights.state, parameter_shapes(entry.architecture))
    if num_classes is None:
        num_classes = class_count(state)
    if num_classes is not None:
        entry = _with_classes(entry, num_classes)
    if len(classes or ()) == entry.architecture.num_classes:
        entry = replace(entry, classes=classes)
    network = _built(entry, 0)
    load_strict(network, state, name=name, source=str(checkpoint))
    stem = printable(checkpoint.name.removesuffix(checkpoint.suffix))
    tag = stem.removeprefix(f"{entry.arch}.")
    source = f"{checkpoint} ({weights.key})" if weights.others else str(checkpoint)
    return _classifier(entry, network, overrides, source, name=f"{entry.arch}.{tag}")


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
    preprocessing = replace(entry.preprocessing, **overrides)
    side = preprocessing.img_size
    # Said here, before a run begins that would fail at its first image.
    require_side(side, side, smallest_input(entry.architecture))
    return Classifier(network, name=name or entry.name, preprocessing=preprocessing,
                      num_classes=entry.architecture.num_classes, source=source,
                      classes=entry.classes, code=None,
                      assumed=_changed(name or entry.name, entry.preprocessing, preprocessing))


def _changed(name: str, trained: Preprocessing, chosen: Preprocessing) -> str:
    """Return a sentence on what is done to images otherwise than in training; empty for nothing."""
    changes = [f"{field.name} {getattr(chosen, field.name)} for {getattr(trained, field.name)}"
               for field in fields(Preprocessing)
               if getattr(chosen, field.name) != getattr(trained, field.name)]
    if not changes:
        return ""
    return f"{name} is shown images otherwise than in its training: {'; '.join(changes)}"
