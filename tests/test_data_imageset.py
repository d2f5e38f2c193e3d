"""Digests and subsets of image sets."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sanrobust.data.digits import open_digits
from sanrobust.data.folders import class_folders, labelled_folder
from sanrobust.data.imageset import ArrayImages, FileImages, ImageRef, subset
from sanrobust.errors import DataError, UsageError
from image_files import class_tree, flat_folder, write_lines


# Computed by the first version: run ids of the digits follow from such digests.
PINNED = "0fc7f58c3212ab908c20a4422c6f9ffb621cbb25ed2621310fbf1040fff468b2"
DIGITS = "f340ecf618935c6cd78b97a172ff503796dab3d6096185186d09a4e54a6ab1ae"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return class_tree(tmp_path / "birds", {"crow": ["1.png", "2.png"], "owl": ["1.png"]})


def _array_images(count: int = 20) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 4)).astype(np.uint8)
    refs = tuple(ImageRef(f"set/{index:02d}", index % 3) for index in range(count))
    return ArrayImages("set", refs, 3, pixels)


def test_the_digest_covers_one_line_of_id_label_and_content_per_image(tree: Path) -> None:
    lines = "".join(
        f"{name}\t{label}\t{hashlib.sha256((tree / name).read_bytes()).hexdigest()}\n"
        for name, label in [("crow/1.png", 0), ("crow/2.png", 0), ("owl/1.png", 1)])
    assert class_folders(tree).digest == hashlib.sha256(lines.encode()).hexdigest()


def test_the_digest_does_not_depend_on_where_the_folder_lies(tree: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tree, tmp_path / "elsewhere" / "named-otherwise")
    assert class_folders(moved).digest == class_folders(tree).digest


def test_the_digest_changes_with_a_files_size(tree: Path) -> None:
    before = class_folders(tree).digest
    with (tree / "owl" / "1.png").open("ab") as stream:
        stream.write(b"\0")
    assert class_folders(tree).digest != before


def test_the_digest_changes_with_a_files_name(tree: Path) -> None:
    before = class_folders(tree).digest
    (tree / "owl" / "1.png").rename(tree / "owl" / "3.png")
    assert class_folders(tree).digest != before


def test_the_digest_changes_with_a_label(tmp_path: Path) -> None:
    folder, labels = flat_folder(tmp_path / "flat", {"a.png": 1, "b.png": 2})
    before = labelled_folder(folder, labels).digest
    write_lines(labels, ["file,class_index", "a.png,1", "b.png,3"])
    assert labelled_folder(folder, labels).digest != before


def test_a_file_that_vanished_before_the_digest_is_a_data_error(tree: Path) -> None:
    images = class_folders(tree)
    (tree / "owl" / "1.png").unlink()
    with pytest.raises(DataError, match="owl/1.png is not"):
        _ = images.digest


def test_the_digest_of_arrays_changes_with_one_pixel_and_with_one_label() -> None:
    images = _array_images()
    pixels = images.pixels.copy()
    pixels[3, 2, 1] ^= 1
    relabelled = (*images.refs[:-1], ImageRef(images.refs[-1].id, 2))
    digests = {images.digest, replace(images, pixels=pixels).digest,
               replace(images, refs=relabelled).digest}
    assert len(digests) == 3


def test_the_digest_of_arrays_is_pinned_so_that_old_runs_can_be_resumed() -> None:
    assert _array_images().digest == PINNED
    assert replace(_array_images(), classes=("a", "b", "c")).digest == PINNED
    assert open_digits("test").digest == DIGITS


def test_relabelled_images_have_a_digest_of_their_own_and_keep_the_rest(tree: Path) -> None:
    for images in (class_folders(tree), _array_images()):
        turned = images.relabelled({0: 2, 1: 0, 2: 1}, num_classes=5, classes=None)
        assert [ref.label for ref in turned.refs] == [(ref.label + 2) % 3 for ref in images.refs]
        assert turned.name == images.name and turned.num_classes == 5
        assert turned.load(0).tobytes() == images.load(0).tobytes()
        assert turned.take([1]).refs == turned.refs[1:2]
        same = images.relabelled({0: 0, 1: 1, 2: 2}, num_classes=None, classes=None)
        assert turned.digest != images.digest == same.digest


def test_array_images_are_rgb_with_equal_channels_for_greyscale() -> None:
    images = _array_images()
    decoded = np.asarray(images.load(5))
    assert decoded.shape == (4, 4, 3)
    assert all(np.array_equal(decoded[..., channel], images.pixels[5]) for channel in range(3))


def test_a_subset_takes_the_smallest_hashes_in_the_order_of_the_set() -> None:
    images = _array_images()
    ids = [ref.id for ref in images.refs]
    hashes = {i: hashlib.sha256(b"sanrobust-subset\0" + i.encode()).digest() for i in ids}
    chosen = sorted(sorted(ids, key=lambda image_id: hashes[image_id])[:7])
    assert [ref.id for ref in subset(images, 7).refs] == chosen


def test_a_subset_keeps_each_image_with_its_label_and_pixels() -> None:
    images = _array_images()
    part = subset(images, 5)
    for index, ref in enumerate(part.refs):
        original = images.refs.index(ref)
        assert part.load(index).tobytes() == images.load(original).tobytes()


def test_a_smaller_subset_is_part_of_a_larger_one(tree: Path) -> None:
    images = class_folders(tree)
    assert set(subset(images, 1).refs) < set(subset(images, 2).refs) < set(images.refs)


def test_a_subset_of_all_images_has_the_digest_of_the_set(tree: Path) -> None:
    images = class_folders(tree)
    assert subset(images, 3).digest == images.digest == subset(images, None).digest
    assert subset(images, 2).digest != images.digest


@pytest.mark.parametrize("num_samples", [0, -1, 21])
def test_a_subset_of_an_impossible_size_is_refused(num_samples: int) -> None:
    with pytest.raises(UsageError, match=f"between 1 and the 20 images.*it is {num_samples}"):
        subset(_array_images(), num_samples)


def test_labels_and_pixels_of_different_length_never_become_a_set() -> None:
    with pytest.raises(ValueError, match="20 labels for 19 images"):
        replace(_array_images(), pixels=_array_images().pixels[:-1])


def test_file_images_load_what_their_id_names(tree: Path) -> None:
    images = FileImages("birds", tree, (ImageRef("owl/1.png", 4),), None)
    assert images.load(0).size == (12, 10)
