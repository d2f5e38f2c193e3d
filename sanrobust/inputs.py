"""From what a caller names or holds to the images that an experiment measures."""

from __future__ import annotations

from pathlib import Path

from sanrobust.choices import DataConfig
from sanrobust.data.catalog import DATASETS
from sanrobust.data.datasets import as_named, open_dataset
from sanrobust.data.imageset import ImageSet, subset
from sanrobust.data.replayed import SavedImages
from sanrobust.errors import UsageError
from sanrobust.experiments.base import Experiment

DEFAULT_DATA = "digits"
DEFAULT_TAG = "in1k"


def open_images(data: DataConfig, experiment: Experiment) -> ImageSet:
    """Open the dataset, or the experiment's own kind of folder, of a choice.

    Raises DataError or UnknownNameError when it cannot serve.
    """
    if isinstance(data.data, str) and not data.data:
        raise UsageError("data must be a name, a place or images", seen="it is empty text",
                         hint="leave it out for the digits")
    if experiment.opens is not None:
        _refuse_no_folder(data, experiment)
        return subset(experiment.opens(Path(str(data.data))), data.num_samples)
    if not isinstance(data.data, str | None):
        from sanrobust.data.held import open_held
        _refuse_options(data, "held by a program", "labels", "class_map", "root", "download")
        return subset(as_named(open_held(data.data, name=data.name), data.name), data.num_samples)
    return open_dataset(data.data or DEFAULT_DATA, root=data.root, labels=data.labels,
                        class_map=data.class_map, download=data.download,
                        num_samples=data.num_samples, name=data.name)


def _refuse_no_folder(data: DataConfig, experiment: Experiment) -> None:
    _refuse_options(data, f"those that {experiment.name} takes", "labels",
                    "class_map", "root", "download", "name")
    if not isinstance(data.data, str):
        raise UsageError(f"{experiment.name} must be given a folder",
                         seen="there is none" if data.data is None else "it is no path",
                         hint=f"see sanrobust {experiment.name} --help")


def _refuse_options(data: DataConfig, given: str, *names: str) -> None:
    for name in names:
        if getattr(data, name):
            raise UsageError(f"{name} must go with a dataset", seen=f"the images are {given}",
                             hint="leave it out")


def weights_tag(data: DataConfig, images: ImageSet) -> str:
    """Return the weights that a bare architecture name means on the chosen data.

    Images of one's own are a known dataset where they are given its name.
    """
    is_named = isinstance(data.data, str | None)
    given = images.name if isinstance(images, SavedImages) or not is_named else data.data
    word = data.name if data.name and data.name in DATASETS else given or DEFAULT_DATA
    return (DATASETS.get(word).tag or word) if word in DATASETS else DEFAULT_TAG
