"""Image sets from folders: one subfolder per class, or any folder with a labels file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from sanrobust.data.decode import IMAGE_SUFFIXES
from sanrobust.data.imageset import FileImages, ImageRef
from sanrobust.data.labels import counted, read_class_map, read_labels
from sanrobust.errors import DataError

SPLIT_NAMES = frozenset(("train", "test", "val", "valid", "validation"))
# A surrogate stands for a byte that is not UTF-8; neither it nor a control character fits a CSV.
UNFIT_FOR_ID = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def class_folders(folder: Path, *, name: str | None = None,
                  class_map: Path | None = None) -> FileImages:
    """Read a folder with one subfolder per class, numbered in the order of their names.

    Images lie anywhere below their class folder; names that begin with a dot are skipped. With
    ``class_map``, a CSV ``folder,class_index``, the labels are the mapped ones and the number of
    classes is unknown. Raises DataError when the folder is not laid out like that.
    """
    indices = None if class_map is None else read_class_map(class_map)
    return mapped_folders(folder, name=name, indices=indices)


def mapped_folders(folder: Path, *, name: str | None = None,
                   indices: dict[str, int] | None = None) -> FileImages:
    """Do as `class_folders`, with the class index of each folder given; None counts them."""
    found = _images_by_class(folder)
    if indices is None:
        _require_images_in_all(found)
        labels = {class_name: index for index, class_name in enumerate(found)}
    else:
        labels = indices
        _require_all_mapped(found, labels)
    refs = tuple(ImageRef(path, labels[class_name])
                 for class_name, paths in found.items() for path in paths)
    _require_fit_names(ref.id for ref in refs)
    return FileImages(name or _folder_name(folder), folder, refs,
                      len(found) if indices is None else None)


def labelled_folder(folder: Path, labels: Path, *, name: str | None = None,
                    num_classes: int | None = None) -> FileImages:
    """Read the images that a CSV ``file,class_index`` names, in the order of their names.

    File names are paths inside ``folder``. Raises DataError when the file and the folder do not
    hold the same images, or a name leads out of the folder.
    """
    images = _images_below(folder)
    _require_images(folder, images)
    rows = {_inside(folder, file, labels): index for file, index in read_labels(labels).items()}
    absent = [file for file in rows if not (folder / file).is_file()]
    if absent:
        raise DataError("every file of the labels file must be in the folder of images",
                        seen=f"{counted(absent, 'file')} not in {folder}",
                        hint="check that --labels and --data belong together")
    unlabelled = [image for image in images if image not in rows]
    if unlabelled:
        raise DataError("every image of the folder must have a row in the labels file",
                        seen=f"{counted(unlabelled, 'image')} not in {labels.name}",
                        hint="add the rows, or move these images elsewhere")
    _require_fit_names(rows)
    refs = tuple(ImageRef(file, rows[file]) for file in sorted(rows))
    return FileImages(name or _folder_name(folder), folder, refs, num_classes)


def _images_by_class(folder: Path) -> dict[str, list[str]]:
    """Return the image paths, relative to ``folder``, of each class folder in order of name."""
    try:
        entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except OSError as error:
        raise _unreadable(folder, error) from error
    names = [entry for entry in entries if (folder / entry).is_dir()]
    found = {name: [f"{name}/{path}" for path in _images_below(folder / name)] for name in names}
    loose = [entry for entry in entries if entry not in found and _is_image(folder / entry)]
    if loose:
        raise DataError("images must lie in one subfolder per class",
                        seen=f"{counted(loose, 'image')} directly in {folder}",
                        hint="pass --labels FILE, a CSV with the columns file,class_index")
    _require_images(folder, [path for paths in found.values() for path in paths])
    if SPLIT_NAMES.issuperset(names):
        raise DataError("the subfolders must be the classes",
                        seen=f"those of {folder} are {', '.join(names)}",
                        hint=f"give one of them to --data, for example {folder / names[0]}")
    return found


def _images_below(folder: Path) -> list[str]:
    """Return the image files below ``folder`` as sorted relative paths with slashes.

    Links to files count; links to folders are not followed, so that no loop can catch us.
    """
    found: list[str] = []
    try:
        for place, subfolders, files in os.walk(folder, onerror=_raise):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            images = (Path(place, file) for file in files if not file.startswith("."))
            found.extend(path.relative_to(folder).as_posix() for path in images if _is_image(path))
    except OSError as error:
        raise _unreadable(folder, error) from error
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _inside(folder: Path, file: str, labels: Path) -> str:
    """Return the plain form of a file name from a CSV; raises DataError when it leads outside."""
    relative = PurePosixPath(file)
    escapes = not relative.parts or relative.is_absolute() or ".." in relative.parts
    if not escapes:
        place = folder / relative
        is_linked = any(path.is_symlink() for path in (place, *place.parents[:len(relative.parts)]))
        escapes = is_linked and not place.resolve().is_relative_to(folder.resolve())
    if escapes:
        raise DataError("file names of the labels file must lead to files inside the folder",
                        seen=f"{labels.name} names {file!r}",
                        hint="write them relative to the folder given to --data, and copy "
                             "linked files into it")
    return relative.as_posix()


def _require_images(folder: Path, images: Sequence[str]) -> None:
    if not images:
        raise DataError("the folder must hold images", seen=f"there is none in {folder}",
                        hint="check the path; images end in " + " ".join(sorted(IMAGE_SUFFIXES)))


def _require_images_in_all(found: dict[str, list[str]]) -> None:
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise DataError("every class folder must hold an image, because folders are counted",
                        seen=f"{counted(empty, 'folder')} without any",
                        hint="remove what is no class, or pass --class-map FILE, a CSV with the "
                             "columns folder,class_index")


def _require_all_mapped(found: dict[str, list[str]], indices: dict[str, int]) -> None:
    unmapped = [name for name, paths in found.items() if paths and name not in indices]
    if unmapped:
        raise DataError("every class folder must have a row in the class map",
                        seen=f"{counted(unmapped, 'folder')} without one",
                        hint="add it to the file given to --class-map")


def _require_fit_names(ids: Iterable[str]) -> None:
    for image_id in ids:
        if UNFIT_FOR_ID.search(image_id):
            raise DataError("image file names must be UTF-8 without control characters",
                            seen=f"there is one named {image_id!r}", hint="rename it")


def _folder_name(folder: Path) -> str:
    return folder.resolve().name or "images"


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError("the folder of images must be readable",
                     seen=f"{error.filename or folder} is not ({error.strerror})",
                     hint="check the path and its permissions")
