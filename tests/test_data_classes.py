"""Which class an image is of: by the number or the name of its folder, never by its position."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from sanrobust.data import classes
from sanrobust.data.classes import fit_classes, imagenet_names
from sanrobust.data.datasets import open_dataset
from sanrobust.data.folders import class_folders
from sanrobust.data.imageset import ArrayImages, ImageRef, ImageSet
from sanrobust.data.public import IMAGENETTE_CLASSES
from sanrobust.errors import DataError
from image_files import class_tree, write_lines


def _tree(folder: Path, *names: str) -> Path:
    return class_tree(folder, {name: ["1.png"] for name in names})


def _labels(images: ImageSet) -> dict[str, int]:
    return {ref.id.partition("/")[0]: ref.label for ref in images.refs}


@pytest.mark.parametrize("names", [
    [str(index) for index in range(12)], [f"{index:02d}" for index in range(12)],
    ["00", "1", "0002", "3"], ["0", "3", "11"]])
def test_folders_named_by_numbers_are_class_indices(tmp_path: Path, names: list[str]) -> None:
    images = class_folders(_tree(tmp_path, *names))
    assert _labels(images) == {name: int(name) for name in names}
    assert images.classes == tuple(str(index) for index in range(int(names[-1]) + 1))


def test_the_number_of_classes_is_unknown_while_numbers_are_missing(tmp_path: Path) -> None:
    assert class_folders(_tree(tmp_path / "all", "0", "1", "2")).num_classes == 3
    assert class_folders(_tree(tmp_path / "gap", "0", "2")).num_classes is None
    assert class_folders(_tree(tmp_path / "from-1", "1", "2")).num_classes is None


def test_a_numbered_folder_without_images_moves_no_other(tmp_path: Path) -> None:
    (_tree(tmp_path, "0", "2") / "1").mkdir()
    images = class_folders(tmp_path)
    assert _labels(images) == {"0": 0, "2": 2} and images.num_classes == 3


@pytest.mark.parametrize("names, told", [
    (["1", "01", "0"], "01 and 1 in .* are both class 1"),
    (["0", "4006381333931"], "is called 4006381333931")])
def test_numbers_that_cannot_be_class_indices_are_refused(
        tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        class_folders(_tree(tmp_path, *names))


def test_a_year_is_no_class_of_any_model_and_costs_no_memory(tmp_path: Path) -> None:
    images = class_folders(_tree(tmp_path, "2019", "999999999"))
    assert images.classes is None and images.num_classes is None
    with pytest.raises(DataError, match=r"0\.\.9.*count from 0"):
        fit_classes(images, names=None, num_classes=10, model="m")


def test_names_are_ordered_alike_in_either_unicode_form(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        folder = _tree(tmp_path / form, *(
            unicodedata.normalize(form, name) for name in ("zebra", "\u00e9cole", "Zoo")))
        assert class_folders(folder).classes == ("Zoo", "zebra", "\u00e9cole")


def test_two_folders_that_look_alike_are_refused(tmp_path: Path) -> None:
    _tree(tmp_path, "\u00e9", "e\u0301")
    with pytest.raises(DataError, match="both called .*, in two Unicode forms"):
        class_folders(tmp_path)


def test_labels_follow_the_names_of_the_models_classes(tmp_path: Path) -> None:
    images = class_folders(_tree(tmp_path, "b", "c", "d"))
    fitted = fit_classes(images, names=("d", "a", "b", "c"), num_classes=4, model="m")
    assert _labels(fitted) == {"b": 2, "c": 3, "d": 0}
    assert fitted.num_classes == 4 and fitted.classes == ("d", "a", "b", "c")
    assert fitted.digest != images.digest and fitted.name == images.name


def test_the_same_classes_leave_the_set_as_it_is(tmp_path: Path) -> None:
    images = class_folders(_tree(tmp_path, "a", "b"))
    assert fit_classes(images, names=("a", "b"), num_classes=2, model="m") is images
    assert fit_classes(images, names=None, num_classes=2, model="m") is images


def test_names_agree_in_either_unicode_form(tmp_path: Path) -> None:
    images = class_folders(_tree(tmp_path, "a", "e\u0301"))
    fitted = fit_classes(images, names=("\u00e9", "a"), num_classes=2, model="m")
    assert _labels(fitted) == {"a": 1, "e\u0301": 0}


@pytest.mark.parametrize("names, told", [
    (("a", "b", "cc"), "x has c, which m does not know, and lacks cc of m: "),
    (("c", "a"), "x has b, which m does not know: "),
    (tuple("0123"), "x has a, b, c, which m does not know, and lacks 0, 1, 2, 3 of m: "),
    (("A", "B", "C"), "x has a, b, c, which m does not know")])
def test_a_class_that_the_model_does_not_know_is_named(
        tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    images = class_folders(_tree(tmp_path / "x", "a", "b", "c"))
    with pytest.raises(DataError, match=re.escape(told)):
        fit_classes(images, names=names, num_classes=len(names), model="m")


def test_sets_of_as_many_classes_with_other_names_are_refused() -> None:
    images = open_dataset("digits", root=None)
    with pytest.raises(DataError, match="digits has 0, 1, 2, 3, 4 and 5 more, which m does not"):
        fit_classes(images, names=tuple("abcdefghij"), num_classes=10, model="m")
    assert fit_classes(images, names=tuple("0123456789"), num_classes=10, model="m") is images


def test_numbers_that_a_model_of_numbered_classes_does_not_know_are_refused(
        tmp_path: Path) -> None:
    some = class_folders(_tree(tmp_path / "some", "0", "1"))
    assert fit_classes(some, names=("0", "1", "2"), num_classes=3, model="m").num_classes == 3
    with pytest.raises(DataError, match="has 3, which m does not know"):
        fit_classes(class_folders(_tree(tmp_path / "more", "3")), names=("0", "1", "2"),
                    num_classes=3, model="m")


def test_a_set_of_known_length_is_refused_by_a_head_of_another(tmp_path: Path) -> None:
    for names in (("a", "b", "c"), ("0", "1", "2")):
        images = class_folders(_tree(tmp_path / names[0], *names))
        with pytest.raises(DataError, match="must have its 1000 classes, but .* has 3"):
            fit_classes(images, names=None, num_classes=1000, model="m")
    gap = class_folders(_tree(tmp_path / "gap", "0", "7"))
    assert fit_classes(gap, names=None, num_classes=1000, model="m") is gap


def test_imagenets_names_are_the_list_of_torchvisions_order() -> None:
    names = imagenet_names()
    assert names is not None
    assert {wnid: names.index(wnid) for wnid in IMAGENETTE_CLASSES} == IMAGENETTE_CLASSES


def test_looking_up_imagenets_names_imports_no_model_library() -> None:
    code = ("import sys; from sanrobust.data.classes import imagenet_names; "
            "print(len(imagenet_names()), 'timm' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1000", "False"]


def test_folders_of_wordnet_ids_fit_a_model_of_imagenets_classes(tmp_path: Path) -> None:
    images = class_folders(_tree(tmp_path, *IMAGENETTE_CLASSES))
    fitted = fit_classes(images, names=None, num_classes=1000, model="m")
    assert _labels(fitted) == IMAGENETTE_CLASSES and fitted.num_classes == 1000
    assert fit_classes(images, names=None, num_classes=10, model="own") is images


def test_a_wordnet_id_that_imagenet_lacks_is_named(tmp_path: Path) -> None:
    images = class_folders(_tree(tmp_path, "n01440764", "n00000001"))
    with pytest.raises(DataError, match="has n00000001, which m does not know: "):
        fit_classes(images, names=None, num_classes=1000, model="m")


def test_without_the_list_wordnet_ids_are_refused_with_the_way_out(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "imagenet_names", lambda: None)
    images = class_folders(_tree(tmp_path, "n01440764", "n02102040"))
    with pytest.raises(DataError, match="must have its 1000 classes.*--class-map FILE"):
        fit_classes(images, names=None, num_classes=1000, model="m")


def _thousand(names: tuple[str, ...]) -> ArrayImages:
    refs = tuple(ImageRef(name, index) for index, name in enumerate(names))
    return ArrayImages("x", refs, 1000, np.zeros((1000, 1, 1), dtype=np.uint8), classes=names)


def test_a_thousand_other_folders_keep_their_order() -> None:
    images = _thousand(tuple(f"n{index:08d}" for index in range(1000)))
    assert fit_classes(images, names=None, num_classes=1000, model="m") is images


def test_numbered_folders_are_imagenets_indices_for_a_model_with_its_names() -> None:
    images = _thousand(tuple(str(index) for index in range(1000)))
    assert fit_classes(images, names=imagenet_names(), num_classes=1000, model="m") is images


@pytest.mark.parametrize("num_classes", [10, 21843])
def test_a_folder_said_to_be_imagenet_is_refused_by_another_head(
        tmp_path: Path, num_classes: int) -> None:
    folder = _tree(tmp_path / "x", "owl", "crow")
    class_map = write_lines(tmp_path / "m.csv", ["folder,class_index", "owl,4", "crow,8"])
    images = open_dataset(str(folder), root=None, class_map=class_map, name="imagenet")
    assert _labels(images) == {"crow": 8, "owl": 4}
    with pytest.raises(DataError, match=f"its {num_classes} classes, but imagenet has 1000"):
        fit_classes(images, names=None, num_classes=num_classes, model="m")


def test_a_folder_said_to_be_imagenet_must_have_its_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its 1000 classes.*leave --data-name out"):
        open_dataset(str(_tree(tmp_path / "a", "owl")), root=None, name="imagenet")
    some = open_dataset(str(_tree(tmp_path / "b", *IMAGENETTE_CLASSES)), root=None,
                        name="imagenet")
    assert _labels(some) == IMAGENETTE_CLASSES and some.num_classes == 1000


def test_a_folder_said_to_be_cifar10_is_labelled_by_its_names(tmp_path: Path) -> None:
    images = open_dataset(str(_tree(tmp_path / "a", "cat", "truck")), root=None, name="cifar10")
    assert _labels(images) == {"cat": 3, "truck": 9} and images.num_classes == 10
    with pytest.raises(DataError, match="has lorry, which cifar10 does not know"):
        open_dataset(str(_tree(tmp_path / "b", "cat", "lorry")), root=None, name="cifar10")


def test_imagenette_fits_a_model_trained_on_its_folders(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(tmp_path / "imagenette2" / "val", *IMAGENETTE_CLASSES)
    monkeypatch.setattr("sanrobust.data.datasets._require_complete", lambda *_: None)
    images = open_dataset("imagenette", root=tmp_path)
    assert fit_classes(images, names=None, num_classes=1000, model="m") is images
    own = fit_classes(images, names=tuple(IMAGENETTE_CLASSES), num_classes=10, model="own")
    assert [ref.label for ref in own.refs] == list(range(10))
    with pytest.raises(DataError, match="its 10 classes, but imagenette has 1000"):
        fit_classes(images, names=None, num_classes=10, model="m")


def test_a_class_map_finds_folders_in_any_spelling_and_names_each_once(tmp_path: Path) -> None:
    folder = _tree(tmp_path / "x", "\u00e9cole", "owl")
    rows = ["folder,class_index", "e\u0301cole/,3", "./owl,5"]
    class_map = write_lines(tmp_path / "m.csv", rows)
    assert _labels(class_folders(folder, class_map=class_map)) == {"\u00e9cole": 3, "owl": 5}
    write_lines(class_map, [*rows, "owl,6"])
    with pytest.raises(DataError, match="lines 3 and 4 of m.csv both name owl"):
        class_folders(folder, class_map=class_map)


@pytest.mark.parametrize("odd", ["x", "1e0", "1_000", "\N{FULLWIDTH DIGIT ONE}", "+1"])
def test_numbers_with_one_name_among_them_are_refused_and_not_sorted_as_text(
        tmp_path: Path, odd: str) -> None:
    class_tree(tmp_path / "d", {name: ["a.png"] for name in ("0", odd, "2", "10")})
    with pytest.raises(DataError, match="3 of 4 in .* are numbers.*--class-map"):
        class_folders(tmp_path / "d")


def test_a_number_among_words_is_a_word(tmp_path: Path) -> None:
    class_tree(tmp_path / "d", {name: ["a.png"] for name in ("747", "glider", "kite")})
    assert class_folders(tmp_path / "d").classes == ("747", "glider", "kite")


def test_classes_that_end_in_numbers_say_in_which_order_they_stand(tmp_path: Path) -> None:
    class_tree(tmp_path / "odd", {f"Class{number}": ["a.png"] for number in (2, 10, 11)})
    (remark,) = class_folders(tmp_path / "odd").left_out
    assert "Class11 comes before Class2" in remark
    class_tree(tmp_path / "even", {f"Class{number:02d}": ["a.png"] for number in (2, 10, 11)})
    assert class_folders(tmp_path / "even").left_out == ()
