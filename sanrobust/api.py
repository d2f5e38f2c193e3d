"""The experiments as functions for scripts and notebooks; each returns its `Result`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sanrobust.choices import FLOAT32, DataConfig, ModelConfig, RunConfig
from sanrobust.errors import FailedImagesError, Interrupted, UsageError
from sanrobust.experiments.base import Experiment
from sanrobust.options import settings_docs
from sanrobust.preprocessing import Preprocessing
from sanrobust.progress import reporter
from sanrobust.registry import unknown_name
from sanrobust.result import Result, result_of
from sanrobust.run import run
from sanrobust.summary import Summary
from sanrobust.validity.report import Validity
from sanrobust.validity.run import check_models
from sanrobust.validity.settings import CheckSettings

Model = str | nn.Module
Models = Model | Sequence[Model]
Data = Any
"""What ``_DATA`` says; of an experiment that takes folders, one or several of them."""

_DATA = """registered name, path, ``(images, labels)`` as arrays or tensors, a torch dataset of
        ``(image, label)`` or its loader, or a `DataConfig`, which names them; None for the embedded
        digits. Float pixels lie in [0, 1] and are not normalised."""
_FOLDERS = "folder, or several of them."
_SAVING = "    save_adversarial: keep the images that are made in OUT/runs/RUN/adversarial.\n"
_DOC = """{help}

Args:
    models: names, classifiers, networks of torch, or several of them; None for the paper's nine.
    data: {data}
    checkpoint: file with the weights of the one model named.
    preprocessing: how images become the models' pixels; None for each model's own.
    precision: what networks are computed in: ``float32``, ``tf32`` (needs a GPU), ``bfloat16`` or
        ``float16``; pixels and attacks stay float32.
{settings}    out: folder of records and tables.
    batch_size: images per batch, ``auto`` to fit it to memory, None for a default by size.
    workers: processes that decode images; None for none on a CPU and up to 8 for a GPU.
    device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
    threads: of the CPU; None for torch's own number.
    fresh: measure again beside earlier runs.
    retry_failed: measure images again that are recorded as failed.
    progress: whether what happens is shown; None: in a notebook.
{more}
Returns:
    A `Result`: its ``table`` has the models asked for alone, in percent, unrounded.

