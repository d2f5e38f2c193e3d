"""Sets of images that a program holds and gives to a function of ours, whatever their kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import (BatchSampler, DataLoader, IterableDataset, RandomSampler,
                              SequentialSampler, SubsetRandomSampler, default_collate)

from sanrobust.data.arrays import array_images
from sanrobust.data.decode import ImageError
from sanrobust.data.imageset import ImageRef, ImageSet
from sanrobust.data.items import ItemImages, as_pixels, described, label_of, sum_of
from sanrobust.errors import DataError, UsageError, first_line

MOST_HELD = 1 << 32
"""Bytes of pixels that are read into memory of a dataset that can be read once only."""
_KINDS = ("(images, labels) as arrays or tensors, a torch.utils.data.Dataset of (image, label), or "
          "its DataLoader")
_IMAGE, _LABEL = ("image", "img", "pixel_values"), ("label", "labels")


def open_held(data: Any, *, name: str | None) -> ImageSet:
    """Return what a program holds as a set of images, with its place there as an image's id.

    A loader gives its dataset, in the dataset's order. Of a dataset each item is read once here,
    for its label and the digest, and once more when it is measured.

    Raises UsageError for what is no set of images with labels.
    """
    left_out: tuple[str, ...] = ()
    if isinstance(data, DataLoader):
        if data.collate_fn is not default_collate:
            left_out = ("the loader's own collate_fn is not used, its dataset's items are",)
        data = _behind(data)
    if isinstance(data, (tuple, list, Mapping)):
        return _open_arrays(data, name)
    if type(data).__module__.partition(".")[0] == "datasets":
        from sanrobust.data.hub import open_table
        return open_table(data, name=name or "dataset", where="the dataset")
    chosen = name or type(data).__name__
    if isinstance(data, IterableDataset) or not hasattr(type(data), "__getitem__"):
        return replace(_read_once(data, chosen), left_out=left_out)
    return replace(_read_through(data, chosen), left_out=left_out)


def _open_arrays(data: Any, name: str | None) -> ItemImages:
    if isinstance(data, Mapping) or len(data) not in (2, 3) or isinstance(data[0], str):
        raise UsageError(f"data must be a name, a path, {_KINDS}",
                         seen=f"it is a {type(data).__name__} of {len(data)}",
                         hint="give for example data=(images, labels)")
    ids = None if len(data) == 2 else data[2]
    return array_images(data[0], data[1], ids=ids, name=name or "images", where="data")


def _behind(loader: DataLoader[Any]) -> Any:
    """Return the images that a loader gives, in the order of its dataset."""
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset):
        return dataset
    sampler: Any = loader.sampler
    whole = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement
        and sampler.num_samples == len(dataset))
    is_usual = type(loader.batch_sampler) in (BatchSampler, type(None))
    if whole and is_usual:
        return dataset
    if isinstance(sampler, SubsetRandomSampler) and is_usual:
        return torch.utils.data.Subset(dataset, sorted(set(map(int, sampler.indices))))
    odd = sampler if is_usual else loader.batch_sampler
    raise UsageError("a loader must go through its dataset once", seen="its images are chosen by "
                     f"a {type(odd).__name__}", hint="give the dataset itself, or a "
                     "torch.utils.data.Subset of it")


def _read_through(dataset: Any, name: str) -> ItemImages:
    """Read a dataset whose items can be had again, each once."""
    try:
        count = len(dataset)
    except TypeError as error:
        raise UsageError(f"data must be a name, a path, {_KINDS}",
                         seen=f"it is {described(dataset)}, which has no length",
                         hint="give its images and labels") from error
    labels: list[int] = []
    sums: dict[int, bytes] = {}
    for place in range(count):
        image, label = _pair(_item(dataset, place), place)
        labels.append(label)
        sums[place] = sum_of(_pixels(image, place))
    return _set(_Images(dataset), labels, name, sums, _classes(dataset, labels))


def _item(dataset: Any, place: int) -> Any:
    try:
        return dataset[place]
    except Exception as error:  # the user's own code
        raise DataError("every item of a dataset must be there",
                        seen=f"item {place} stopped with {type(error).__name__}: "
                             f"{first_line(error)}",
                        hint="mend it, or leave it out with torch.utils.data.Subset") from error


def _read_once(dataset: Any, name: str) -> ItemImages:
    """Read a dataset that may be gone through once, into memory."""
    if not isinstance(dataset, Iterable):
        raise UsageError(f"data must be a name, a path, {_KINDS}",
                         seen=f"it is {described(dataset)}",
                         hint="give for example data=(images, labels)")
    held, labels, size = [], [], 0
    for place, item in enumerate(dataset):
        image, label = _pair(item, place)
        pixels = _pixels(image, place)
        held.append(pixels.copy())
        labels.append(label)
        size += pixels.nbytes
        if size > MOST_HELD:
            raise UsageError("a dataset that is read as a stream must fit into "
                             f"{MOST_HELD >> 30} GB of pixels", seen=f"its first {len(held)} "
                             "images take more", hint="give a dataset with __len__ and "
                             "__getitem__, or write tar shards and give their path")
    return _set(held, labels, name, {}, None)


def _set(items: Any, labels: list[int], name: str, sums: dict[int, bytes],
         classes: tuple[str, ...] | None) -> ItemImages:
    if not labels:
        raise UsageError("data must hold images", seen="it is empty", hint="give at least one")
    refs = tuple(ImageRef(str(place), label) for place, label in enumerate(labels))
    return ItemImages(name, refs, None if classes is None else len(classes), items,
                      tuple(range(len(refs))), classes=classes, sums=sums)


class _Images:
    """The images of a dataset without their labels."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __getitem__(self, place: int) -> object:
        return _pair(self._dataset[place], place)[0]


def _pair(item: Any, place: int) -> tuple[object, int]:
    """Return an item's image and label; raises UsageError."""
    found: list[Any] = []
    if isinstance(item, Mapping):
        found = [item[name] for names in (_IMAGE, _LABEL) for name in names if name in item]
    elif isinstance(item, (tuple, list)):
        found = list(item)[:2]
    if len(found) != 2:
        raise UsageError("each item of a dataset must be an image and its label",
                         seen=f"item {place} is {_kind(item)}",
                         hint="return (image, label) from its __getitem__")
    try:
        return found[0], label_of(found[1])
    except ValueError as error:
        raise UsageError("each label of a dataset must be a whole number of 0 or more",
                         seen=f"that of item {place} is {error}",
                         hint="give class indices as they count in the model's logits") from error


def _pixels(image: object, place: int) -> Any:
    try:
        return as_pixels(image)
    except ImageError as error:
        raise UsageError("each image of a dataset must be one of Pillow, uint8 levels, or float32 "
                         "in [0, 1] with channels first", seen=f"item {place} has {error}",
                         hint="leave normalisation out of its transform; it belongs to the model"
                         ) from error


def _kind(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a mapping of {', '.join(map(str, item))}"[:100]
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    return described(item)


def _classes(dataset: Any, labels: Iterable[int]) -> tuple[str, ...] | None:
    """Return the names that torchvision's datasets give their classes, where labels are theirs."""
    found = getattr(dataset, "classes", None)
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, str) for each in found) \
            or getattr(dataset, "target_transform", None) is not None \
            or len(set(found)) < len(found) or max(labels, default=0) >= len(found):
        return None
    return tuple(found)
