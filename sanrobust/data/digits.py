"""The embedded dataset: scikit-learn's handwritten digits with a split that never changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sanrobust.data.dataset import Dataset, Request, Split

if TYPE_CHECKING:
    from sanrobust.data.imageset import ArrayImages, ImageRef

MAX_VALUE = 16  # the dataset counts ink in 4x4 blocks of a binary scan: 0..16
NUM_CLASSES = 10


def open_digits(split: Split) -> ArrayImages:
    """Return one side of the digits, 8x8 greyscale.

    Of each class's n images, ordered by the hash of their ids, the first round(n / 4) are the
    held-out test set (451 images) and the others the training set (1346). The 1797 images are all
    different, so the sides share none. Values 0..16 become 0..255, rounded, halves up.
    """
    import numpy as np
    from sklearn.datasets import load_digits

    from sanrobust.data.imageset import ArrayImages, ImageRef

    bunch = load_digits()
    labels = [int(label) for label in bunch.target]
    refs = [ImageRef(f"digits/{index:04d}", label) for index, label in enumerate(labels)]
    test = _test_ids(refs)
    chosen = [index for index, ref in enumerate(refs) if (ref.id in test) == (split == "test")]
    values = bunch.images.astype(np.int64)
    pixels = ((values * 255 + MAX_VALUE // 2) // MAX_VALUE).astype(np.uint8)
    return ArrayImages("digits", tuple(refs[index] for index in chosen), NUM_CLASSES,
                       pixels[chosen], classes=DIGITS.class_names)


def _test_ids(refs: list[ImageRef]) -> frozenset[str]:
    from sanrobust.data.imageset import id_hash
    test: list[str] = []
    for label in range(NUM_CLASSES):
        ids = sorted((ref.id for ref in refs if ref.label == label),
                     key=lambda image_id: id_hash("sanrobust-digits", image_id))
        test.extend(ids[:(len(ids) + 2) // 4])
    return frozenset(test)


def _open(request: Request) -> ArrayImages:
    return open_digits(request.split)


DIGITS = Dataset(
    name="digits",
    description="1797 handwritten digits, 8x8 greyscale",
    num_classes=10, classes="digits", tag="digits",
    train_images=1346, test_images=451, embedded=True, downloadable=False,
    licence="CC BY 4.0",
    source="UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), "
           "as shipped with scikit-learn",
    class_names=tuple("0123456789"),
    open=_open,
)
