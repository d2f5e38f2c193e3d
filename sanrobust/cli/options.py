"""Options that several commands share, named as in timm's validation script."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from sanrobust.choices import (FLOAT32, MOST_PROCESSES, PRECISIONS, DataConfig, ModelConfig,
                               RunConfig, is_utf8)
from sanrobust.cli.group import typed
from sanrobust.errors import UsageError, shortened
from sanrobust.options import BatchSize, Number, Triple, Whole, refuse
from sanrobust.preprocessing import CROP_MODES, INTERPOLATIONS, LARGEST_SIDE
from sanrobust.shards import Shard, find_shard

Command = TypeVar("Command", bound=Callable[..., Any])


class _Place(click.Path):
    """A path that readers of every kind of file can open."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Turn the text of the option into a path."""
        path = os.path.expanduser(value)  # a shell expands no ~ behind --out=
        if not is_utf8(path):
            refuse(param, "a path in UTF-8", value, "results")
        if path.startswith("~"):
            refuse(param, "a path, or ~ and the name of a user", value, f"./{shortened(path)}")
        return Path(path)


PATH = _Place(path_type=Path)


def _stack(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command
    return decorate


def data_options(command: Command) -> Command:
    """Add the options that choose images and labels."""
    return _stack(
        click.option("--data", envvar="SANROBUST_DATA", metavar="NAME|PATH",
                     help="Registered name, ImageFolder, flat folder with --labels, tar shards "
                          "(file, folder or pattern), NPZ, PT or safetensors with images and "
                          "labels, hf:NAME[:SPLIT] or a saved dataset. "
                          "[env: SANROBUST_DATA; default: the embedded digits]"),
        click.option("--labels", type=PATH, metavar="FILE",
                     help="CSV with file,class_index for a flat folder."),
        click.option("--class-map", type=PATH, metavar="FILE",
                     help="CSV with folder,class_index for an ImageFolder."),
        click.option("--data-name", metavar="NAME",
                     help="What tables call your own images; a registered name such as imagenet "
                          "where they are that set's, with the networks trained on it."),
        click.option("--data-root", type=PATH, envvar="SANROBUST_DATA_ROOT", metavar="FOLDER",
                     help="Where registered datasets lie. [env: SANROBUST_DATA_ROOT]"),
        click.option("--download/--no-download", default=False,
                     help="Fetch a registered dataset that is not there."),
        click.option("--num-samples", type=Whole(1, example=100), metavar="N",
                     help="A fixed subset of N images."),
    )(command)


def model_options(command: Command) -> Command:
    """Add the options that choose models, weights and preprocessing."""
    return _stack(
        click.option("-m", "--model", "models", multiple=True, metavar="NAME",
                     help="Zoo name, with options as in 'san10-pair(relation=hadamard)', "
                          "torchvision/NAME, timm/NAME or package.module:callable; repeatable. "
                          "[default: the paper's nine]"),
        click.option("--checkpoint", type=PATH, metavar="FILE", help="Weights of the one model."),
        click.option("--use-ema", is_flag=True,
                     help="Take the averaged weights of a --checkpoint that has both."),
        click.option("--img-size", type=Whole(1, LARGEST_SIDE, example=224),
                     metavar="PIXELS", help="Side of the centre crop."),
        click.option("--crop-pct", type=Number(0, LARGEST_SIDE, "0.875", min_open=True),
                     metavar="PART", help="Crop side over resized side."),
        click.option("--crop-mode", type=click.Choice(CROP_MODES),
                     help="Resize the short side, both sides, or the long side with a border."),
        click.option("--interpolation", type=click.Choice(INTERPOLATIONS)),
        click.option("--mean", type=Triple(), help="Normalisation mean per channel."),
        click.option("--std", type=Triple(), help="Normalisation deviation per channel."),
        click.option("--no-normalize", is_flag=True,
                     help="The model takes pixels in [0, 1]: mean 0, deviation 1."),
        click.option("--precision", type=click.Choice(PRECISIONS), default=FLOAT32,
                     show_default=True,
                     help="What networks are computed in; pixels and attacks stay float32. tf32 "
                          "needs a GPU."),
    )(command)


def compute_options(command: Command) -> Command:
    """Add the options that say where to compute and to write; none of them changes a number."""
    return _stack(
        click.option("--out", type=PATH, default=Path("results"), show_default=True,
                     metavar="FOLDER", help="Folder of records and tables."),
        click.option("-b", "--batch-size", type=BatchSize(),
                     help="Images per batch; auto fits it to memory. [default: by image size]"),
        click.option("-j", "--workers", type=Whole(0, MOST_PROCESSES), metavar="N",
                     help="Processes that decode images. [default: none on a CPU, up to 8 for a "
                          "GPU]"),
        click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]"),
        click.option("--threads", type=Whole(1), metavar="N",
                     help="Threads of the CPU. [default: torch's own number]"),
        click.option("--backend", metavar="NAME", help="Attention kernels; see sanrobust info."),
        click.option("--fold/--no-fold", default=True, show_default=True,
                     help="Compute a SAN as a whole where the native kernels can, and other "
                          "networks with batch norms inside their convolutions."),
    )(command)


