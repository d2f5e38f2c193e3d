"""Image sets from folders: one subfolder per class, or any folder with a labels file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from sanrobust.csvfiles import MAX_INDEX_DIGITS, counted, shown
from sanrobust.data.decode import IMAGE_SUFFIXES
from sanrobust.data.imageset import FileImages, ImageRef, require_fit_ids
from sanrobust.data.labels import read_class_map, read_labels
from sanrobust.data.listing import Listing, is_image_name, leads_back, listing, unreadable
from sanrobust.errors import DataError
from sanrobust.files import UNFIT_FOR_TEXT

SPLIT_NAMES = frozenset(("train", "test", "val", "valid", "validation"))
ENOUGH_ABSENT = 100  # files that are looked for in vain before the rest is believed absent too
MOST_CLASSES = 1 << 20  # numbers beyond it are no class indices of any model


def class_folders(folder: Path, *, name: str | None = None,
                  class_map: Path | None = None) -> FileImages:
    """Read a folder with one subfolder per class.

    Subfolders whose names are all whole numbers are class indices (``0``, ``1``, or ``00``,
    ``01``); others are numbered in the order of their names, capitals first. Images lie anywhere
    below their class folder; names that begin with a dot are skipped, links are followed. With
    ``class_map``, a CSV ``folder,class_index``, the labels are the mapped ones and the number of
    classes is unknown. Raises DataError when the folder is not laid out like that.
    """
    found, rest = _by_class(folder)
    if class_map is None:
        return _image_set(folder, found, rest, name=name, indices=None)
    return _image_set(folder, found, rest, name=name, used=_within(folder, class_map),
                      indices=read_class_map(class_map, present=found))


def mapped_folders(folder: Path, *, name: str, indices: dict[str, int] | None = None
                   ) -> FileImages:
    """Do as `class_folders`, with the class index of each folder given; None numbers them."""
    found, rest = _by_class(folder)
    return _image_set(folder, found, rest, name=name, indices=indices)


def labelled_folder(folder: Path, labels: Path, *, name: str | None = None) -> FileImages:
    """Read the images that a CSV ``file,class_index`` names, in the order of their names.

    File names are paths inside ``folder``, through links if need be. Raises DataError when the
    file and the folder do not hold the same images, or a name leads out of the folder.
    """
    found = listing(folder)
    _require_images(folder, found.images)
    present = {*found.images, *found.others}
    rows = read_labels(labels, present=present)
    absent = list(islice((file for file in rows
                          if file not in present and not os.path.isfile(folder / file)),
                         ENOUGH_ABSENT))
    if absent:
        at_least = "at least " if len(absent) == ENOUGH_ABSENT else ""
        raise DataError("every file of the labels file must be in the folder of images",
                        seen=f"{at_least}{counted(absent, 'file')} not in {folder}",
                        hint="check that --labels and --data belong together")
    unlabelled = [image for image in found.images if image not in rows]
    if unlabelled:
        raise DataError("every image of the folder must have a row in the labels file",
                        seen=f"{counted(unlabelled, 'image')} not in {labels.name}",
                        hint="add the rows, or move these images elsewhere")
    require_fit_ids(rows)
    refs = tuple(ImageRef(file, rows[file]) for file in sorted(rows))
    return FileImages(name or _folder_name(folder), folder, refs, None,
                      left_out=found.left_out(used={*rows, *_within(folder, labels)}))


def _image_set(folder: Path, found: dict[str, Listing], rest: Listing, *, name: str | None,
               indices: dict[str, int] | None, used: Collection[str] = ()) -> FileImages:
    classes: tuple[str, ...] | None = None
    if indices is None:
        indices, classes = _numbered(folder, found)
    else:
        _require_all_mapped(found, indices)
    for class_name, below in found.items():
        rest.add(below, below=class_name)
    refs = tuple(ImageRef(f"{class_name}/{path}", indices[class_name])
                 for class_name, below in found.items() for path in below.images)
    require_fit_ids(ref.id for ref in refs)
    is_whole = classes is not None and len(classes) == len(found)
    return FileImages(name or _folder_name(folder), folder, refs,
                      len(found) if is_whole else None, classes=classes,
                      left_out=(*rest.left_out(used=used), *_odd_order(indices)))


def _odd_order(indices: dict[str, int]) -> Iterator[str]:
    """Say where folders that end in numbers are not numbered by them."""
    ordered = sorted(indices, key=lambda name: indices[name])
    for one, other in zip(ordered, ordered[1:], strict=False):
        (word, first), (same, second) = (_split_number(name) for name in (one, other))
        if word == same and first is not None and second is not None and first > second:
            yield (f"classes are numbered in the order of their names as text, in which "
                   f"{shown(one)} comes before {shown(other)}")
            return


def _split_number(name: str) -> tuple[str, int | None]:
    word = name.rstrip("0123456789")
    digits = name[len(word):]
    return word, int(digits) if 0 < len(digits) <= MAX_INDEX_DIGITS else None


def _by_class(folder: Path) -> tuple[dict[str, Listing], Listing]:
    """Return what lies below each class folder, in order of name, and what lies beside them."""
    try:
        entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError as error:
        raise unreadable(folder, error) from error
    found: dict[str, Listing] = {}
    rest = Listing()
    for entry in entries:
        path = folder / entry
        if not path.is_dir():
            kind = rest.unusable if not path.is_file() else rest.others
            (rest.images if path.is_file() and is_image_name(entry) else kind).append(entry)
        elif leads_back(path):
            rest.repeated.append(entry)
        else:
            found[entry] = listing(path)
    if rest.images:
        raise DataError("images must lie in one subfolder per class",
                        seen=f"{counted(rest.images, 'image')} directly in {folder}",
                        hint="give the folder of those subfolders, or measure with --labels "
                             "FILE, a CSV with the columns file,class_index")
    _require_images(folder, [path for below in found.values() for path in below.images])
    if SPLIT_NAMES.issuperset(found):
        example = folder / next(iter(found))
        raise DataError("the subfolders must be the classes",
                        seen=f"those of {folder} are {', '.join(found)}",
                        hint=f"give one of them to --data, for example {example}")
    return found, rest


def _numbered(folder: Path, found: dict[str, Listing]
              ) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Return the class index of each folder, and the names of the classes by index."""
    numbers = [name for name in found if name.isascii() and name.isdigit()]
    if len(numbers) == len(found):
        return _numbered_by_name(folder, found)
    if len(numbers) >= len(found) / 2:
        words = [name for name in found if name not in numbers]
        raise DataError("class folders must be named by class indices, all of them or few",
                        seen=f"{len(numbers)} of {len(found)} in {folder} are numbers, and "
                             f"{counted([shown(name) for name in words], 'folder')} not",
                        hint="rename it, or pass --class-map FILE, a CSV with the columns "
                             "folder,class_index")
    _require_images_in_all(found)
    # Two disks may hold the same letter in two forms, which sort differently.
    composed = {name: unicodedata.normalize("NFC", name) for name in found}
    ordered = sorted(found, key=lambda name: composed[name])
    for first, second in zip(ordered, ordered[1:], strict=False):
        if composed[first] == composed[second]:
            raise DataError("class folders must have different names",
                            seen=f"two in {folder} are both called {shown(first)}, in two Unicode "
                                 "forms", hint="rename one, or put their images together")
    return ({name: index for index, name in enumerate(ordered)},
            tuple(composed[name] for name in ordered))


