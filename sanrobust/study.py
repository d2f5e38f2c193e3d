"""Studies: several architectures trained alike, with several seeds, then measured and averaged.

A study asks which part of a network makes a difference. Its unit is a training run, so intervals
are over seeds: what would change if everything were trained once more.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sanrobust.choices import DataConfig, ModelConfig, RunConfig
from sanrobust.data.catalog import resolve
from sanrobust.data.dataset import Dataset
from sanrobust.errors import Interrupted, MachineError, ProtocolError, UsageError
from sanrobust.experiments.base import Experiment
from sanrobust.experiments.pgd import PGD
from sanrobust.experiments.rotation import ROTATION
from sanrobust.files import require_writable
from sanrobust.metrics import seed_interval
from sanrobust.processes import become_worker, stops_held, workers_ended_on_error
from sanrobust.progress import Reporter
from sanrobust.run import run
from sanrobust.tables import Table, make_table, table_files, write_table
from sanrobust.training.job import TrainingJob, is_trained, train_models
from sanrobust.training.recipes import Recipe
from sanrobust.zoo.checkpoint import read_facts
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.forms import small_config
from sanrobust.zoo.names import architecture
from sanrobust.zoo.resolve import create_model

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], None]

# The relations of the paper's Table 4 and the positions of its Table 8, with the convolution.
DESIGN_SPACE: tuple[str, ...] = (
    "resnet26",
    "san10-pair", "san10-pair(relation=summation)", "san10-pair(relation=concatenation)",
    "san10-pair(relation=hadamard)", "san10-pair(relation=dot)",
    "san10-pair(position=none)", "san10-pair(position=absolute)",
    "san10-patch", "san10-patch(relation=star)", "san10-patch(relation=clique)",
)
_INTERVALS = "95 % t-intervals over training seeds"
_EXPERIMENTS = (ROTATION, PGD)
_MEAN = "_mean"


@dataclass(frozen=True)
class Study:
    """Which architectures to train and measure, and how.

    Attributes:
        models: architectures by name.
        seeds: how many training runs of each; seeds 0, 1, ...
        data: registered dataset with a training split.
        data_root: where registered datasets lie.
        recipe: how to train; its seed is replaced.
        out: folder of weights, records and tables.
        processes: how many networks to train at a time, each on one thread.
        batch_size: images per batch when measuring; changes no number.
    """

    models: tuple[str, ...] = DESIGN_SPACE
    seeds: int = 3
    data: str = "digits"
    data_root: Path | None = None
    recipe: Recipe = field(default_factory=Recipe)
    out: Path = Path("results/design-space")
    processes: int = 1
    batch_size: int | None = None


@dataclass(frozen=True, eq=False)
class Findings:
    """The tables of a study, one row per architecture, averaged over seeds.

    Attributes:
        tables: of rotation and flip, and of the attack.
        files: what was written.
    """

    tables: tuple[Table, ...]
    files: tuple[Path, ...]


def run_study(study: Study, reporter: Reporter) -> Findings:
    """Train what is missing, measure every network and write the averaged tables.

    What a stopped study has trained or measured is not done again. Raises UsageError for an
    impossible study, UnknownNameError for a model that cannot be named, OutputError for a folder
    that cannot be written.
    """
    models = _checked(study)
    require_writable(study.out, *(file for each in _EXPERIMENTS for suffix in ("", _MEAN)
                                  for file in table_files(each, suffix)))
    jobs = [job for job in _jobs(study, models) if not is_trained(job)]
    reporter.say(f"{len(models) * study.seeds} networks, {len(jobs)} to train")
    _train(jobs, study.processes, reporter.say)
    trained = tuple(_load(job) for job in _jobs(study, models))
    data = DataConfig(data=study.data, root=study.data_root)
    how = RunConfig(out=study.out, batch_size=study.batch_size)
    chosen = ModelConfig(models=trained)
    measured = [run(each, each.settings(), chosen, (data,), how, reporter).table
                for each in _EXPERIMENTS]
    means = tuple(_mean(study, models, table) for table in measured)
    files = [path for table in means for path in write_table(table, study.out, _MEAN)]
    return Findings(means, tuple(files))


def average(experiment: Experiment, rows: pd.DataFrame, models: Sequence[str]
            ) -> list[dict[str, object]]:
    """Average the rows of each architecture over its training seeds.

    Args:
        experiment: what was measured.
        rows: of its table; ``model`` is ``ARCH.TAG``, one tag per seed.
        models: architectures in the order of the result.

    Returns one summary per architecture, dataset and part: the mean of every number,
    and 95 % t-intervals over seeds in place of the intervals over images. ``n`` is that of the run
    with the fewest images, ``failed`` counts all runs. Raises ProtocolError when two rows of a
    mean are of the same training run.
    """
    archs = rows["model"].str.rpartition(".")[0]
    keys = ["data", *experiment.layout.parts]
    return [_mean_row(experiment, model, group) for model in models
            for _, group in rows[archs == model].groupby(keys, sort=False)]


def _mean_row(experiment: Experiment, model: str, rows: pd.DataFrame) -> dict[str, object]:
    first = rows.iloc[0]
    if rows["model"].duplicated().any():
        raise ProtocolError("a mean over training runs must count each of them once",
                            seen=f"{rows['model'].mode()[0]} stands twice among those of {model}",
                            hint="report this as a defect, with the command that showed it")
    row: dict[str, object] = {"model": model, "data": first["data"], "n": int(rows["n"].min())}
    measured = [name.removesuffix("_low") for name in rows.columns if name.endswith("_low")]
    for name in measured:
        row[name], row[f"{name}_low"], row[f"{name}_high"] = seed_interval(rows[name].tolist())
        overall = rows.get(f"{name}_all")
        if overall is not None and overall.notna().any():
            # A run without failed images has one rate, over all of its images.
            row[f"{name}_all"] = float(overall.fillna(rows[name]).mean())
    for name in rows.columns:
        if name.endswith("_drop") or name in experiment.layout.extra:
            row[name] = float(rows[name].mean())
    for name in experiment.layout.parts:
        row[name] = first[name]
    row["failed"] = int(rows["failed"].sum())
    row["seeds"] = len(rows)
    return row


def _checked(study: Study) -> tuple[str, ...]:
    if study.seeds < 2:
        raise UsageError("a study must have at least two seeds",
                         seen=f"there are {study.seeds}",
                         hint="one training run has no interval; use --seeds 3")
    if not isinstance(resolve(study.data), Dataset):
        raise UsageError("--data of a study must be a registered dataset with a training split",
                         seen=f"{study.data} is none", hint="type for example --data digits")
    models = tuple(dict.fromkeys(architecture(name).architecture for name in study.models))
    for model in models:
        small_config(model)  # refuses what has none
    return models


def _jobs(study: Study, models: Sequence[str]) -> Iterator[TrainingJob]:
    for seed in range(study.seeds):
        for model in models:
            yield TrainingJob(models=(model,), data=study.data, data_root=study.data_root,
                              out=study.out / "weights", tag=f"s{seed}", device="cpu",
                              recipe=replace(study.recipe, seed=seed))


def _file(job: TrainingJob) -> Path:
    return job.out / f"{job.models[0]}.{job.tag}.safetensors"


def _train(jobs: Sequence[TrainingJob], processes: int, say: Say) -> None:
    """Train networks side by side; each is the same whoever trains it."""
    if not jobs:
        return
    # A forked process would share the parent's threads, which do not survive a fork.
    pool = ProcessPoolExecutor(min(processes, len(jobs)), get_context("spawn"), become_worker)
    try:
        with workers_ended_on_error():
            with stops_held():  # which would end them with a traceback before they can ignore it
                # Not by `map`: what it has cancelled the pool takes for a defect when its processes
                # are ended, and prints a traceback.
                trained = [pool.submit(_train_one, job) for job in jobs]
            for number, made in enumerate(trained, 1):
                say(f"trained {number} of {len(jobs)}: {made.result()}")
    except BrokenProcessPool as error:
        raise MachineError("a study's processes must stay alive", seen="one was ended from outside",
                           hint="type the same command again, with fewer --processes if memory "
                                "ran out; finished networks are kept") from error
    except KeyboardInterrupt:
        raise Interrupted("a study must train every network", seen="it was stopped before that",
                          hint="type the same command again; finished networks are kept") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _train_one(job: TrainingJob) -> str:
    # One thread: another number of them would sum in another order.
    torch.set_num_threads(1)
    path, = train_models(job)
    facts = read_facts(path) or {}
    return f"{job.models[0]}, {job.tag}, held-out top-1 {facts['top1']:.2f} %"


def _load(job: TrainingJob) -> Classifier:
    return create_model(job.models[0], checkpoint=_file(job))


def _mean(study: Study, models: Sequence[str], table: Table) -> Table:
    note = f"Means of {study.seeds} training runs each: {study_command(study)}"
    rows = average(table.experiment, table.rows, models)
    return replace(make_table(table.experiment, rows, note=note), intervals=_INTERVALS)


def study_command(study: Study) -> str:
    """Return the command that makes the study's tables anew."""
    parts = ["sanrobust", "study"]
    if study.models != DESIGN_SPACE:
        parts += [part for model in study.models for part in ("--model", model)]
    default = Study()
    for name, value in (("data", study.data), ("seeds", study.seeds), ("out", study.out)):
        if value != getattr(default, name):
            parts += [f"--{name}", str(value)]
    for name in ("epochs", "batch_size", "lr", "shift"):
        if getattr(study.recipe, name) != getattr(default.recipe, name):
            parts += [f"--{name.replace('_', '-')}", str(getattr(study.recipe, name))]
    return shlex.join(parts)
