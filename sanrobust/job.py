"""An experiment on models over one set of images: each model, its run, its records."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from sanrobust.choices import FLOAT32, TF32, ModelConfig, RunConfig
from sanrobust.data.catalog import DATASETS
from sanrobust.data.classes import ADVICE, fit_classes
from sanrobust.data.fit import fit_sides
from sanrobust.data.imageset import ImageSet
from sanrobust.data.replayed import SavedImages
from sanrobust.device import default_workers, device_name, environment, exact, versions
from sanrobust.errors import (BackendError, Interrupted, ModelError, OutputError, SanrobustError,
                              UsageError, first_line, number_of)
from sanrobust.evaluate import Loop
from sanrobust.experiments.base import Experiment, Maker, Measurement
from sanrobust.header import missing, started
from sanrobust.inputs import DEFAULT_DATA
from sanrobust.keeping import Keeper, left_off
from sanrobust.memory import default_batch, fit_batch
from sanrobust.probe import probe_first
from sanrobust.progress import Progress, Reporter
from sanrobust.records import RunStore, Share, Start
from sanrobust.runs import COMPLETE, Run
from sanrobust.spec import RunSpec
from sanrobust.steady import FixedSizeBatches
from sanrobust.trouble import machine_error
from sanrobust.zoo import catalog
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.chosen import chosen_classifier, shown_model
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.code import added_code
from sanrobust.zoo.external import is_external
from sanrobust.zoo.switches import kept

if TYPE_CHECKING:
    from sanrobust.choices import Model

Watch = Callable[[FixedSizeBatches], torch.nn.Module]

PROBED_IMAGES = 8
# Libraries whose version may change a number though the specification is the same.
MAKE_NUMBERS = ("torch", "torchvision", "timm")


@dataclass(frozen=True)
class Job:
    """One command: an experiment on several models over the same images."""

    experiment: Experiment
    measurement: Measurement
    models: ModelConfig
    images: ImageSet
    tag: str
    how: RunConfig
    device: torch.device
    reporter: Reporter
    watched: Watch
    among: str = ""  # which of several sets of images it measures

    @property
    def names(self) -> Sequence[Model]:
        """The models asked for, the paper's nine by default."""
        return self.models.models or PAPER_ORDER

    def say_what_is_measured(self, *, is_default: bool) -> None:
        """Say which images it measures, and where."""
        if is_default:
            self.reporter.say("no --data: measuring on the held-out part of "
                              f"{DATASETS.get(DEFAULT_DATA).description}")
        if self.how.shard.source and self.how.shard.count > 1:
            self.reporter.say(self.how.shard.told)
        images = self.images
        made = f", {images.made}" if isinstance(images, SavedImages) else ""
        precision = self.models.precision
        self.reporter.say(f"{images.name}: {number_of(len(images.refs), 'image')}{made}, "
                          f"{device_name(self.device)}"
                          + ("" if precision == FLOAT32 else f", networks in {precision}"))
        for remark in images.left_out:
            self.reporter.say(f"{images.name}: {remark}")

    def refuse_unfit(self) -> None:
        """Refuse a mistyped name or other classes before anything is fetched or computed."""
        for name in self.names:
            if self.models.checkpoint is None and isinstance(name, str) and not is_external(name):
                entry = catalog.find(name, tag=self.tag)
                self._fitted(names=entry.classes, model=entry.name,
                             num_classes=entry.architecture.num_classes)

    def _fitted(self, *, names: tuple[str, ...] | None, model: str,
                num_classes: int) -> ImageSet:
        advice = ADVICE if self.experiment.opens is None else "name another --model"
        return fit_classes(self.images, names=names, model=model, num_classes=num_classes,
                           advice=advice)

    def run_all(self, folders: dict[Path, None], failed: dict[str, SanrobustError]) -> None:
        """Run the models one after another.

        Puts in the folders of the runs, each once, and the errors of models that could not run.
        """
        is_alone = len(self.names) == 1 and not self.among
        for name in self.names:
            try:
                with kept():  # one model's forward must not change how the next is computed
                    folders[self._run_one(name)] = None
            except (Interrupted, OutputError, BackendError):
                raise  # what stops one model would stop the others too
            except SanrobustError as error:
                # One model that cannot be had or measured must not cost the results of the others.
                failed[shown_model(name) + self.among] = error
                if not is_alone:
                    self.reporter.say(str(error))
            except Exception as error:  # a defect, of which the other models know nothing
                if is_alone:
                    raise
                failed[shown_model(name) + self.among] = (
                    machine_error(error) or _defect(shown_model(name), error))
                traceback.print_exc()

    def _run_one(self, name: Model) -> Path:
        classifier = self._classifier(name)
        fitted = self._fitted(names=classifier.classes, model=classifier.name,
                              num_classes=classifier.num_classes)
        return replace(self, images=fitted)._measure(classifier)

    def _measure(self, classifier: Classifier) -> Path:
        """Measure a model on images labelled with its class indices."""
        for remark in fit_sides(self.images, classifier.preprocessing):
            self.reporter.say(remark)
        for remark in self.measurement.check(self.images, num_classes=classifier.num_classes,
                                             preprocessing=classifier.preprocessing):
            self.reporter.say(remark)
        ids = [ref.id for ref in self.images.refs]
        with RunStore(self.how.out, self._spec(classifier), fresh=self._is_fresh(),
                      launch=self.how.shard.launch) as store:
            lacking = missing(store, ids)
            keeper = self._keeper(store, classifier)
            is_complete = store.header().get("status") == COMPLETE
            if is_complete:
                self._say_what_is_there(store, classifier.name, lacking)
            if self.how.retry_failed:
                lacking += self._say_what_failed(store, classifier.name)
            if lacking or not is_complete:
                with exact(tf32=self.models.precision == TF32):
                    self._fill(store, classifier, ids, keeper)
            elif keeper is not None and not keeper.is_finished:
                keeper.finish(ids)
        if keeper is not None and keeper.folder.is_dir():
            self.reporter.say(f"{classifier.name}: adversarial images are in {keeper.folder}")
        return store.folder

    def _is_fresh(self) -> bool:
        """Return whether to start anew; raises UsageError for parts that would not meet."""
        shard = self.how.shard
        if self.how.fresh and shard.count > 1 and shard.launch is None:
            raise UsageError("--fresh must go with parts that were started together",
                             seen=f"part {shard} was started by itself",
                             hint="use --processes or a launcher with an id (torchrun --rdzv-id), "
                                  "or give all parts another --out")
        return self.how.fresh

    def _keeper(self, store: RunStore, classifier: Classifier) -> Keeper | None:
        """Return who keeps the images that are made, if the user wants them."""
        remark = None if self.how.save_adversarial else left_off(store)
        if remark is not None:
            self.reporter.say(f"{classifier.name}: {remark}")
        if not self.how.save_adversarial:
            return None
        if not self.experiment.makes_images:
            raise UsageError("--save-adversarial must go with an experiment that makes images",
                             seen=f"{self.experiment.name} makes none", hint="leave it out")
        return Keeper(cast(Maker, self.measurement), store, num_classes=classifier.num_classes,
                      classes=self.images.classes)

    def _say_what_failed(self, store: RunStore, name: str) -> int:
        own = filter(self.how.shard.owns, range(store.plan.blocks))
        failed = sum(store.failing(own).values())
        if failed:
            self.reporter.say(f"{name}: measuring {failed} image{'s'[:failed != 1]} again that "
                              f"{'is' if failed == 1 else 'are'} recorded as failed")
        return failed

    def _say_what_is_there(self, store: RunStore, name: str, lacking: int) -> None:
        if lacking:
            self.reporter.say(f"{name}: {lacking} of {store.spec.images} images of {store.folder} "
                              "have lost their records; measuring them again")
        else:
            there = Run(store.folder, store.header())
            self.reporter.say(f"{name}: already complete in {store.folder}, "
                              f"{number_of(store.spec.images, 'image')} measured {there.measured}"
                              f"{_other_versions(there)}; --fresh measures them again")

    def _classifier(self, model: Model) -> Classifier:
        return chosen_classifier(model, self.models, tag=self.tag,
                                 reporter=self.reporter).to(self.device)

    def _spec(self, classifier: Classifier) -> RunSpec:
        return RunSpec(
            experiment=self.experiment.name, model=classifier.name,
            weights=classifier.weights_digest, preprocessing=classifier.preprocessing,
            data=self.images.name, data_digest=self.images.digest, images=len(self.images.refs),
            settings={**self.measurement.spec(), **self._added()}, precision=self.models.precision,
            record_schema=self.experiment.records.version, code=classifier.code)

    def _added(self) -> dict[str, object]:
        """Return what decides the numbers of an experiment that another package adds: its code."""
        code = added_code(self.experiment.prepare)
        return {} if code is None else {"experiment_code": code}

    def _fill(self, store: RunStore, classifier: Classifier, ids: Sequence[str],
              keeper: Keeper | None) -> None:
        made = accelerate(classifier, self.device, precision=self.models.precision,
                          fold=self.how.fold)
        classifier = made.classifier  # the same name, so that the weights as written can be freed
        batch_size = self._batch_size(classifier)
        size = (made.pass_size(classifier.preprocessing.img_size, self.device)
                if self.measurement.batched else None)
        model = self.watched(FixedSizeBatches(classifier, size))
        remarks = self._remarks(classifier, model)
        facts = {
            "command": self.how.command, "weights_source": classifier.source,
            "batch_size": batch_size, "workers": self._workers,
            "environment": environment(self.device), "computed_by": made.computed_by,
            "not_folded": made.reason,
        }
        progress, shard = self.reporter.progress, self.how.shard
        with started(store, ids, facts=facts, remarks=remarks, batch_size=batch_size,
                     shard=shard) as start:
            model.register_forward_hook(partial(_beat, progress, start))
            loop = Loop(model, self.images, keeper or self.measurement, store, start,
                        classifier.preprocessing, batch_size, self._workers, self.device,
                        progress)
            share = Share(store, start, shard, retry=self.how.retry_failed)
            if not share.images:
                self.reporter.say(f"{classifier.name}: part {shard} has no images, a run is cut "
                                  f"into blocks of {store.plan.size}")
            loop.measure(share)
            if keeper is not None and not store.missing():
                keeper.finish(ids)

    def _remarks(self, classifier: Classifier, model: torch.nn.Module) -> dict[str, list[str]]:
        """Return, and say, what a reader of the numbers must know of the model and the images."""
        remarks = {"assumed": [classifier.assumed] if classifier.assumed else [],
                   "left_out": [f"{self.images.name}: {each}" for each in self.images.left_out],
                   "probe": [f"{classifier.name}: {each}"
                             for each in probe_first(
                                 model, self.images, classifier.preprocessing, self.device,
                                 gradient=self.measurement.gradient, most=PROBED_IMAGES)]}
        for line in (*remarks["assumed"], *remarks["probe"]):
            self.reporter.say(line)
        return remarks

    @property
    def _workers(self) -> int:
        asked = self.how.workers
        return default_workers(self.device) if asked is None else asked

    def _batch_size(self, classifier: Classifier) -> int:
        asked = self.how.batch_size
        if isinstance(asked, int):
            return asked
        size = classifier.preprocessing.img_size
        if asked is None:
            return default_batch(size, self.device)
        fitted = fit_batch(classifier, size, self.device, gradient=self.measurement.gradient)
        self.reporter.say(f"{classifier.name}: {fitted} images per batch fit into memory")
        return fitted


def _beat(progress: Progress, start: Start, *_: object) -> None:
    progress.beat()
    start.beat()


def _other_versions(run: Run) -> str:
    """Say with which other versions of the libraries that make numbers a run was measured."""
    environment = run.last_start.get("environment")
    then = environment.get("versions", {}) if isinstance(environment, dict) else {}
    here = versions()
    other = [f"{name} {then[name]} ({here[name]} here)" for name in MAKE_NUMBERS
             if name in then and name in here and then[name] != here[name]]
    return f" with {', '.join(other)}" if other else ""


def _defect(name: str, error: Exception) -> ModelError:
    return ModelError(f"{name} must run without an exception",
                      seen=f"it stopped with {type(error).__name__}: {first_line(error)}",
                      hint="report it with the lines printed above; the other models are in the "
                           "table")
