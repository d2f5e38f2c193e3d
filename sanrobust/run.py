"""The one place where models, data, experiments, records and tables meet."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from types import FrameType

import torch

from sanrobust.attacks.settings import AttackSettings
from sanrobust.choices import DataChoice, HowToRun, ModelChoice
from sanrobust.data.catalog import DATASETS
from sanrobust.data.datasets import open_dataset
from sanrobust.data.imageset import ImageSet
from sanrobust.device import choose_device, device_name, environment, make_exact
from sanrobust.errors import DownloadError, Interrupted, ModelError, OutputError
from sanrobust.evaluate import Experiment, check_classes, evaluate
from sanrobust.experiments import Rotation, TargetedPgd
from sanrobust.kernels.backends import use_backend
from sanrobust.memory import default_batch, fit_batch
from sanrobust.progress import Reporter, download_lines
from sanrobust.records import RunStore
from sanrobust.spec import RunSpec
from sanrobust.steady import SteadyBatches, least_batch
from sanrobust.summary import Summary, rebuild
from sanrobust.zoo import catalog
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.external import is_external
from sanrobust.zoo.folded import accelerate
from sanrobust.zoo.resolve import create_model

DEFAULT_DATA = "digits"
DEFAULT_TAG = "in1k"
SWITCHED_OFF = "it was switched off"


def run_rotation(models: ModelChoice, data: DataChoice, how: HowToRun,
                 reporter: Reporter) -> Summary:
    """Measure the five views of Table 9 and rebuild the rotation tables."""
    return _run(Rotation(), models, data, how, reporter)


def run_pgd(models: ModelChoice, data: DataChoice, how: HowToRun, reporter: Reporter, *,
            settings: AttackSettings) -> Summary:
    """Attack as in Table 10 and rebuild the PGD tables."""
    for budget in settings.budgets:
        shortfall = None if settings.random_start else budget.shortfall()
        if shortfall:
            reporter.say(f"note: {shortfall}")
    return _run(TargetedPgd(settings), models, data, how, reporter)


def _run(experiment: Experiment, models: ModelChoice, data: DataChoice, how: HowToRun,
         reporter: Reporter) -> Summary:
    job = _Job(experiment, models, open_images(data), _tag(data), how, choose_device(how.device),
               reporter)
    make_exact()
    if data.data is None:
        reporter.say(f"no --data: measuring on {DATASETS.get(DEFAULT_DATA).description}")
    reporter.say(f"{job.images.name}: {len(job.images.refs)} images, {device_name(job.device)}")
    chosen = use_backend(how.backend) if how.backend else nullcontext()
    job.refuse_unfit()
    with chosen, _stoppable():
        failed = job.run_all()
    if failed:
        if len(failed) < len(job.names):
            rebuild(how.out, experiment.name)
        raise _summed_up(failed)
    return rebuild(how.out, experiment.name)


def open_images(data: DataChoice) -> ImageSet:
    """Open the dataset of a choice; raises DataError or UnknownNameError when it cannot serve."""
    return open_dataset(data.data or DEFAULT_DATA, root=data.root, labels=data.labels,
                        class_map=data.class_map, download=data.download,
                        num_samples=data.num_samples, name=data.name)


def _tag(data: DataChoice) -> str:
    """Return the weights that a bare architecture name means on the chosen data."""
    word = data.data or DEFAULT_DATA
    return (DATASETS.get(word).tag or word) if word in DATASETS else DEFAULT_TAG


def _summed_up(failed: dict[str, ModelError | DownloadError]) -> ModelError | DownloadError:
    first = next(iter(failed.values()))
    if len(failed) == 1:
        return first
    return type(first)("every model asked for must run", seen=f"{', '.join(failed)} did not",
                       hint="see the lines above; the other models are in the tables")


@dataclass(frozen=True)
class _Job:
    """One command: an experiment on several models over the same images."""

    experiment: Experiment
    models: ModelChoice
    images: ImageSet
    tag: str
    how: HowToRun
    device: torch.device
    reporter: Reporter

    @property
    def names(self) -> Sequence[str | Classifier]:
        """The models asked for, the paper's nine by default."""
        return self.models.models or PAPER_ORDER

    def refuse_unfit(self) -> None:
        """Refuse a mistyped name or other classes before anything is fetched or computed."""
        for name in self.names:
            if self.models.checkpoint is None and isinstance(name, str) and not is_external(name):
                entry = catalog.find(name, tag=self.tag)
                check_classes(self.images, num_classes=entry.architecture.num_classes,
                              model=entry.name)

    def run_all(self) -> dict[str, ModelError | DownloadError]:
        """Run the models one after another and return those that could not be had."""
        failed: dict[str, ModelError | DownloadError] = {}
        for name in self.names:
            try:
                self._run_one(name)
            except (ModelError, DownloadError) as error:
                # One model that cannot be had must not cost the results of the others.
                failed[str(name)] = error
                if len(self.names) > 1:
                    self.reporter.say(str(error))
        return failed

    def _run_one(self, name: str | Classifier) -> None:
        classifier = self._classifier(name)
        check_classes(self.images, num_classes=classifier.num_classes, model=classifier.name)
        self.experiment.check(self.images.refs, num_classes=classifier.num_classes)
        with RunStore(self.how.out, self._spec(classifier), fresh=self.how.fresh) as store:
            if store.header().get("status") == "complete":
                self.reporter.say(f"{classifier.name}: already complete in {store.folder}; "
                                  "--fresh measures it again")
                return
            reason: str | None = SWITCHED_OFF
            if self.how.fold:
                # Bound to the same name, so that the unfolded weights can be freed.
                classifier, reason = accelerate(classifier, self.device)
            self._fill(store, classifier, reason)

    def _classifier(self, name: str | Classifier) -> Classifier:
        if isinstance(name, Classifier):
            return name.to(self.device)
        classifier = create_model(name, checkpoint=self.models.checkpoint,
                                  use_ema=self.models.use_ema, tag=self.tag,
                                  overrides=self.models.overrides, say=self.reporter.say,
                                  progress=download_lines(str(name), self.reporter.say))
        return classifier.to(self.device)

    def _spec(self, classifier: Classifier) -> RunSpec:
        return RunSpec(
            experiment=self.experiment.name, model=classifier.name,
            weights=classifier.weights_digest, preprocessing=classifier.preprocessing,
            data=self.images.name, data_digest=self.images.digest, images=len(self.images.refs),
            settings=self.experiment.settings())

    def _fill(self, store: RunStore, classifier: Classifier, not_folded: str | None) -> None:
        batch_size = self._batch_size(classifier)
        facts = {
            "started": _now(), "weights_source": classifier.source, "batch_size": batch_size,
            "workers": self.how.workers, "environment": environment(self.device),
            "not_folded": not_folded, **store.header(),
        }
        least = least_batch(self.device) if not_folded and self.experiment.batched else 1
        with _header(store, facts):
            evaluate(SteadyBatches(classifier, least), self.images, self.experiment, store,
                     preprocessing=classifier.preprocessing, batch_size=batch_size,
                     workers=self.how.workers, device=self.device,
                     progress=self.reporter.progress)

    def _batch_size(self, classifier: Classifier) -> int:
        asked = self.how.batch_size
        if isinstance(asked, int):
            return asked
        size = classifier.preprocessing.img_size
        if asked is None:
            return default_batch(size, self.device)
        fitted = fit_batch(classifier, size, self.device, gradient=self.experiment.gradient)
        self.reporter.say(f"{classifier.name}: {fitted} images per batch fit into memory")
        return fitted


@contextmanager
def _header(store: RunStore, facts: dict[str, object]) -> Iterator[None]:
    """Keep ``run.json`` true while the block computes: its status and its seconds so far."""
    started = time.monotonic()
    before = facts.get("seconds", 0.0)
    assert isinstance(before, (int, float))

    def write(status: str) -> None:
        seconds = round(before + time.monotonic() - started, 3)
        store.write_header({**facts, "status": status, "seconds": seconds, "updated": _now()})

    write("running")
    try:
        yield
    except KeyboardInterrupt:
        write("interrupted")
        raise Interrupted(
            "a run must finish to enter the tables",
            seen=f"it was stopped after {len(store.recorded())} of {store.spec.images} images",
            hint="type the same command again to go on from there") from None
    except Exception:
        with suppress(OutputError):
            write("failed")
        raise
    write("complete")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let a polite kill stop a run as Ctrl-C does, with everything saved."""
    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("a command must end by itself to write its tables",
                          seen="it was stopped before it measured an image of the next model",
                          hint="type the same command again; what was measured is saved") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
