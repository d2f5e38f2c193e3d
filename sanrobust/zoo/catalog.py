"""Every model of the zoo as data: where its weights are and what they are reported to reach.

No torch: the commands that list models read this. Accuracies of the ImageNet entries are those of
Zhao, Jia and Koltun, "Exploring Self-attention for Image Recognition", CVPR 2020, Table 9.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sanrobust.errors import CheckpointError, UnknownNameError
from sanrobust.preprocessing import Preprocessing
from sanrobust.registry import closest, unknown_name
from sanrobust.zoo import store
from sanrobust.zoo.entry import (
    Entry, Packaged, Remote, Unpublished, Untrained, WeightsSource,
)
from sanrobust.zoo.families.base import ModelName
from sanrobust.zoo.families.catalog import families, networks, published
from sanrobust.zoo.forms import ARCHITECTURES, imagenet_config, small_config
from sanrobust.zoo.names import LISTING, parse, quoted

PAPER_ORDER: tuple[str, ...] = ARCHITECTURES
DEFAULT_TAG = store.IN1K_TAG
WEIGHTS_FOLDER = Path(__file__).parent / "weights"

SMALL_PREPROCESSING = Preprocessing(img_size=32, crop_pct=1.0, interpolation="bilinear",
                                    mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

_DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
            "truck")
# Weights in the package by their tag: the images they were trained on, and these images' classes.
_PACKAGED = {"digits": ("digits", _DIGITS),
             **{tag: ("cifar10", _CIFAR10)
                for tag in ("cifar10", "cifar10-s1", "cifar10-s2", "cifar10-adv")}}
_FORMS = ("untrained", "untrained-small")
_UNTRAINED_NOTE = "Initial values, for trying things out."
_PAPER = "Zhao, Jia and Koltun, CVPR 2020, Table 9, no rotation"
_AUTHORS_FOLDER = "https://drive.google.com/drive/folders/19ZJn48UpiF_j8e1-UU9UZ4AVfLjmwPzH"
_DRIVE = "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
_DRIVE_IDS = {
    "san10-pair": "1lv5TYfJFYvNWt_Ik0E-nAuI5h4PqSwuk",
    "san10-patch": "1aU60a3I-YZK1HYs25sj2V5nbXC9FqRZ5",
    "san15-pair": "1yfJnq28XYAjJ4ThYd9kv9MFBKFvzCr4I",
    "san15-patch": "1MJwkzyo2wxjSCynj-Jp8NQMSj6o89Ph-",
    "san19-pair": "1wAaGSizflxOCSiVHh2EE3mtyGL0IuPK9",
    "san19-patch": "1rtYIB-fTkDc4HR5s8K9Ddn2Xae-lhsfb",
}
_TABLE9 = {
    "resnet26": (73.6, 91.7), "san10-pair": (74.9, 92.1), "san10-patch": (77.1, 93.5),
    "resnet38": (76.0, 93.0), "san15-pair": (76.6, 93.1), "san15-patch": (78.0, 93.9),
    "resnet50": (76.9, 93.5), "san19-pair": (76.9, 93.4), "san19-patch": (78.2, 93.9),
}


def find(name: str, *, tag: str | None = None) -> Entry:
    """Return the entry called ``name``.

    Every architecture has the tags ``untrained`` (its form for ImageNet) and
    ``untrained-small``, whatever its options; other weights are published, packaged or added.

    Args:
        name: ``arch.tag``, or an architecture alone.
        tag: the tag meant when ``name`` is an architecture alone; ``in1k`` when None.

    Raises UnknownNameError with the closest name, with the legal options or values, or with the
    tags that the architecture has.
    """
    typed = _parsed(name)
    wanted = typed.tag if typed.tag is not None else (tag or DEFAULT_TAG)
    if wanted in _FORMS:
        return _untrained(typed.architecture, wanted)
    full = f"{typed.architecture}.{wanted}"
    own = {entry.name: entry for entry in _own_entries()}
    if wanted in store.RESERVED_TAGS and full in own:
        return own[full]  # cannot be in the store, whose index need not be read
    known = {entry.name: entry for entry in entries()}
    if full in known:
        return known[full]
    if full in store.damaged():
        raise store.damaged()[full]
    raise _unknown_tag(typed.architecture, wanted, tuple(known))


def find_form(name: str, *, tag: str | None = None) -> Entry:
    """Return the entry called ``name`` for its form, not for its weights.

    As `find`, but an architecture alone that has no weights tagged ``tag`` answers with its
    initial values: of the form for ImageNet where the tag is ``in1k``, else of that for small
    images.
    """
    wanted = tag or DEFAULT_TAG
    try:
        return find(name, tag=wanted)
    except UnknownNameError:
        typed = _parsed(name)
        if typed.tag is not None:
            raise
    return _untrained(typed.architecture, _FORMS[0 if wanted == DEFAULT_TAG else 1])


def entries() -> tuple[Entry, ...]:
    """Return all entries: the zoo's own in the paper's order, then those the user added.

    An ``in1k`` entry whose weights the user added keeps its reported accuracy.
    """
    stored = {name: record.entry for name, record in store.records().items()}
    own = [replace(entry, weights=stored.pop(entry.name).weights) if entry.name in stored
           else entry for entry in _own_entries()]
    return (*own, *stored.values())


def names() -> tuple[str, ...]:
    """Return the full names of all entries, in the order of `entries`."""
    return tuple(entry.name for entry in entries())


def _own_entries() -> tuple[Entry, ...]:
    others = [arch for family in families() if family.listed for arch in family.networks]
    return (
        *(_in1k(arch) for arch in PAPER_ORDER),
        *(entry for tag in _PACKAGED for entry in _packaged(tag)),
        *published(),
        *(_untrained(arch, tag) for tag in _FORMS for arch in (*PAPER_ORDER, *others)),
    )


def _parsed(name: str) -> ModelName:
    if "(" in name or ")" in name or name.partition(".")[0] in networks():
        return parse(name)
    arch, dot, _ = name.partition(".")
    candidates = (*names(), *(f"{other}.{tag}" for other in networks() for tag in _FORMS)) \
        if dot else tuple(networks())
    # Two swapped characters (san01) beat any one that is near by other measures (san19).
    swapped = [other for other in candidates if sorted(other) == sorted(name)]
    raise unknown_name("model", name, swapped or candidates, listing=LISTING)


def _untrained(arch: str, tag: str) -> Entry:
    """Return the entry of fresh initial values, which needs nothing but a form."""
    if tag == "untrained":
        return Entry(arch=arch, tag=tag, architecture=imagenet_config(arch), weights=Untrained(),
                     note=_UNTRAINED_NOTE)
    return Entry(arch=arch, tag=tag, architecture=small_config(arch, 10), weights=Untrained(),
                 preprocessing=SMALL_PREPROCESSING, data="digits", note=_UNTRAINED_NOTE)


def _in1k(arch: str) -> Entry:
    top1, top5 = _TABLE9[arch]
    published = arch in _DRIVE_IDS
    return Entry(arch=arch, tag=DEFAULT_TAG, architecture=imagenet_config(arch),
                 weights=_published_weights(arch), top1=top1, top5=top5,
                 licence="MIT" if published else "", reference=_PAPER,
                 note="Licence as stated by the authors' repository." if published else "")


def _published_weights(arch: str) -> WeightsSource:
    if arch in _DRIVE_IDS:
        return Remote(url=_DRIVE.format(_DRIVE_IDS[arch]), page=_AUTHORS_FOLDER)
    return Unpublished(
        "the authors published no ResNet weights; use torchvision/resnet50 for public ResNet50 "
        f"weights, or train {arch} and type: sanrobust zoo add {arch}.{DEFAULT_TAG} FILE")


def _packaged(tag: str) -> tuple[Entry, ...]:
    """Return the entries whose weights the package holds; none while it was built without them."""
    path = WEIGHTS_FOLDER / f"{tag}.json"
    try:
        rows = json.loads(path.read_text("utf-8"))
        return tuple(_packaged_entry(arch, tag, **row) for arch, row in rows.items())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, AttributeError, UnknownNameError) as error:
        raise CheckpointError(f"the package's weights must be listed in {path.name}",
                              seen=f"{path} does not read ({error})",
                              hint="install sanrobust again") from error


def _packaged_entry(arch: str, tag: str, *, sha256: str, top1: float, n: int, command: str,
                    **_: object) -> Entry:
    data, classes = _PACKAGED[tag]
    return Entry(arch=arch, tag=tag, architecture=small_config(arch, len(classes)),
                 weights=Packaged(f"{arch}.{tag}.safetensors", sha256),
                 preprocessing=SMALL_PREPROCESSING, data=data, classes=classes,
                 top1=top1, licence="MIT", reference=command,
                 note=f"Measured on {n} images that training did not see.")


def _unknown_tag(arch: str, tag: str, known: tuple[str, ...]) -> UnknownNameError:
    stored = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == arch]
    tags = tuple(dict.fromkeys((*stored, *_FORMS)))
    near = closest(tag, tags)
    suggestion = f"did you mean {arch}.{near}? " if near else ""
    train = "" if arch in PAPER_ORDER else f"sanrobust train --model {quoted(arch)} and "
    return UnknownNameError(f"the weights of {arch} must exist",
                            seen=f"there are none tagged {tag!r}",
                            hint=f"{suggestion}the tags are {', '.join(tags)}, and {train}"
                                 f"sanrobust zoo add {quoted(f'{arch}.TAG')} FILE "
                                 f"{'make' if train else 'makes'} another")
