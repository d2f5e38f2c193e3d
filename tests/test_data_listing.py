"""What a folder holds: images through links and of every kind, and what is left out by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features
from torchvision.datasets.folder import default_loader

from sanrobust.data.decode import decode
from sanrobust.data.folders import class_folders, labelled_folder
from sanrobust.errors import DataError
from image_files import class_tree, flat_folder, noise, save_noise, write_lines

SUFFIXES = [".gif", ".jfif", ".jpe", ".apng", ".pbm", ".pnm",
            pytest.param(".avif", marks=pytest.mark.skipif(
                "avif" not in features.modules or not features.check("avif"),
                reason="this Pillow was built without AVIF"))]


def _ids(folder: Path) -> list[str]:
    return [ref.id for ref in class_folders(folder).refs]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_image_file_is_listed_and_decoded_as_in_torchvision(
        tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a").mkdir()
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".apng": "PNG", ".pbm": "PPM"}.get(suffix)
    image = noise((21, 13)).convert("1") if suffix == ".pbm" else noise((21, 13))
    for name in ("x" + suffix, "X" + suffix.upper()):
        image.save(tmp_path / "a" / name, format=kind)
    assert _ids(tmp_path) == [f"a/X{suffix.upper()}", f"a/x{suffix}"]
    path = tmp_path / "a" / f"x{suffix}"
    assert np.array_equal(np.asarray(decode(path)), np.asarray(default_loader(str(path))))


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_only_the_first_frame_of_an_animation_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 0, 200))]
    frames[0].save(tmp_path / f"moving{suffix}", save_all=True, append_images=frames[1:])
    red, _, blue = np.asarray(decode(tmp_path / f"moving{suffix}"))[0, 0]
    assert red > 150 and blue < 50


def test_what_is_no_image_is_counted_and_the_first_named(tmp_path: Path) -> None:
    class_tree(tmp_path, {"a": ["1.png", "._1.png"], "b": ["1.png"], ".cache": ["2.png"]})
    for name in ("README.md", "a/notes.txt", "b/sub/raw.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = class_folders(tmp_path)
    assert len(images.refs) == 2
    assert images.left_out == (
        "left out 3 files that are not named as images (the first is README.md)",)


def test_a_folder_of_images_alone_leaves_nothing_out(tmp_path: Path) -> None:
    class_tree(tmp_path, {"a": ["1.png", "._1.png"], ".cache": ["2.png"]})
    assert class_folders(tmp_path).left_out == ()


def test_files_that_the_command_names_are_not_left_out(tmp_path: Path) -> None:
    folder, labels = flat_folder(tmp_path / "flat", {"a.png": 1, "b.png": 0})
    assert labels.parent == folder
    assert labelled_folder(folder, labels).left_out == ()
    (folder / "c.raw").touch()
    assert labelled_folder(folder, labels).left_out == (
        "left out 1 file that is not named as an image (c.raw)",)
    save_noise(folder / "c.png").rename(folder / "c.raw")
    write_lines(labels, ["file,class_index", "a.png,1", "b.png,0", "c.raw,2"])
    assert labelled_folder(folder, labels).left_out == ()
    tree = class_tree(tmp_path / "tree", {"a": ["1.png"]})
    class_map = write_lines(tree / "map.csv", ["folder,class_index", "a,3"])
    assert class_folders(tree, class_map=class_map).left_out == ()


def test_links_to_nowhere_pipes_and_links_to_themselves_are_counted(tmp_path: Path) -> None:
    class_tree(tmp_path, {"a": ["1.png"]})
    os.symlink("gone.png", tmp_path / "a" / "2.png")
    os.symlink("3.png", tmp_path / "a" / "3.png")
    os.mkfifo(tmp_path / "a" / "4.png")
    os.symlink("gone", tmp_path / "b")
    images = class_folders(tmp_path)
    assert [ref.id for ref in images.refs] == ["a/1.png"]
    assert images.left_out == ("left out 4 names that lead to no file (the first is b)",)


def test_linked_subfolders_and_files_are_followed(tmp_path: Path) -> None:
    far = class_tree(tmp_path / "far", {"deep": ["1.png"], "more": ["2.png"]})
    os.symlink(far / "more", far / "deep" / "on")
    folder = class_tree(tmp_path / "x", {"a": ["0.png"]})
    os.symlink(far / "deep", folder / "a" / "linked")
    os.symlink(far / "more" / "2.png", folder / "a" / "3.png")
    images = class_folders(folder)
    assert [ref.id for ref in images.refs] == [
        "a/0.png", "a/3.png", "a/linked/1.png", "a/linked/on/2.png"]
    assert images.left_out == () and images.load(3).size == (12, 10)


@pytest.mark.parametrize("link, target", [
    ("a/up", ".."), ("a/self", "."), ("a/sub/up", "../.."), ("loop", "."), ("loop", "../x"),
    ("a/around", "../../x/a"), ("a/above", "../..")])
def test_links_that_lead_back_are_left_out_and_said(
        tmp_path: Path, link: str, target: str) -> None:
    folder = class_tree(tmp_path / "x", {"a": ["1.png", "sub.png"], "b": ["1.png"]})
    (folder / "a" / "sub").mkdir()
    os.symlink(target, folder / link)
    images = class_folders(folder)
    assert [ref.id for ref in images.refs] == ["a/1.png", "a/sub.png", "b/1.png"]
    assert images.left_out == (f"left out 1 linked folder that is read already ({link})",)


def test_a_folder_is_read_once_and_under_its_own_name(tmp_path: Path) -> None:
    folder = class_tree(tmp_path / "x", {"a": ["0.png"], "a/real": ["1.png"]})
    os.symlink("real", folder / "a" / "alias")
    for name in ("first", "second"):
        os.symlink(class_tree(tmp_path / "far", {"": ["2.png"]}), folder / "a" / name)
    images = class_folders(folder)
    assert [ref.id for ref in images.refs] == ["a/0.png", "a/first/2.png", "a/real/1.png"]
    assert images.left_out == (
        "left out 2 linked folders that are read already (the first is a/alias)",)


def test_two_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    class_tree(tmp_path / "x", {"a": ["1.png"]})
    class_tree(tmp_path / "y", {"b": ["2.png"]})
    os.symlink(tmp_path / "y" / "b", tmp_path / "x" / "a" / "there")
    os.symlink(tmp_path / "x" / "a", tmp_path / "y" / "b" / "back")
    assert _ids(tmp_path / "x") == ["a/1.png", "a/there/2.png"]


def test_links_into_one_tree_list_no_image_twice(tmp_path: Path) -> None:
    far = class_tree(tmp_path / "far", {"": ["1.png"], "sub": ["2.png"]})
    folder = class_tree(tmp_path / "x", {"a": ["0.png"]})
    os.symlink(far / "sub", folder / "a" / "inner")
    os.symlink(far, folder / "a" / "outer")
    assert _ids(folder) == ["a/0.png", "a/inner/2.png", "a/outer/1.png"]


def test_a_class_folder_that_cannot_be_named_is_refused(tmp_path: Path) -> None:
    try:
        os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9/a")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    save_noise(folder / "a" / "1.png")
    with pytest.raises(DataError, match="must have a name in UTF-8"):
        class_folders(folder)
