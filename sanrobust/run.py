"""The one place where models, data, experiments, records and tables meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sanrobust.choices import TF32, DataConfig, ModelConfig, RunConfig
from sanrobust.device import choose_device, exact, require_tf32
from sanrobust.errors import Interrupted, OutputError, SanrobustError
from sanrobust.experiments.base import Experiment
from sanrobust.files import require_writable
from sanrobust.inputs import open_images, weights_tag
from sanrobust.job import Job, Watch
from sanrobust.kernels.backends import requested, use_backend
from sanrobust.processes import stoppable
from sanrobust.progress import Reporter
from sanrobust.runs import open_run
from sanrobust.steady import FixedSizeBatches
from sanrobust.summary import Summary, Unfinished, summarise_parts
from sanrobust.tables import table_files


def _unwatched(model: FixedSizeBatches) -> torch.nn.Module:
    return model


def run(experiment: Experiment, settings: object, models: ModelConfig,
        data: Sequence[DataConfig], how: RunConfig, reporter: Reporter, *,
        watched: Watch = _unwatched) -> Summary:
    """Measure models in an experiment and write its table of them.

    Args:
        experiment: what to measure.
        settings: an instance of its settings.
        models, how: of which models, and how it is computed.
        data: on which images, each set by itself.
        reporter: who is told what happens.
        watched: returns the model that computes as the loop is to call it, the same or around it.

    Returns the table of the models asked for; its problem says which could not be measured. Raises
    a deliberate error when none could, or nothing may be computed at all, or another process has
    not finished what it measures.
    """
    done = run_part(experiment, settings, models, data, how, reporter, watched=watched)
    if isinstance(done, Summary):
        return done
    seen = done.lines[0].removeprefix("no table yet: ")
    raise done.problem or OutputError("a table must have whole runs", seen=seen,
                                      hint="wait for who measures the rest, and ask again")


def run_part(experiment: Experiment, settings: object, models: ModelConfig,
             data: Sequence[DataConfig], how: RunConfig, reporter: Reporter, *,
             watched: Watch = _unwatched) -> Summary | Unfinished:
    """Do as `run` for the part of the images that ``how`` names.

    The table is made by each process that finds all parts measured when its own is.
    """
    return tabulate(*measure_part(experiment, settings, models, data, how, reporter,
                                  watched=watched), how)


def measure_part(experiment: Experiment, settings: object, models: ModelConfig,
                 data: Sequence[DataConfig], how: RunConfig, reporter: Reporter, *,
                 watched: Watch = _unwatched
                 ) -> tuple[tuple[Path, ...], dict[str, SanrobustError]]:
    """Measure what `run_part` does; return the runs' folders and the errors by model."""
    device = choose_device(how.device, how.shard.local)
    if models.precision == TF32:
        require_tf32(device)
    measurement = experiment.prepare(settings)
    for note in measurement.notes:
        reporter.say(note)
    jobs = [Job(experiment, measurement, models, images, weights_tag(each, images), how, device,
                reporter, watched, f" with {each.data}" if len(data) > 1 else "")
            for each in data for images in [open_images(each, experiment)]]
    for each, job in zip(data, jobs, strict=True):
        job.say_what_is_measured(is_default=each.data is None)
    chosen = use_backend(requested(how.backend))
    for job in jobs:
        job.refuse_unfit()
    require_writable(how.out, *table_files(experiment))
    folders: dict[Path, None] = {}
    failed: dict[str, SanrobustError] = {}
    try:
        with exact(how.threads), chosen, stoppable():
            for job in jobs:
                job.run_all(folders, failed)
    except KeyboardInterrupt:
        raise Interrupted("a command must end by itself to write its tables",
                          seen="it was stopped before it measured an image of the next model",
                          hint="type the same command again; what was measured is saved") from None
    return tuple(folders), failed


def tabulate(folders: Sequence[Path], failed: Mapping[str, SanrobustError], how: RunConfig
             ) -> Summary | Unfinished:
    """Return the table of runs, or what is missing of them; raises where there is no run."""
    problem = _summed_up(failed, has_table=bool(folders)) if failed else None
    if problem is not None and not folders:
        raise problem
    return summarise_parts([open_run(folder) for folder in folders], how.out,
                           max_failed=how.max_failed, problem=problem)


def _summed_up(failed: Mapping[str, SanrobustError], *, has_table: bool) -> SanrobustError:
    first = next(iter(failed.values()))
    if len(failed) == 1:
        return first
    return type(first)("every model asked for must run", seen=f"{', '.join(failed)} did not",
                       hint="see the lines above" + (
                           "; the other models are in the table" if has_table else ""))
