"""A whole command against its bare model: what decoding, transfer, records and tables cost.

A command is run as it is typed, with one model that is ready, on photographs in a folder; every
pass of its model is timed. Then the bare model makes as many passes over the same images, decoded
before and in the same batches. Letters: B images, S their side in pixels.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sanrobust.bench import models
from sanrobust.bench.passes import Counted
from sanrobust.bench.settings import Settings
from sanrobust.choices import DataConfig, ModelConfig, RunConfig
from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import batches
from sanrobust.device import exact
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.inputs import open_images
from sanrobust.progress import Reporter, Silent
from sanrobust.run import run
from sanrobust.runs import all_runs
from sanrobust.zoo.classifier import Classifier

PHOTOGRAPH = (500, 375)
"""Columns and rows of a random photograph: the median of ImageNet's."""
_COARSE = 16


@dataclass(frozen=True)
class LoopTime:
    """What a command took and what its model alone takes.

    Attributes:
        images: how many.
        img_size: S.
        seconds: wall time of the command with its model ready, from the call to the table.
        cpu_seconds: time of all threads of this process in it.
        setup_seconds: the part of it before the first image was measured.
        model_seconds: wall time of it inside the model, the passes before a run included.
        forward: images in passes forward while images were measured.
        backward: images in passes backward.
        bare_seconds: wall time of as many passes of the model alone.
        computed_by: what computed the model, in words.
    """

    images: int
    img_size: int
    seconds: float
    cpu_seconds: float
    setup_seconds: float
    model_seconds: float
    forward: int
    backward: int
    bare_seconds: float
    computed_by: str

    @property
    def model_share(self) -> float:
        """Part of the wall time of the whole command inside the model."""
        return self.model_seconds / self.seconds

    @property
    def images_per_second(self) -> float:
        """Rate of the command behind its set-up: decode, transfer, model, records, table."""
        return self.images / (self.seconds - self.setup_seconds)

    @property
    def bare_images_per_second(self) -> float:
        """Rate of the bare model."""
        return self.images / self.bare_seconds


class _Watch(Silent):
    """Takes a command's model and the moment at which it begins to measure."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.counted: Counted | None = None
        self.before = 0.0
        self.began = 0.0

    @property
    def model(self) -> Counted:
        """The command's model in the form that computes."""
        assert self.counted is not None
        return self.counted

    def watched(self, model: nn.Module) -> nn.Module:
        """Return a command's model, counted."""
        self.counted = Counted(model, self.device)
        return self.counted

    def begin(self, title: str, *, total: int, done: int) -> None:
        """Forget the passes so far, but not their time."""
        self.before += self.model.forget()
        self.began = self.model.now()


def measure_loop(name: str, experiment: str, settings: Settings) -> LoopTime:
    """Time an experiment, by its name, with a model.

    Raises what `sanrobust.run.run` raises, as for a folder that cannot be read.
    """
    classifier = models.load(name, settings.shape)
    with _folder(settings, classifier.num_classes) as (data, out):
        return _measured(classifier, EXPERIMENTS.get(experiment), settings, data, out)


def _measured(classifier: Classifier, experiment: Experiment, settings: Settings,
              data: DataConfig, out: Path) -> LoopTime:
    shape = settings.shape
    watch = _Watch(torch.device(shape.device))
    how = RunConfig(out=out, batch_size=shape.batch_size, device=shape.device,
                    threads=settings.threads, max_failed=0)
    started, used = time.perf_counter(), time.process_time()
    summary = run(experiment, experiment.settings(), ModelConfig(models=(classifier,)), (data,),
                  how, Reporter(progress=watch), watched=watch.watched)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    if summary.problem is not None:
        raise summary.problem
    pixels = list(_pixels(classifier, open_images(data, experiment), watch, shape.batch_size))
    images, counted = sum(map(len, pixels)), watch.model
    counts, inside = dict(counted.images), watch.before + counted.seconds
    passes = (round(counts[way] / images) for way in ("forward", "backward"))
    with exact(settings.threads):  # as the command: elsewhere the bench searches for algorithms
        bare = _seconds(counted.network, counted.now, pixels, *passes)
    return LoopTime(images, pixels[0].shape[-1], seconds, used, watch.began - started, inside,
                    counts["forward"], counts["backward"], bare, _computed_by(out))


def _computed_by(out: Path) -> str:
    """Return what the header of the only run says."""
    made, = all_runs(out)
    return str(made.last_start["computed_by"])


def _pixels(classifier: Classifier, images: ImageSet, watch: _Watch, size: int
            ) -> Iterator[Tensor]:
    """Yield the batches (B, 3, S, S) of a command on their device."""
    count = len(images.refs)
    plan = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    for batch in batches(images, classifier.preprocessing, plan=plan, workers=0):
        yield batch.to(watch.device).pixels


def _seconds(model: nn.Module, now: Callable[[], float], batches: Sequence[Tensor],
             forward: int, backward: int) -> float:
    """Return the seconds of so many passes over batches; each backward has one forward."""
    begun = now()
    for pixels in batches:
        for _ in range(forward - backward):
            models.forward(model, pixels)
        for _ in range(backward):
            models.attack(model, pixels)
    return now() - begun


@contextmanager
def _folder(settings: Settings, classes: int) -> Iterator[tuple[DataConfig, Path]]:
    """Give the images of a command and a place for its results, which are removed afterwards."""
    loop = settings.loop
    with tempfile.TemporaryDirectory(prefix="sanrobust-loop-") as place:
        out = Path(place, "results")
        if loop.data is not None:
            yield DataConfig(data=loop.data, num_samples=loop.images), out
            return
        folder = Path(place, "photographs")
        folder.mkdir()
        labels = write_photographs(folder, loop.images, classes)
        yield DataConfig(data=str(folder), labels=labels), out


def write_photographs(folder: Path, count: int, classes: int) -> Path:
    """Write random photographs as JPEG, with smooth parts and grain; return their labels' file."""
    rng = np.random.default_rng(0)
    columns, rows = PHOTOGRAPH
    labels = folder.parent / "labels.csv"
    with labels.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "class_index"))
        for number in range(count):
            coarse = rng.integers(0, 256, (rows // _COARSE, columns // _COARSE, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
            grain = rng.normal(0, 8, (rows, columns, 3))
            pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
            name = f"{number:06}.jpg"
            Image.fromarray(pixels).save(folder / name, quality=90)
            writer.writerow((name, number % classes))
    return labels
