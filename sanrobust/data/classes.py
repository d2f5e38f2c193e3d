"""Whether the labels of a set mean what a model's logits mean: by name wherever names are known."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sanrobust.csvfiles import shown
from sanrobust.data.imageset import ImageSet
from sanrobust.errors import DataError
from sanrobust.registry import closest, did_you_mean

IMAGENET_CLASSES = 1000
ADVICE = ("choose other images with --data, map folders to classes with --class-map FILE, or name "
          "another --model")
_WNID = re.compile("n[0-9]{8}")
_MOST_NAMED = 5


def fit_classes(images: ImageSet, *, names: tuple[str, ...] | None, num_classes: int, model: str,
                advice: str = ADVICE, called: str | None = None) -> ImageSet:
    """Return the images labelled with the indices of the model's logits.

    Where both sides know their classes by name, each label becomes the index that its name has in
    the model; images may lack some of its classes. Folders named by WordNet ids fit a model of
    ImageNet's 1000 classes in the same way, and for such a model folders named by numbers are
    ImageNet's indices. Labels without names are indices already.

    Args:
        images: the set, and the names of its classes where they are known.
        names: the model's classes by index; None when unknown.
        num_classes: length of the logits.
        model: what to call the model in an error.
        advice: what to do about an error.
        called: what to call the images in an error; None for their own name.

    Raises DataError when the model does not know a class of the images, a label has no logit, or
    the set knows its number of classes and it is not the model's.
    """
    known = names or _imagenet_names(images, num_classes)
    if known is not None and images.classes is not None \
            and not (known == imagenet_names() and _are_indices(images.classes)):
        return _by_name(images, known, model, advice, called or images.name)
    if images.num_classes not in (None, num_classes):
        raise DataError(f"data for {model} must have its {num_classes} classes",
                        seen=f"{called or images.name} has {images.num_classes}",
                        hint=_meant(images.name) + advice)
    _require_logits(images, num_classes, model, advice)
    return images


@cache
def imagenet_names() -> tuple[str, ...] | None:
    """Return the WordNet ids of ImageNet's 1000 classes by index, from timm's list of them.

    None when timm has no such list where it is expected.
    """
    package = find_spec("timm")  # found, not imported, which takes seconds
    for place in (package.submodule_search_locations or ()) if package else ():
        try:
            text = Path(place, "data", "_info", "imagenet_synsets.txt").read_text("utf-8")
        except (OSError, ValueError):
            continue
        names = tuple(text.split())
        # ImageNet's order is that of the ids, which any other list would break.
        if len(names) == IMAGENET_CLASSES and names == tuple(sorted(set(names))):
            return names
    return None


def listed(names: Sequence[str]) -> str:
    """Return the first few names as a phrase."""
    first = ", ".join(shown(name) for name in names[:_MOST_NAMED])
    more = len(names) - _MOST_NAMED
    return f"{first} and {more} more" if more > 0 else first


def _meant(name: str) -> str:
    """Return the beginning of a hint where images are called nearly as a known dataset is."""
    from sanrobust.data.catalog import DATASETS
    match = None if name in DATASETS else closest(name, DATASETS.names())
    return f"did you mean --data-name {match}? " if match else ""


def _are_indices(classes: Sequence[str]) -> bool:
    """Say whether classes are called by nothing but their indices, ``0``, ``1`` and so on."""
    return all(name == str(index) for index, name in enumerate(classes))


def _imagenet_names(images: ImageSet, num_classes: int) -> tuple[str, ...] | None:
    """Return ImageNet's names when a model of 1000 classes meets folders of WordNet ids."""
    if num_classes != IMAGENET_CLASSES or images.classes is None \
            or not all(_WNID.fullmatch(name) for name in images.classes):
        return None
    names = imagenet_names()
    is_other = len(images.classes) == num_classes and not set(images.classes) <= set(names or ())
    # 1000 other synsets are somebody's own classes, in the order of their folders.
    return None if is_other else names


def _by_name(images: ImageSet, names: tuple[str, ...], model: str, advice: str, called: str
             ) -> ImageSet:
    assert images.classes is not None
    places = {_composed(name): index for index, name in enumerate(names)}
    used = sorted({ref.label for ref in images.refs})
    own = {label: _composed(images.classes[label]) for label in used}
    unknown = [name for name in own.values() if name not in places]
    if unknown:
        lacking = [name for name in places if name not in own.values()]
        is_short = 0 < len(lacking) <= _MOST_NAMED
        also = f", and lacks {listed(lacking)} of {model}" if is_short else ""
        raise DataError(f"the classes of {called} must be classes of {model}",
                        seen=f"{called} has {listed(unknown)}, which {model} does not "
                             f"know{also}", hint=did_you_mean(unknown[0], places) + advice)
    if images.classes == names:
        return images
    return images.relabelled({label: places[own[label]] for label in used},
                             num_classes=len(names), classes=names)


def _require_logits(images: ImageSet, num_classes: int, model: str, advice: str) -> None:
    worst = max(images.refs, key=lambda ref: ref.label)
    if worst.label < num_classes:
        return
    raise DataError(f"labels must lie in 0..{num_classes - 1}, the classes of {model}",
                    seen=f"{shown(worst.id)} of {images.name} has label {worst.label}",
                    hint="labels and folders named by whole numbers are class indices and count "
                         f"from 0; mend them, or {advice}")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
