"""Opening a dataset by its name, its folder, or as a program holds it."""

from __future__ import annotations

import os
from pathlib import Path

from sanrobust.data.catalog import DATASETS, resolve
from sanrobust.data.classes import fit_classes
from sanrobust.data.dataset import Dataset, Request, Split
from sanrobust.data.folders import class_folders, labelled_folder
from sanrobust.data.imageset import ImageSet, require_fit_ids, subset
from sanrobust.data.places import Place
from sanrobust.errors import DataError, UsageError


def open_dataset(name_or_path: str, *, root: Path | None, split: Split = "test",
                 labels: Path | None = None, class_map: Path | None = None,
                 download: bool = False, num_samples: int | None = None,
                 name: str | None = None) -> ImageSet:
    """Open a dataset of the catalogue, or images of the user's own, as an `ImageSet`.

    Args:
        name_or_path: a name of the catalogue or what else ``--data`` takes, which has no splits and
            is used as it is.
        root: where named datasets lie, as torchvision lays them out; ``digits`` and folders do
            without.
        split: ``test`` (ImageNet's and Imagenette's ``val``) or ``train``.
        labels: CSV ``file,class_index`` for a folder without class subfolders.
        class_map: CSV ``folder,class_index`` that gives class subfolders their indices.
        download: fetch a missing dataset into ``root`` where torchvision can.
        num_samples: keep this many images, chosen by the hash of their ids.
        name: what to call a folder or file in tables; by default its own name.

    Raises UnknownNameError for a word that is neither a name nor a path, UsageError for options
    that do not go together, DataError for data that are missing or damaged, and DownloadError.
    """
    if labels is not None and class_map is not None:
        raise UsageError("--labels and --class-map must not be given together",
                         seen="both are", hint="keep --labels for a folder without class "
                         "subfolders, --class-map for one with them")
    found = resolve(name_or_path)
    if not isinstance(found, Dataset):
        _refuse_download(name_or_path, download)
        images = (_open_place(found, labels=labels, class_map=class_map, name=name)
                  if isinstance(found, Place)
                  else _open_folder(found, labels=labels, class_map=class_map, name=name))
        return subset(images, num_samples)
    _refuse_folder_options(found, labels=labels, class_map=class_map, name=name)
    images = found.open(Request(root=root, split=split, download=download))
    _require_complete(found, images, split)
    return subset(images, num_samples)


def as_named(images: ImageSet, name: str | None) -> ImageSet:
    """Return images of the user's own, said to be those of a dataset, with the classes of that."""
    return images if name is None or name not in DATASETS else _as_known(images, DATASETS.get(name))


def _open_place(place: Place, *, labels: Path | None, class_map: Path | None,
                name: str | None) -> ImageSet:
    option = "--labels" if labels else "--class-map" if class_map else None
    if option is not None:
        raise UsageError(f"{option} must go with a folder of images",
                         seen=f"--data is {place.word}, which has labels",
                         hint=f"leave {option} out")
    own = f"{place.name} (file)" if place.name in DATASETS else place.name
    require_fit_ids([name or own])
    return as_named(place.opened(name or own), name)


def _open_folder(folder: Path, *, labels: Path | None, class_map: Path | None,
                 name: str | None) -> ImageSet:
    chosen = name or _unmistakable_name(folder)
    images = (class_folders(folder, class_map=class_map, name=chosen) if labels is None
              else labelled_folder(folder, labels, name=chosen))
    return as_named(images, name)


def _as_known(images: ImageSet, info: Dataset) -> ImageSet:
    """Return a folder that is said to hold a known dataset with the classes of that."""
    known = DATASETS.get(info.classes)
    fitted = fit_classes(images, names=known.class_names, num_classes=known.num_classes,
                         model=info.name, advice="map folders to classes with --class-map FILE, "
                         "or leave --data-name out", called="what --data names")
    same = {ref.label: ref.label for ref in fitted.refs}
    return fitted.relabelled(same, num_classes=known.num_classes,
                             classes=fitted.classes or known.class_names)


def _unmistakable_name(folder: Path) -> str | None:
    """Return a name for a folder that is called like a known dataset, else None for its own."""
    own = os.path.basename(os.path.realpath(folder))
    return f"{own} (folder)" if own in DATASETS else None


def _require_complete(info: Dataset, images: ImageSet, split: Split) -> None:
    expected = info.train_images if split == "train" else info.test_images
    if len(images.refs) != expected:
        raise DataError(f"the {split} split of {info.name} must have its {expected} images",
                        seen=f"{len(images.refs)} are there",
                        hint="fetch it anew, or measure what is there by giving its folder to "
                             "--data")


def _refuse_download(word: str, download: bool) -> None:
    if download:
        raise UsageError("--download must go with a dataset's name",
                         seen=f"--data is {word}", hint="leave --download out")


def _refuse_folder_options(info: Dataset, *, labels: Path | None,
                           class_map: Path | None, name: str | None) -> None:
    option = ("--labels" if labels else "--class-map" if class_map
              else "--data-name" if name else None)
    if option is not None:
        raise UsageError(f"{option} must go with a folder of images",
                         seen=f"--data is the dataset {info.name}",
                         hint=f"leave {option} out, or give --data the folder itself")
