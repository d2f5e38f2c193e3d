"""Folders of images: layouts, label files, and a sentence for each way to get them wrong."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from sanrobust.data.datasets import open_dataset
from sanrobust.data.folders import class_folders, labelled_folder
from sanrobust.data.imageset import ImageRef
from sanrobust.errors import DataError, SanrobustError, UsageError
from image_files import class_tree, flat_folder, save_noise, write_lines


@pytest.fixture
def flat(tmp_path: Path) -> tuple[Path, Path]:
    return flat_folder(tmp_path / "flat", {"b.JPEG": 7, "a.png": 3})


def _labels(images_folder: Path, *rows: str) -> Path:
    return write_lines(images_folder / "labels.csv", ["file,class_index", *rows])


def _sentence(error: pytest.ExceptionInfo[SanrobustError]) -> str:
    text = str(error.value)
    assert "\n" not in text and ", but " in text and ": " in text
    return text


def test_class_folders_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = class_tree(tmp_path / "x", {"b": ["2.png", "1.PNG"], "a": ["sub/3.jpg"],
                                         "B": ["0.bmp"]})
    images = class_folders(folder)
    assert [(ref.id, ref.label) for ref in images.refs] == [
        ("B/0.bmp", 0), ("a/sub/3.jpg", 1), ("b/1.PNG", 2), ("b/2.png", 2)]
    assert images.num_classes == 3 and images.name == "x"


def test_hidden_names_and_other_files_are_not_images(tmp_path: Path) -> None:
    folder = class_tree(tmp_path, {"a": ["1.png", "._1.png"], ".cache": ["2.png"]})
    write_lines(folder / "a" / "notes.txt", ["no image"])
    write_lines(folder / "README.md", ["no image"])
    assert [ref.id for ref in class_folders(folder).refs] == ["a/1.png"]


def test_a_class_folder_may_be_a_link_and_a_loop_of_links_does_not_hang(tmp_path: Path) -> None:
    class_tree(tmp_path / "real", {"a": ["1.png"]})
    (tmp_path / "linked").mkdir()
    os.symlink(tmp_path / "real" / "a", tmp_path / "linked" / "a")
    os.symlink(tmp_path / "real", tmp_path / "real" / "a" / "loop")
    assert [ref.id for ref in class_folders(tmp_path / "linked").refs] == ["a/1.png"]


def test_a_class_map_gives_the_labels_and_ignores_folders_that_are_absent(tmp_path: Path) -> None:
    folder = class_tree(tmp_path / "x", {"owl": ["1.png"], "crow": ["1.png"]})
    class_map = write_lines(tmp_path / "map.csv", ["folder,class_index", "owl,24", "crow,18",
                                                   "robin,15"])
    images = class_folders(folder, class_map=class_map)
    assert [(ref.id, ref.label) for ref in images.refs] == [("crow/1.png", 18), ("owl/1.png", 24)]
    assert images.num_classes is None


def test_a_class_map_that_lacks_folders_says_how_many_and_the_first(tmp_path: Path) -> None:
    folder = class_tree(tmp_path / "x", {name: ["1.png"] for name in ("owl", "crow", "robin")})
    class_map = write_lines(tmp_path / "map.csv", ["folder,class_index", "owl,24"])
    with pytest.raises(DataError) as caught:
        class_folders(folder, class_map=class_map)
    assert "2 folders are (the first is crow) without" in _sentence(caught)


def test_labels_are_read_by_file_name_and_other_columns_ignored(tmp_path: Path) -> None:
    folder, _ = flat_folder(tmp_path / "flat", {"b.JPEG": 7, "a.png": 3})
    labels = write_lines(tmp_path / "l.csv", ["\ufefffile,wnid,class_index", "b.JPEG,n01,7",
                                              "./a.png,n02, 3 "])
    images = labelled_folder(folder, labels)
    assert [(ref.id, ref.label) for ref in images.refs] == [("a.png", 3), ("b.JPEG", 7)]
    assert images.num_classes is None and images.name == "flat"


def test_labels_may_name_images_in_subfolders(tmp_path: Path) -> None:
    save_noise(tmp_path / "deep" / "er" / "a.png")
    labels = _labels(tmp_path, "deep/er/a.png,5")
    assert labelled_folder(tmp_path, labels).refs[0].label == 5


@pytest.mark.parametrize("rows, told", [
    (["a.png,3", "b.JPEG,7", "gone.png,1", "lost.png,1"],
     "2 files are (the first is gone.png) not in"),
    (["a.png,3"], "1 image is (b.JPEG) not in labels.csv"),
    (["a.png,3", "b.JPEG,7", "a.png,3"], "lines 2 and 4 of labels.csv both name a.png"),
    (["a.png,3", "b.JPEG,7", "./a.png,2"], "lines 2 and 4 of labels.csv both name a.png"),
    (["a.png,3", "b.JPEG,7", ".//a.png,3"], "lines 2 and 4 of labels.csv both name a.png"),
    (["a.png,3", "b.JPEG,7", ",1"], "line 4 of labels.csv gives '' the class_index '1'"),
    (["a.png,3", "b.JPEG,-1"], "line 3 of labels.csv has '-1' for b.JPEG"),
    (["a.png,3", "b.JPEG,1.0"], "'1.0'"),
    (["a.png,3", "b.JPEG,1_0"], "'1_0'"),
    (["a.png,3", "b.JPEG,"], "''"),
    (["a.png,3", "b.JPEG"], "''"),
    (["a.png,3", "b.JPEG,99999999999999999999"], "'99999999999999999999'"),
])
def test_a_labels_file_that_does_not_fit_says_where(
        flat: tuple[Path, Path], rows: list[str], told: str) -> None:
    with pytest.raises(DataError, match=re.escape(told)) as caught:
        labelled_folder(flat[0], _labels(flat[0], *rows))
    _sentence(caught)


@pytest.mark.parametrize("name", ["/etc/passwd", "../flat/a.png", "sub/../a.png", "..\\\\a.png",
                                  "."])
def test_a_file_name_that_leads_out_of_the_folder_is_refused(
        flat: tuple[Path, Path], name: str) -> None:
    with pytest.raises(DataError, match="inside the folder"):
        labelled_folder(flat[0], _labels(flat[0], "a.png,3", "b.JPEG,7", f"{name},1"))


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_in_the_folder_may_lead_anywhere(
        flat: tuple[Path, Path], tmp_path: Path, linked: str) -> None:
    outside = save_noise(tmp_path / "outside" / "far.png")
    source, name = ((outside, "out.png") if linked == "file" else (outside.parent, "out"))
    os.symlink(source, flat[0] / name)
    row = "out.png,1" if linked == "file" else "out/far.png,1"
    images = labelled_folder(flat[0], _labels(flat[0], "a.png,3", "b.JPEG,7", row))
    assert [ref.label for ref in images.refs] == [3, 7, 1]
    assert images.load(2).size == (12, 10)


def test_a_name_too_long_for_any_disk_and_a_link_to_itself_are_no_files(
        flat: tuple[Path, Path]) -> None:
    os.symlink("loop.png", flat[0] / "loop.png")
    labels = _labels(flat[0], "a.png,3", "b.JPEG,7", "loop.png,1", "n" * 300 + ".png,1")
    with pytest.raises(DataError, match=re.escape("2 files are (the first is loop.png) not in")):
        labelled_folder(flat[0], labels)


def test_a_pipe_as_labels_file_is_refused_instead_of_waited_for(flat: tuple[Path, Path]) -> None:
    os.mkfifo(flat[0] / "pipe.csv")
    with pytest.raises(DataError, match="pipe.csv cannot be opened .not a regular file"):
        labelled_folder(flat[0], flat[0] / "pipe.csv")


@pytest.mark.parametrize("on_disk, in_file", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_in_the_other_unicode_form_is_found(
        tmp_path: Path, on_disk: Literal["NFC", "NFD"], in_file: Literal["NFC", "NFD"]) -> None:
    name, typed = (unicodedata.normalize(form, "caf\u00e9.png") for form in (on_disk, in_file))
    save_noise(tmp_path / "x" / name)
    labels = write_lines(tmp_path / "l.csv", ["file,class_index", f"{typed},4"])
    assert [(ref.id, ref.label) for ref in labelled_folder(tmp_path / "x", labels).refs] \
        == [(name, 4)]
    write_lines(labels, ["file,class_index", f"{typed},4", f"{name},5"])
    with pytest.raises(DataError, match="lines 2 and 3 of l.csv both name"):
        labelled_folder(tmp_path / "x", labels)


def test_two_files_whose_names_look_alike_have_their_own_rows(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "\u00e9.png") for form in ("NFC", "NFD")]
    for seed, name in enumerate(names):
        save_noise(tmp_path / "x" / name, seed=seed)
    labels = write_lines(tmp_path / "l.csv", ["file,class_index",
                                              *(f"{name},{k}" for k, name in enumerate(names))])
    found = {ref.id: ref.label for ref in labelled_folder(tmp_path / "x", labels).refs}
    assert found == {names[0]: 0, names[1]: 1}


def test_a_labels_file_written_on_windows_is_read(tmp_path: Path) -> None:
    save_noise(tmp_path / "x" / "deep" / "a.png")
    labels = tmp_path / "l.csv"
    labels.write_bytes(b"\xef\xbb\xbf file , class_index \r\ndeep\\a.png , 4 \r\n\r\n")
    assert labelled_folder(tmp_path / "x", labels).refs == (ImageRef("deep/a.png", 4),)


def test_a_link_within_the_folder_is_allowed(flat: tuple[Path, Path]) -> None:
    os.symlink("a.png", flat[0] / "same.png")
    labels = _labels(flat[0], "a.png,3", "b.JPEG,7", "same.png,3")
    assert len(labelled_folder(flat[0], labels).refs) == 3


@pytest.mark.parametrize("content, told", [
    (b"file,label\na.png,3\n", "lacks class_index"),
    (b"name,label\na.png,3\n", "lacks file, class_index"),
    (b"", "lacks file, class_index"),
    (b"file;class_index\na.png;3\n", "separated by commas instead of semicolons"),
    (b"file,class_index,file\na.png,3,b\n", "has file twice"),
    ("file,class_index\n".encode("utf-16"), "is not UTF-8 text"),
    (b'file,class_index\n"a.png,3\nb.JPEG,7\n', "cannot be read after line 3"),
    (b"file,class_index\n\xff\xfe,3\n", "is not UTF-8 text (invalid start byte"),
])
def test_a_file_that_is_no_labels_file_is_refused(
        flat: tuple[Path, Path], content: bytes, told: str) -> None:
    flat[1].write_bytes(content)
    with pytest.raises(DataError, match=re.escape(told)) as caught:
        labelled_folder(*flat)
    _sentence(caught)


def test_a_missing_labels_file_is_named_with_its_option(flat: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="absent.csv cannot be opened .*--labels"):
        labelled_folder(flat[0], flat[0] / "absent.csv")


def test_a_flat_folder_without_labels_asks_for_them(flat: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match="measure with --labels FILE") as caught:
        class_folders(flat[0])
    assert "2 images are (the first is a.png) directly in" in _sentence(caught)


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_folder_without_images_says_so(tmp_path: Path, with_labels: bool) -> None:
    (tmp_path / "empty").mkdir()
    labels = _labels(tmp_path) if with_labels else None
    with pytest.raises(DataError, match="must hold images, but there is none in"):
        open_dataset(str(tmp_path / "empty"), root=None, labels=labels)


def test_a_class_folder_without_images_would_shift_the_labels_and_is_refused(
        tmp_path: Path) -> None:
    class_tree(tmp_path, {"a": ["1.png"], "__pycache__": [], "notes": []})
    with pytest.raises(DataError, match=re.escape("2 folders are (the first is __pycache__)")):
        class_folders(tmp_path)


def test_a_folder_of_splits_is_not_taken_for_two_classes(tmp_path: Path) -> None:
    class_tree(tmp_path, {"train": ["1.png"], "test": ["1.png"]})
    with pytest.raises(DataError, match="those of .* are test, train.*for example .*/test"):
        class_folders(tmp_path)


@pytest.mark.parametrize("name", ["tab\there.png", "line\nbreak.png"])
def test_a_file_name_that_cannot_be_an_id_is_refused(tmp_path: Path, name: str) -> None:
    class_tree(tmp_path, {"a": [name]})
    with pytest.raises(DataError, match="without control characters") as caught:
        class_folders(tmp_path)
    _sentence(caught)


def test_a_file_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = save_noise(tmp_path / "a" / "1.png")
    try:
        os.rename(os.fsencode(path), os.fsencode(path.parent) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(DataError, match="must be UTF-8"):
        class_folders(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_class_folder_is_an_error_not_an_empty_class(tmp_path: Path) -> None:
    class_tree(tmp_path, {"a": ["1.png"], "b": ["1.png"]})
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(DataError, match="must be readable"):
            class_folders(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_labels_and_class_map_together_are_refused(flat: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="must not be given together"):
        open_dataset(str(flat[0]), root=None, labels=flat[1], class_map=flat[1])


def test_download_of_a_folder_is_refused(flat: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="--download must go with a dataset's name"):
        open_dataset(str(flat[0]), root=None, labels=flat[1], download=True)