def run_options(command: Command) -> Command:
    """Add the options that say how to run; none of them changes a number."""
    return _stack(
        compute_options,
        click.option("--shard", metavar="i/n",
                     help="Measure part i of n of the images, i from 1; run all n in any order, "
                          "at once or not. [default: what torchrun or SLURM says]"),
        click.option("--processes", type=Whole(1, MOST_PROCESSES), default=1, show_default=True,
                     metavar="N", help="Processes of this machine that share the images."),
        click.option("--fresh/--resume", default=False,
                     help="Start anew beside earlier runs, or go on with them. [default: resume]"),
        click.option("--retry-failed", is_flag=True,
                     help="Measure images again that are recorded as failed."),
        click.option("--max-failed", type=Number(0, 1, "0.05"), default=RunConfig.max_failed,
                     show_default=True, metavar="PART",
                     help="Part of the images that may fail; beyond it the exit code is 9, and the "
                          "table the same."),
    )(command)


def folder_options(command: Command) -> Command:
    """Add the folders whose images are measured, where these are no dataset's."""
    return _stack(
        click.argument("folders", nargs=-1, required=True, type=PATH, metavar="FOLDER..."),
        click.option("--num-samples", type=Whole(1, example=100), metavar="N",
                     help="A fixed subset of N images of each folder."),
    )(command)


def which_runs(command: Command) -> Command:
    """Add the options that choose among the runs of a folder of results."""
    return _stack(
        click.option("-m", "--model", "models", multiple=True, metavar="NAME",
                     help="Only runs of this model, by full name or architecture; repeatable."),
        click.option("--data", multiple=True, metavar="NAME",
                     help="Only runs on the dataset that tables call so; repeatable."),
        click.option("--run", "runs", multiple=True, metavar="FOLDER",
                     help="Only the run whose folder under OUT/runs begins so or has this digest; "
                          "repeatable."),
    )(command)


def save_option(command: Command) -> Command:
    """Add the option that keeps the images which an experiment makes; it changes no number."""
    return click.option("--save-adversarial", is_flag=True,
                        help="Keep the attacked images as PNG, or NPZ where they are between 8-bit "
                             "values, with an index, in OUT/runs/RUN/adversarial.")(command)


def take_data(values: dict[str, Any]) -> DataConfig:
    """Take the values of `data_options` out of a command's parameters."""
    return DataConfig(data=values.pop("data"), labels=values.pop("labels"),
                      class_map=values.pop("class_map"), root=values.pop("data_root"),
                      download=values.pop("download"), num_samples=values.pop("num_samples"),
                      name=values.pop("data_name"))


def take_folders(values: dict[str, Any]) -> tuple[DataConfig, ...]:
    """Take the values of `folder_options` out of a command's parameters."""
    folders, num_samples = values.pop("folders"), values.pop("num_samples")
    return tuple(DataConfig(data=str(folder), num_samples=num_samples) for folder in folders)


def take_models(values: dict[str, Any]) -> ModelConfig:
    """Take the values of `model_options` out of a command's parameters.

    Raises UsageError when two of them exclude each other.
    """
    fields = ("img_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
    given = {name: value for name in fields if (value := values.pop(name)) is not None}
    if values.pop("no_normalize"):
        given |= _unnormalised(given)
    return ModelConfig(models=tuple(values.pop("models")), checkpoint=values.pop("checkpoint"),
                       use_ema=values.pop("use_ema"), overrides=given,
                       precision=values.pop("precision"))


def _unnormalised(given: Mapping[str, object]) -> dict[str, object]:
    twice = [f"--{name}" for name in ("mean", "std") if name in given]
    if twice:
        raise UsageError("--no-normalize must stand without --mean and --std",
                         seen=f"{' and '.join(twice)} is given too",
                         hint="leave out one or the other")
    return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def take_shard(values: dict[str, Any]) -> Shard:
    """Take which part of the images to measure out of a command's parameters.

    Raises UsageError where ``--shard`` stands beside ``--processes``.
    """
    text = values.pop("shard")
    if text is not None and values["processes"] > 1:
        raise UsageError("--shard must stand without --processes", seen="both are given",
                         hint="leave out one: --processes makes the parts itself")
    return find_shard(text, os.environ) if values["processes"] == 1 else Shard()


def take_how(values: dict[str, Any]) -> RunConfig:
    """Take the values of `run_options` out of a command's parameters."""
    fields = ("out", "batch_size", "workers", "device", "threads", "backend", "fresh",
              "retry_failed", "fold",
              "max_failed")
    shard = take_shard(values)
    return RunConfig(**{name: values.pop(name) for name in fields}, command=typed(), shard=shard,
                     save_adversarial=values.pop("save_adversarial", False))