def _numbered_by_name(folder: Path, names: Iterable[str]
                      ) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Read folders called by whole numbers as class indices; some may be missing."""
    by_index: dict[int, str] = {}
    for name in names:
        index = int(name[-MAX_INDEX_DIGITS - 1:])  # a longer one is refused, never computed
        if len(name.lstrip("0")) > MAX_INDEX_DIGITS:
            raise DataError("folders named by numbers must be class indices",
                            seen=f"one in {folder} is called {shown(name[:40])}",
                            hint="rename the folders with a letter in front")
        if index in by_index:
            raise DataError("folders named by numbers must be different class indices",
                            seen=f"{by_index[index]} and {name} in {folder} are both class {index}",
                            hint="put their images together, or rename one of them")
        by_index[index] = name
    most = max(by_index) + 1
    classes = tuple(str(index) for index in range(most)) if most <= MOST_CLASSES else None
    return {name: index for index, name in by_index.items()}, classes


def _within(folder: Path, file: Path) -> tuple[str, ...]:
    """Return the path of a file relative to the folder, when it lies below it."""
    try:
        inside = Path(os.path.realpath(file)).relative_to(os.path.realpath(folder))
    except ValueError:
        return ()
    return (inside.as_posix(),)


def _require_images(folder: Path, images: Sequence[str]) -> None:
    if not images:
        raise DataError("the folder must hold images", seen=f"there is none in {folder}",
                        hint="check the path; images end in " + " ".join(sorted(IMAGE_SUFFIXES)))


def _require_images_in_all(found: dict[str, Listing]) -> None:
    empty = [name for name, below in found.items() if not below.images]
    if empty:
        raise DataError("every class folder must hold an image, because folders are counted",
                        seen=f"{counted(empty, 'folder')} without any",
                        hint="remove what is no class, or pass --class-map FILE, a CSV with the "
                             "columns folder,class_index")


def _require_all_mapped(found: dict[str, Listing], indices: dict[str, int]) -> None:
    unmapped = [name for name, below in found.items() if below.images and name not in indices]
    if unmapped:
        raise DataError("every class folder must have a row in the class map",
                        seen=f"{counted(unmapped, 'folder')} without one",
                        hint="add it to the file given to --class-map")


def _folder_name(folder: Path) -> str:
    name = os.path.basename(os.path.realpath(folder)) or "images"
    if UNFIT_FOR_TEXT.search(name):
        raise DataError("the folder of images must have a name in UTF-8 without control characters",
                        seen=f"it is {name!r}", hint="rename it")
    return name
