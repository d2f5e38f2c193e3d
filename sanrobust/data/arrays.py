"""Sets of images that are arrays: of a program, or in an NPZ, PT or safetensors file.

Files hold ``images`` and ``labels``, or one of the other pairs of `NAMES`, and if they like ``ids``
and ``classes``, text. Letters as in `sanrobust.data.items`.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sanrobust.data.imageset import ImageRef, require_fit_ids
from sanrobust.data.items import (FORMS, ItemImages, arranged, as_array, described, label_of,
                                  misfit)
from sanrobust.errors import DataError, SanrobustError, UsageError, first_line

NAMES = (("images", "labels"), ("x", "y"), ("x_test", "y_test"), ("data", "targets"))
_OPTIONAL = ("ids", "classes")
_NPY = ".npy"


def open_arrays(path: Path, *, name: str) -> ItemImages:
    """Read a file of arrays once.

    Raises DataError where it cannot be read, wants to run code, claims more than it holds, or does
    not hold images and labels.
    """
    read = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(path.suffix.lower(), _read_pt)
    try:
        found = read(path)
    except SanrobustError:
        raise
    # Damaged and hostile files make readers raise nearly any type; all mean the same to us.
    except Exception as error:
        raise DataError("a file of arrays must be whole and hold nothing but arrays and text",
                        seen=f"{path} does not read back ({first_line(error)})",
                        hint="write it with numpy.savez, torch.save of a dict of tensors, or "
                             "safetensors") from error
    pair = next((pair for pair in NAMES if set(pair) <= set(found)), None)
    if pair is None:
        there = ", ".join(map(str, found)) or "nothing"
        raise DataError("a file of arrays must hold images and labels by these names",
                        seen=f"{path} holds {there}"[:300],
                        hint="name them " + ", or ".join(" and ".join(each) for each in NAMES))
    return array_images(found[pair[0]], found[pair[1]], name=name, where=str(path),
                        ids=found.get("ids"), classes=found.get("classes"), error=DataError)


def array_images(images: object, labels: object, *, name: str, where: str, ids: object = None,
                 classes: object = None, error: type[SanrobustError] = UsageError) -> ItemImages:
    """Return arrays or tensors as a set of images.

    Args:
        images: one of `FORMS`.
        labels: (N,) whole numbers of 0 or more.
        name: of the set.
        where: whose they are, for messages.
        ids: names of the images, all different; their numbers by default.
        classes: names of the classes by index; None when unknown.
        error: what is raised for anything else.
    """
    pixels = as_array(images)
    reason = described(images) if pixels is None else misfit(pixels)
    if pixels is None or reason is not None:
        raise error("images must be " + FORMS, seen=f"{where} has {reason}", hint=_hint(pixels))
    found = _labels(labels, len(pixels), where, error)
    names = ([str(place) for place in range(len(pixels))] if ids is None
             else _texts("ids", ids, where, error))
    if len(names) != len(pixels) or len(set(names)) < len(names):
        raise error("each image must have an id of its own",
                    seen=f"{where} has {len(pixels)} images and {len(set(names))} different ids",
                    hint="leave ids out to number them")
    require_fit_ids(names)
    words = None if classes is None else tuple(_texts("classes", classes, where, error))
    _require_named(found, words, where, error)
    refs = tuple(ImageRef(each, label) for each, label in zip(names, found, strict=True))
    return ItemImages(name, refs, None if words is None else len(words), arranged(pixels),
                      tuple(range(len(refs))), classes=words)


def _hint(pixels: Any) -> str:
    if pixels is not None and pixels.dtype in (np.float64, np.float16):
        return "turn them into float32 in [0, 1], or into uint8 levels"
    if pixels is not None and pixels.dtype == np.float32:
        return ("give pixels as they are before normalisation, which belongs to the model, with "
                "channels first")
    return "give uint8 levels as they come from files, or float32 in [0, 1] with channels first"


def _labels(labels: object, count: int, where: str, error: type[SanrobustError]) -> list[int]:
    rule = "labels must be whole numbers of 0 or more, one for each image"
    array = as_array(labels)
    values: Any = array if array is not None else labels
    is_row = (isinstance(values, (list, tuple)) if array is None else array.ndim == 1)
    if not is_row or len(values) != count:
        seen = (f"{where} has {len(values)} for {count} images" if is_row
                else f"those of {where} are {described(labels)} for {count} images")
        raise error(rule, seen=seen, hint="give class indices as they count in the model's logits; "
                    "of one-hot rows, their argmax")
    try:
        return [label_of(value) for value in (values.tolist() if array is not None else values)]
    except ValueError as wrong:
        raise error(rule, seen=f"{where} has {wrong}",
                    hint="give class indices as they count in the model's logits") from wrong


def _texts(what: str, values: object, where: str, error: type[SanrobustError]) -> list[str]:
    """Return texts; those of other kinds are refused."""
    found = values.tolist() if isinstance(values, np.ndarray) and values.ndim == 1 else values
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, str) for each in found):
        raise error(f"{what} must be a sequence of texts",
                    seen=f"those of {where} are {described(values)}", hint=f"leave {what} out")
    return list(found)


def _require_named(labels: Sequence[int], classes: Sequence[str] | None, where: str,
                   error: type[SanrobustError]) -> None:
    if classes is None:
        return
    if len(set(classes)) < len(classes) or max(labels) >= len(classes):
        raise error("classes must be a different name for each class index",
                    seen=f"{where} has {len(set(classes))} names and labels up to {max(labels)}",
                    hint="complete them, or leave classes out")


def _read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of known names, none of which is unpickled or larger than it says."""
    wanted = {name for pair in NAMES for name in pair} | set(_OPTIONAL)
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(_NPY)]
        chosen = [entry for entry in entries if entry.filename[:-len(_NPY)] in wanted]
        _require_memory(path, sum(entry.file_size for entry in chosen))
        if not chosen:
            return {entry.filename[:-len(_NPY)]: None for entry in entries}
        return {entry.filename[:-len(_NPY)]: _read_npy(archive, entry) for entry in chosen}


def _read_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    headers: Mapping[tuple[int, int], Callable[..., Any]] = {
        (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        shape, is_fortran, dtype = headers[version](stream)
        claimed = math.prod(shape) * dtype.itemsize + stream.tell()
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} holds objects of Python")
        if min(shape, default=1) < 0 or claimed != entry.file_size:
            raise ValueError(f"{entry.filename} says {dtype} {shape}, which it does not hold")
        data = bytearray(entry.file_size - stream.tell())
        if stream.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise ValueError(f"{entry.filename} is cut off")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _read_pt(path: Path) -> dict[str, Any]:
    import torch
    _require_memory(path, path.stat().st_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, (tuple, list)) and len(found) == 2:
        found = dict(zip(NAMES[0], found))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {described(found)}")
    for name, value in found.items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided \
                and value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"{name} says {described(value)}, which it does not hold")
    return {str(name): value for name, value in found.items()}


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file
    _require_memory(path, path.stat().st_size)
    return dict(load_file(path))


def _require_memory(path: Path, needed: int) -> None:
    import torch

    from sanrobust.device import free_memory
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise DataError("arrays must fit into memory",
                        seen=f"{path} says that it holds {needed / 1e9:.1f} GB, where "
                             f"{free / 1e9:.1f} are free",
                        hint="cut it into several files, or make an archive of images")
