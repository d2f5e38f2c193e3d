"""The embedded digits and their split."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sanrobust.data.catalog import DATASETS
from sanrobust.data.datasets import open_dataset
from sanrobust.data.digits import open_digits
from sanrobust.data.imageset import ArrayImages
from sanrobust.errors import DataError, UsageError

# The split and the pixels are part of every number measured on digits: they may never change.
TEST_DIGEST = "f340ecf618935c6cd78b97a172ff503796dab3d6096185186d09a4e54a6ab1ae"
TRAIN_DIGEST = "400f84aad282e1f34a5fcaf72e73403b480b5ca22d04303476099af1782099d8"


@pytest.fixture(scope="module")
def test_set() -> ArrayImages:
    return open_digits("test")


@pytest.fixture(scope="module")
def train_set() -> ArrayImages:
    return open_digits("train")


def test_ids_labels_pixels_and_split_are_what_they_have_always_been(
        test_set: ArrayImages, train_set: ArrayImages) -> None:
    assert (test_set.digest, train_set.digest) == (TEST_DIGEST, TRAIN_DIGEST)


def test_the_splits_share_out_all_1797_images(
        test_set: ArrayImages, train_set: ArrayImages) -> None:
    ids = [ref.id for ref in (*test_set.refs, *train_set.refs)]
    assert sorted(ids) == [f"digits/{index:04d}" for index in range(1797)]
    assert [ref.id for ref in test_set.refs] == sorted(ref.id for ref in test_set.refs)


def test_a_quarter_of_every_class_is_held_out(
        test_set: ArrayImages, train_set: ArrayImages) -> None:
    held_out = Counter(ref.label for ref in test_set.refs)
    trained = Counter(ref.label for ref in train_set.refs)
    assert sorted(held_out) == sorted(trained) == list(range(10))
    # A class has 174 to 183 images, so rounding moves its share by at most 0.5 / 174.
    assert all(abs(held_out[label] / (held_out[label] + trained[label]) - 0.25) < 0.003
               for label in range(10))


def test_no_image_is_in_both_splits(test_set: ArrayImages, train_set: ArrayImages) -> None:
    def contents(images: ArrayImages) -> set[bytes]:
        return {image.tobytes() for image in images.pixels}

    assert contents(test_set).isdisjoint(contents(train_set))


def test_pixels_are_the_scaled_values_of_the_image_that_the_id_names(
        test_set: ArrayImages) -> None:
    source = load_digits()
    for index, ref in enumerate(test_set.refs[:50]):
        original = int(ref.id.removeprefix("digits/"))
        scaled = np.floor(source.images[original] / 16 * 255 + 0.5)
        assert np.array_equal(np.asarray(test_set.load(index))[..., 0], scaled)
        assert ref.label == source.target[original]


def test_open_dataset_gives_the_held_out_split_unless_asked(
        test_set: ArrayImages, train_set: ArrayImages) -> None:
    assert open_dataset("digits", root=None).digest == test_set.digest
    assert open_dataset("digits", root=None, split="train").digest == train_set.digest


def test_num_samples_limits_a_named_dataset() -> None:
    assert len(open_dataset("digits", root=None, num_samples=12).refs) == 12
    with pytest.raises(UsageError, match="the 451 images of digits"):
        open_dataset("digits", root=None, num_samples=452)


def test_a_split_that_is_not_whole_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    part = open_digits("test").take(range(450))
    monkeypatch.setitem(DATASETS._values, "digits",
                        replace(DATASETS.get("digits"), open=lambda request: part))
    with pytest.raises(DataError, match="must have its 451 images, but 450 are there"):
        open_dataset("digits", root=None)
