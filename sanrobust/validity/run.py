"""The whole of a check: models, images, verdicts, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import TYPE_CHECKING

import torch
from torch import nn

from sanrobust.choices import TF32, DataConfig, ModelConfig, RunConfig
from sanrobust.data.classes import ADVICE, fit_classes
from sanrobust.data.fit import fit_sides
from sanrobust.data.imageset import ImageSet, subset
from sanrobust.data.loader import Batch, batches
from sanrobust.data.lost import first, undecodable
from sanrobust.device import (choose_device, default_workers, device_name, exact, require_tf32,
                              versions)
from sanrobust.errors import (BackendError, DataError, Interrupted, OutputError, SanrobustError,
                              TrainModeError, number_of)
from sanrobust.experiments.catalog import EXPERIMENTS
from sanrobust.files import require_writable, write_text
from sanrobust.inputs import open_images, weights_tag
from sanrobust.kernels.backends import requested, use_backend
from sanrobust.memory import default_batch, fit_batch
from sanrobust.processes import end_if_stopped, stoppable, uninterrupted
from sanrobust.progress import Reporter
from sanrobust.validity.catalog import LINES
from sanrobust.validity.judge import in_train_mode, judged
from sanrobust.validity.report import STEM, SUFFIXES, Validity, texts
from sanrobust.validity.settings import IMAGES, WIDER, CheckSettings
from sanrobust.validity.subject import Subject
from sanrobust.validity.values import NOT_JUDGED, Finding, Verdict
from sanrobust.zoo import catalog
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.chosen import chosen_classifier, shown_model
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.external import is_external
from sanrobust.zoo.switches import kept

if TYPE_CHECKING:
    from sanrobust.choices import Model


def check_models(settings: CheckSettings, models: ModelConfig, data: DataConfig, how: RunConfig,
                 reporter: Reporter) -> Validity:
    """Judge the validity of an attack on models, and write the verdicts.

    Args:
        settings: the attack and how much is looked at.
        models: which; the paper's nine where none is named.
        data: images and labels; of a set without a number of its own some are taken.
        how: where to compute and to write.
        reporter: is told what happens.

    The files are written anew with each model that is done. Raises a deliberate error where no
    model can be checked, and Interrupted where the check is stopped.
    """
    job = _Job(settings, models, data, how, reporter)
    try:
        with exact(how.threads, tf32=models.precision == TF32), \
                use_backend(requested(how.backend)), stoppable():
            return job.run()
    except KeyboardInterrupt:
        with uninterrupted():
            raise job.stopped() from None


@dataclass
class _Begun:
    """The model in hand: its name, its images, what is known of it, and the lines judged so far."""

    model: str
    data: str
    about: Mapping[str, object]
    found: dict[str, Finding] = field(default_factory=dict)


class _Job:
    """One check of several models on the same images."""

    def __init__(self, settings: CheckSettings, models: ModelConfig, data: DataConfig,
                 how: RunConfig, reporter: Reporter) -> None:
        self.settings, self.models, self.data, self.how = settings, models, data, how
        self.reporter = reporter
        self.names: tuple[Model, ...] = models.models or PAPER_ORDER
        self.verdicts: list[Verdict] = []
        self.failed: dict[str, SanrobustError] = {}
        self.remarks: dict[str, None] = {}
        self.about: dict[str, Mapping[str, object]] = {}
        self.begun: _Begun | None = None
        self.device = choose_device(how.device, None)
        if models.precision == TF32:
            require_tf32(self.device)

    def run(self) -> Validity:
        """Judge one model after the other."""
        images = open_images(self.data, EXPERIMENTS.get("pgd"))
        self.tag = weights_tag(self.data, images)
        self._say_what_is_checked(images)
        for name in self.names:  # a mistyped name is refused before anything is computed
            if isinstance(name, str) and not is_external(name) and self.models.checkpoint is None:
                catalog.find(name, tag=self.tag)
        require_writable(self.how.out, *(f"{STEM}.{suffix}" for suffix in SUFFIXES))
        made = None
        for name in self.names:
            try:
                with kept():
                    self._judge(name, images)
                    self._enter_begun()
            except (Interrupted, OutputError, BackendError):
                raise
            except SanrobustError as error:
                self.failed[shown_model(name)], self.begun = error, None
                if len(self.names) > 1:
                    self.reporter.say(str(error))
                continue
            made = self._written()
        if made is None:
            raise next(iter(self.failed.values()))
        return self._written() if self.failed else made

    def stopped(self) -> Interrupted:
        """Write what was judged before a stop, and return what says how much that is."""
        seen = f"it was stopped after {len(self.about)} of {len(self.names)} models"
        if self.begun and self.begun.found:
            seen += f" and {len(self.begun.found)} of {len(LINES)} lines of {self.begun.model}"
            self._enter_begun()
            self._written()
        return Interrupted("a check must end by itself to judge all that it was asked for",
                           seen=seen, hint="type the same command again" + (
                               f"; what was judged is in {self.how.out / STEM}.csv"
                               if self.verdicts else ""))

    def _say_what_is_checked(self, images: ImageSet) -> None:
        if self.data.data is None:
            self.reporter.say("no --data: checking on the held-out part of the digits")
        self.reporter.say(f"{images.name}: {number_of(len(images.refs), 'image')}, "
                          f"{device_name(self.device)}")

    def _written(self) -> Validity:
        settings = {**self.settings.as_dict(), "precision": self.models.precision}
        made = Validity(tuple(self.verdicts), settings, failed=dict(self.failed), about=self.about)
        files = {self.how.out / f"{STEM}.{suffix}": text for suffix, text in texts(made).items()}
        with uninterrupted():  # all files or none
            for path, text in files.items():
                write_text(path, text)
        unchecked = [f"not checked: {name}: {error}" for name, error in self.failed.items()]
        return replace(made, files=tuple(files), remarks=(
            *self.remarks, *(unchecked if len(self.names) > 1 else ())))

    def _enter_begun(self) -> None:
        """Enter the verdicts on the model in hand, under a name that no earlier one has."""
        assert self.begun is not None
        model, found = self.begun.model, self.begun.found
        others = (f"{model} ({number})" for number in count(2))
        free = next(each for each in chain([model], others) if each not in self.about)
        left = Finding(NOT_JUDGED, "because the check was stopped", "check again")
        self.verdicts += [Verdict(free, self.begun.data, line, found.get(line, left))
                          for line in LINES.names()]
        self.about[free], self.begun = self.begun.about, None

    def _judge(self, name: Model, images: ImageSet) -> None:
        shown = shown_model(name)
        try:
            _require_eval(name, shown)
            classifier = chosen_classifier(name, self.models, tag=self.tag, reporter=self.reporter)
        except TrainModeError as error:
            self.begun = _Begun(shown, images.name, {}, dict(in_train_mode(error)))
            return
        subject = self._subject(classifier.to(self.device), name, images)
        self.begun = _Begun(classifier.name, images.name, {
            "weights": classifier.weights_digest,
            "preprocessing": classifier.preprocessing.as_dict(),
            "computed_by": subject.fast.words, "attacked_images": list(subject.attacked.ids),
            "accuracy_images": len(subject.wider.ids), "versions": versions()})
        for line, finding in judged(subject):
            end_if_stopped()  # where a library has dropped the stop, the finding is of its making
            self.begun.found[line] = finding

    def _subject(self, classifier: Classifier, name: Model, images: ImageSet) -> Subject:
        images = fit_classes(images, names=classifier.classes, model=classifier.name,
                             num_classes=classifier.num_classes, advice=ADVICE)
        for remark in (*fit_sides(images, classifier.preprocessing), *images.left_out):
            self.reporter.say(remark)
        if classifier.assumed:
            self.reporter.say(classifier.assumed)
        attacked, wider = _parts(images, self.data.num_samples)
        fast = accelerate(classifier, self.device, precision=self.models.precision,
                          fold=self.how.fold)
        batch_size = self._batch_size(fast.classifier)
        workers = self.how.workers
        load = _Loader(classifier, default_workers(self.device) if workers is None else workers,
                       batch_size)
        published, source = _published(classifier, name, images, self.models)
        seen = load(wider)
        if seen.failures:
            lost = {each.id: each.reason for each in seen.failures}
            self.remarks[undecodable(lost, len(wider.refs), "checked")] = None
        return Subject(classifier, fast, load(attacked).to(self.device), seen, images.name,
                       self.settings, batch_size, published, source, self.reporter.progress,
                       classifier.assumed, self.models.precision)

    def _batch_size(self, classifier: Classifier) -> int:
        size = classifier.preprocessing.img_size
        asked = self.how.batch_size
        if asked == "auto":
            return fit_batch(classifier, size, self.device, gradient=True)
        return asked or default_batch(size, self.device)


class _Loader:
    """Decodes images for a model; raises DataError where none can be had."""

    def __init__(self, classifier: Classifier, workers: int, batch_size: int) -> None:
        self._preprocessing = classifier.preprocessing
        self._workers, self._batch_size = workers, batch_size

    def __call__(self, images: ImageSet) -> Batch:
        """Return all images that can be decoded, in their order."""
        count = len(images.refs)
        plan = [range(start, min(start + self._batch_size, count))
                for start in range(0, count, self._batch_size)]
        parts = list(batches(images, self._preprocessing, plan=plan, workers=self._workers))
        failures = tuple(each for part in parts for each in part.failures)
        whole = Batch(tuple(name for part in parts for name in part.ids),
                      torch.cat([part.labels for part in parts]),
                      torch.cat([part.pixels for part in parts]), failures)
        if not whole.ids:
            raise DataError("a check must have images that can be decoded",
                            seen=first({each.id: each.reason for each in failures}),
                            hint="mend the images or name others with --data")
        return whole


def _parts(images: ImageSet, asked: int | None) -> tuple[ImageSet, ImageSet]:
    """Return the images to attack and those whose accuracy is counted; all where a number is given.
    """
    count = len(images.refs)
    if asked is not None:
        return images, images
    return subset(images, min(IMAGES, count)), subset(images, min(WIDER, count))


def _require_eval(model: Model, shown: str) -> None:
    """Raise TrainModeError for a network made in Python that was left in train mode."""
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if module.training:
                raise TrainModeError(
                    f"every part of {shown} must be in eval mode",
                    seen=f"{name or shown} ({type(module).__name__}) is in train mode",
                    hint="call its eval() before it is attacked")


def _published(classifier: Classifier, name: Model, images: ImageSet, chosen: ModelConfig
               ) -> tuple[float | None, str]:
    """Return the accuracy that is known of a model on such images and who says so, or why not."""
    unknown = "no published accuracy of these weights is known"
    if chosen.checkpoint is not None or is_external(classifier.name):
        return None, unknown
    try:
        entry = catalog.find(classifier.name)
    except SanrobustError:  # a network of somebody's own
        return None, unknown
    if entry.top1 is None or not isinstance(name, (str, Classifier)):
        return None, unknown
    if entry.data != images.name:
        return None, f"its published accuracy is of {entry.data}"
    if entry.preprocessing != classifier.preprocessing:
        return None, "its published accuracy is of another preprocessing"
    return entry.top1, entry.reference
