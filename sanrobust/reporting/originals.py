"""The images that a run measured, found again where they still are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sanrobust.choices import DataConfig
from sanrobust.data.catalog import DATASETS
from sanrobust.errors import SanrobustError
from sanrobust.runs import Run

if TYPE_CHECKING:
    from torch import Tensor

    from sanrobust.data.imageset import ImageSet
    from sanrobust.preprocessing import Preprocessing

_OPTIONS = {"--data": "data", "--labels": "labels", "--class-map": "class_map",
            "--data-root": "root"}


def data_of(run: Run) -> DataConfig | None:
    """Return where a run's command said its images are; None where that is no place at hand."""
    command = run.header.get("command")
    given = _given(command) if isinstance(command, str) else {}
    word = given.get("data", "digits" if run.spec.get("data") == "digits" else "")
    if not word or (word not in DATASETS and not os.path.exists(os.path.expanduser(word))):
        return None  # what would have to be fetched is not
    paths = {name: Path(os.path.expanduser(value)) for name, value in given.items()}
    return DataConfig(data=word, labels=paths.get("labels"), class_map=paths.get("class_map"),
                      root=paths.get("root"))


def _given(command: str) -> dict[str, str]:
    with suppress(ValueError):  # of unpaired quotation marks
        words = shlex.split(command)
        pairs = [word.split("=", 1) if "=" in word else [word, following]
                 for word, following in zip(words, [*words[1:], ""])]
        return {_OPTIONS[name]: value for name, value in pairs if name in _OPTIONS}
    return {}


class Originals:
    """The images behind a run by their ids; none where they are not at hand.

    Nothing says that files are the ones that were measured but what a run recorded of them; who
    asks must compare.
    """

    def __init__(self, run: Run) -> None:
        self._images = _opened(data_of(run))
        self._preprocessing = _preprocessing(run)
        self._places: Mapping[str, int] = {} if self._images is None else {
            ref.id: place for place, ref in enumerate(self._images.refs)}

    def pixels(self, image: str) -> Tensor | None:
        """Return an image as the model took it, float32 (3, S, S) in [0, 1], or None."""
        from sanrobust.data.decode import ImageError
        from sanrobust.data.fit import fitted
        if self._images is None or self._preprocessing is None or image not in self._places:
            return None
        with suppress(ImageError, SanrobustError):
            return fitted(self._images.load(self._places[image]), self._preprocessing)
        return None


def _preprocessing(run: Run) -> Preprocessing | None:
    from sanrobust.preprocessing import Preprocessing
    found = run.spec.get("preprocessing")
    with suppress(SanrobustError, TypeError):
        fields = {**found} if isinstance(found, dict) else {}
        for name in ("mean", "std"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return Preprocessing(**fields)
    return None


@cache
def _opened(data: DataConfig | None) -> ImageSet | None:
    from sanrobust.data.datasets import open_dataset
    with suppress(SanrobustError):
        if data is not None:
            return open_dataset(data.data, root=data.root, labels=data.labels,
                                class_map=data.class_map, name=None)
    return None
