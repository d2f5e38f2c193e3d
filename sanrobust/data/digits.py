"""The embedded dataset: scikit-learn's handwritten digits with a split that never changes."""

from __future__ import annotations

from typing import Literal

import numpy as np

from sanrobust.data.catalog import DATASETS
from sanrobust.data.imageset import ArrayImages, ImageRef, id_hash

MAX_VALUE = 16  # the dataset counts ink in 4x4 blocks of a binary scan: 0..16
NUM_CLASSES = 10


def open_digits(split: Literal["test", "train"]) -> ArrayImages:
    """Return one side of the digits, 8x8 greyscale.

    Of each class's n images, ordered by the hash of their ids, the first round(n / 4) are the
    held-out test set (451 images) and the others the training set (1346). The 1797 images are all
    different, so the sides share none. Values 0..16 become 0..255, rounded, halves up.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = [int(label) for label in bunch.target]
    refs = [ImageRef(f"digits/{index:04d}", label) for index, label in enumerate(labels)]
    test = _test_ids(refs)
    chosen = [index for index, ref in enumerate(refs) if (ref.id in test) == (split == "test")]
    values = bunch.images.astype(np.int64)
    pixels = ((values * 255 + MAX_VALUE // 2) // MAX_VALUE).astype(np.uint8)
    return ArrayImages("digits", tuple(refs[index] for index in chosen), NUM_CLASSES,
                       pixels[chosen], classes=DATASETS.get("digits").class_names)


def _test_ids(refs: list[ImageRef]) -> frozenset[str]:
    test: list[str] = []
    for label in range(NUM_CLASSES):
        ids = sorted((ref.id for ref in refs if ref.label == label),
                     key=lambda image_id: id_hash("sanrobust-digits", image_id))
        test.extend(ids[:(len(ids) + 2) // 4])
    return frozenset(test)