Raises a `SanrobustError` with what to do, as the command does, and KeyboardInterrupt where it is
stopped, with what was measured saved; where many images failed the result comes with a warning.
"""


def function_of(experiment: Experiment) -> Callable[..., Result]:
    """Return an experiment as a Python function, whose keywords are its settings and `_measured`'s.
    """
    signature = _signature(experiment)

    def measured(models: Models | None = None, **keywords: Any) -> Result:
        unknown = next((name for name in keywords if name not in signature.parameters), None)
        if unknown is not None:
            raise unknown_name("keyword", unknown, signature.parameters,
                               listing=f"help(sanrobust.{experiment.name})")
        names = {field.name for field in dataclasses.fields(experiment.settings)}
        own = {name: keywords.pop(name) for name in names & set(keywords)}
        return _measured(experiment, experiment.settings(**own), models, **keywords)

    measured.__name__ = measured.__qualname__ = experiment.name
    measured.__doc__ = _doc(experiment)
    measured.__signature__ = signature  # type: ignore[attr-defined]
    return measured


def _measured(experiment: Experiment, settings: object, models: Models | None = None, *,
              data: Data = None, checkpoint: str | Path | None = None,
              preprocessing: Preprocessing | None = None, precision: str = FLOAT32,
              out: str | Path = "results",
              batch_size: int | Literal["auto"] | None = None, workers: int | None = None,
              device: str = "auto", threads: int | None = None, fresh: bool = False,
              retry_failed: bool = False, progress: bool | None = None,
              save_adversarial: bool = False) -> Result:
    how = RunConfig(out=_as_path(out), batch_size=batch_size, workers=workers, device=device,
                    threads=threads, fresh=fresh, retry_failed=retry_failed,
                    save_adversarial=save_adversarial)
    try:
        return _result(run(experiment, settings,
                           _models(models, checkpoint, preprocessing, precision),
                           _data(data, experiment), how, reporter(progress)))
    except Interrupted as stopped:  # who catches the errors of single models must not go on
        raise KeyboardInterrupt(str(stopped)) from None


def check(models: Models | None = None, *, data: Data = None,
          checkpoint: str | Path | None = None, preprocessing: Preprocessing | None = None,
          precision: str = FLOAT32, attack: str = "apgd-ce", eps: float | str = 8.0,
          iters: int = 40, queries: int = 300, seed: int = 0, out: str | Path = "results",
          batch_size: int | Literal["auto"] | None = None, workers: int | None = None,
          device: str = "auto", threads: int | None = None, progress: bool | None = None
          ) -> Validity:
    """Judge whether an attack's numbers on models can be believed; a verdict per line.

    Args:
        models, data, checkpoint, preprocessing, precision: as `sanrobust.pgd` takes them. A network
            in train mode is not put in eval mode: that it is not is a wrong line.
        attack: ``apgd-ce``, ``apgd-dlr`` or ``pgd``, in L-inf and away from the prediction.
        eps: radius in 1/255 at which attacks are compared.
        iters: steps of the attack.
        queries: of Square, the attack without gradients.
        seed: of all that is drawn.
        out: folder of the tables ``check.csv``, ``.md`` and ``.json``.
        batch_size, workers, device, threads, progress: as `sanrobust.pgd` takes them.

    Of a set of images without a number of its own (``DataConfig(num_samples=...)``) 64 are attacked
    and 512 are counted for the accuracy.

    Returns a `Validity`, whose ``problem`` says what is wrong. Raises a `SanrobustError` where
    nothing can be checked, and KeyboardInterrupt where it is stopped.
    """
    settings = CheckSettings(attack=attack, eps=eps, iters=iters, queries=queries, seed=seed)
    how = RunConfig(out=_as_path(out), batch_size=batch_size, workers=workers, device=device,
                    threads=threads)
    chosen = data if isinstance(data, DataConfig) else DataConfig(
        data=os.fspath(data) if isinstance(data, os.PathLike) else data)
    try:
        return check_models(settings, _models(models, checkpoint, preprocessing, precision),
                            chosen, how, reporter(progress))
    except Interrupted as stopped:
        raise KeyboardInterrupt(str(stopped)) from None


def _signature(experiment: Experiment) -> inspect.Signature:
    """Return the signature: models, then images, the settings, and how to compute."""
    shared = [each for each in list(inspect.signature(_measured).parameters.values())[2:]
              if experiment.makes_images or each.name != "save_adversarial"]
    own = [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                             annotation=field.type)
           for field in dataclasses.fields(experiment.settings)]
    place = [each.name for each in shared].index("out")
    return inspect.Signature([*shared[:place], *own, *shared[place:]],
                             return_annotation="Result")


def _doc(experiment: Experiment) -> str:
    settings = "".join(textwrap.fill(f"{name}: {text}", 96, initial_indent="    ",
                                     subsequent_indent="        ", break_on_hyphens=False) + "\n"
                       for name, text in settings_docs(experiment.settings).items())
    first = inspect.cleandoc(experiment.help).splitlines()[0]
    return _DOC.format(help=first, settings=settings,
                       data=_DATA if experiment.opens is None else _FOLDERS,
                       more=_SAVING if experiment.makes_images else "")


def _result(summary: Summary) -> Result:
    problem = summary.problem
    if isinstance(problem, FailedImagesError):
        warnings.warn(str(problem), stacklevel=4)
    elif problem is not None:
        raise problem
    return result_of(summary)


def _models(models: Models | None, checkpoint: str | Path | None,
            preprocessing: Preprocessing | None, precision: str) -> ModelConfig:
    several = (models,) if isinstance(models, (str, nn.Module)) else (models or ())
    if not isinstance(several, Sequence) or not all(isinstance(each, (str, nn.Module))
                                                    for each in several):
        raise UsageError("models must be names, classifiers or networks of torch",
                         seen=f"one is {models!r}"[:200],
                         hint="give for example 'resnet26.digits' or a torch.nn.Module")
    if not several and models is not None:
        raise UsageError("there must be a model to measure", seen="the list of models is empty",
                         hint="leave it out for the paper's nine")
    if not isinstance(preprocessing, Preprocessing | None):
        raise UsageError("preprocessing must be a Preprocessing", seen=f"it is {preprocessing!r}",
                         hint="give for example sanrobust.Preprocessing(img_size=32)")
    overrides = {} if preprocessing is None else dict(vars(preprocessing))
    return ModelConfig(models=tuple(several), checkpoint=_as_path(checkpoint),
                       overrides=overrides, precision=precision)


def _data(data: Data, experiment: Experiment) -> tuple[DataConfig, ...]:
    if experiment.opens is not None and isinstance(data, (list, tuple)):
        return tuple(config for each in data for config in _data(each, experiment))
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    return (data if isinstance(data, DataConfig) else DataConfig(data=data),)


def _as_path(value: Any) -> Any:
    """Pass a path on as it was given: the choices turn text into paths and refuse the rest."""
    return value
