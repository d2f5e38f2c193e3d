"""Training networks of the zoo and writing what comes of it."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from sanrobust.data.catalog import DATASETS
from sanrobust.device import choose_device, exact
from sanrobust.errors import UsageError, shown_value
from sanrobust.files import (atomic_write, previous_name, require_writable, sha256_file,
                             write_keeping)
from sanrobust.progress import Reporter
from sanrobust.spec import digest_of
from sanrobust.training.group import Group, group, require_equal_shares
from sanrobust.training.history import write_history
from sanrobust.training.loop import Say, Sets, Training
from sanrobust.training.recipes import Recipe
from sanrobust.training.scoring import Score
from sanrobust.training.splits import Source, check_sets, open_sets
from sanrobust.training.state import read_state, write_state
from sanrobust.zoo import trained_list
from sanrobust.zoo.blocks import BlockNetwork
from sanrobust.zoo.build import build
from sanrobust.zoo.catalog import PAPER_ORDER
from sanrobust.zoo.checkpoint import METADATA_KEY, read_state_dict, safetensors_bytes
from sanrobust.zoo.entry import Entry, Packaged
from sanrobust.zoo.facts import facts
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.fit import head_classes, load_strict, shapes
from sanrobust.zoo.forms import imagenet_config, small_config
from sanrobust.zoo.names import canonical
from sanrobust.zoo.wrapping import aligned

SAVE_SECONDS = 60.0
_STATE, _BEST, _HISTORY = "state.pt", "best.safetensors", ("history.csv", "history.png")


@dataclass(frozen=True)
class TrainingJob:
    """Which networks to train on what, and where to put them.

    Attributes:
        models: architectures in any spelling (`sanrobust.zoo.names`); empty for the paper's nine.
        data: registered dataset with a training split, or an ImageFolder.
        held_out: ImageFolder of unseen images when ``data`` is a folder.
        val_fraction: part of the training images that is held out instead.
        val_per_class: or how many of each class.
        data_root: where registered datasets lie.
        out: folder of the files.
        tag: tag of the weights; None takes the name of the data.
        named: name of the recipe that ``recipe`` was made from.
        recipe: how to train.
        finetune: weights to begin with; a head of other length is left out.
        workers: processes that decode images.
        grad_checkpointing: compute blocks again for their gradients; the weights are the same.
        device: where to train.
        fresh: train anew what is trained, and begin anew what was stopped.
        save_every: seconds of training after which its state is written.
    """

    models: tuple[str, ...] = ()
    data: str = "digits"
    held_out: Path | None = None
    val_fraction: float | None = None
    val_per_class: int | None = None
    data_root: Path | None = None
    out: Path = Path("weights")
    tag: str | None = None
    named: str = "small"
    recipe: Recipe = field(default_factory=Recipe)
    finetune: Path | None = None
    workers: int = 0
    grad_checkpointing: bool = False
    device: str = "auto"
    fresh: bool = False
    save_every: float = SAVE_SECONDS


@exact()
def train_models(job: TrainingJob, reporter: Reporter = Reporter()) -> list[Path]:
    """Train each network, write it at once and list it in ``TAG.json``; return the files.

    What is trained already is left as it is, and a training that was stopped goes on. Weights of
    the same name, otherwise made, stay beside the new ones as ``FILE.previous``. Beside each file
    of weights a folder of its name has the history, the weights of the epoch with the highest
    held-out accuracy, and while it lasts the state of the training.

    Raises before anything is trained UnknownNameError for a name that is no architecture,
    UsageError for a tag or recipe that cannot be meant, DataError for held-out images of other
    classes, CheckpointError for weights to begin with that do not read, and OutputError for files
    that cannot be written.
    """
    _require_plain(_tag(job))
    form = small_config if job.recipe.form == "small" else imagenet_config
    forms = {canonical(arch): form(arch) for arch in job.models or PAPER_ORDER}
    local = os.environ.get("LOCAL_RANK")
    device = choose_device(job.device, None if local is None else int(local))
    sets, classes = open_sets(Source(job.data, job.held_out, job.val_fraction, job.val_per_class,
                                     job.data_root, job.recipe.seed))
    files = [_file_name(job, arch) for arch in forms]
    require_writable(job.out, *files, *(previous_name(Path(file)).name for file in files))
    trained_list.read(_list_of(job))
    if job.finetune is not None:
        read_state_dict(job.finetune)  # refuses what is no checkpoint
    check_sets(sets, job.recipe.batch_size)
    with group(device) as members:
        width, option = ((job.recipe.micro_batch, "--micro-batch") if job.recipe.micro_batch
                         else (job.recipe.batch_size, "--batch-size"))
        require_equal_shares(width, members.share, option, pairs=bool(job.recipe.mixup))
        if not members.leads:
            reporter = Reporter()
        for images in (sets.train, sets.test):
            for remark in images.left_out:
                reporter.say(f"{images.name}: {remark}")
        return [_Trained(job, arch, replace(architecture, num_classes=classes), sets, members,
                         reporter).made(device) for arch, architecture in forms.items()]


@dataclass(frozen=True)
class _Trained:
    """One network of a job and its files."""

    job: TrainingJob
    arch: str
    architecture: Architecture
    sets: Sets
    members: Group
    reporter: Reporter

    @property
    def folder(self) -> Path:
        """What lies beside the weights."""
        return self.job.out / f"{self.arch}.{_tag(self.job)}"

    @property
    def identity(self) -> dict[str, str]:
        """What decides the weights."""
        started = "" if self.job.finetune is None else sha256_file(self.job.finetune)
        return {"command": command(self.job, self.arch), "data": self.sets.train.digest,
                "held out": self.sets.test.digest, "from": started}

    def say(self, text: str) -> None:
        self.reporter.say(f"{self.arch}: {text}")

    def made(self, device: torch.device) -> Path:
        """Train the network unless that is done, and write it; return its file."""
        path = self.job.out / _file_name(self.job, self.arch)
        job = replace(self.job, models=(self.arch,))
        if not self.job.fresh and is_trained(job, self.identity):
            self.say(f"{path} is trained already; --fresh trains it anew")
            return path
        train, test = self.sets.train, self.sets.test
        self.say(f"{len(train.refs)} training and {len(test.refs)} held-out images")
        training = Training(self._network(), self.sets, self.job.recipe, device=device,
                            classes=self.architecture.num_classes, workers=self.job.workers,
                            group=self.members)
        self._take_up(training)
        score = training.run(self.say, _Keeper(self).keep, self.reporter.progress)
        self.say(f"held-out top-1 {score.percent(score.top1):.2f} % of {score.images} images, "
                 f"{training.state.seconds:.0f} s")
        if self.members.leads:
            self._write(path, training, score)
        self.members.wait()
        return path

    def _network(self) -> nn.Module:
        torch.manual_seed(self.job.recipe.seed)
        network = build(self.architecture)
        if self.job.grad_checkpointing:
            if not isinstance(network, BlockNetwork):
                raise UsageError("--grad-checkpointing must be given to a network of blocks",
                                 seen=f"{self.arch} has none", hint="leave it out")
            network.set_grad_checkpointing()
        if self.job.finetune is not None:
            begin_with(network, self.job.finetune, name=self.arch, say=self.say)
        return network

    def _take_up(self, training: Training) -> None:
        path = self.folder / _STATE
        if self.job.fresh:
            return
        found = read_state(path, training.device, self.identity)
        if found is not None:
            training.take_up(*found)
            self.say(f"going on after epoch {training.state.epoch}, step {training.state.step}")
        elif path.exists() and self.members.leads:
            kept = previous_name(path)
            os.replace(path, kept)
            self.say(f"{path} is of another training and is kept as {kept}")

    def safetensors(self, network: nn.Module, top1: float) -> bytes:
        """Return the network as a file with its facts."""
        entry = Entry(self.arch, _tag(self.job), self.architecture, Packaged("", ""),
                      self.job.recipe.preprocessing, data=self.sets.train.name,
                      classes=self.sets.train.classes, top1=top1,
                      reference=command(self.job, self.arch))
        metadata = {METADATA_KEY: json.dumps(facts(entry), sort_keys=True)}
        return safetensors_bytes(network.state_dict(), metadata)

    def _write(self, path: Path, training: Training, score: Score) -> None:
        top1 = score.percent(score.top1)
        network = training.result.cpu()
        previous = write_keeping(path, self.safetensors(network, top1))
        if previous is not None:
            self.say(f"the earlier weights in {path} are kept as {previous}")
        last = training.state.history[-1]
        trained_list.enter(_list_of(self.job), self.arch, {
            "sha256": sha256_file(path), "top1": top1, "n": score.images,
            "train_top1": round(last.train_top1, 2), "epochs": last.epoch,
            "seconds": round(training.state.seconds, 1),
            "command": command(self.job, self.arch), "made_from": digest_of(self.identity)})
        write_history(training.state.history, self.folder)
        (self.folder / _STATE).unlink(missing_ok=True)


class _Keeper:
    """Writes a training's state, history and best weights while it lasts."""

    def __init__(self, owner: _Trained) -> None:
        self._owner = owner
        self._last = time.monotonic()

    def keep(self, training: Training, ended: bool) -> None:
        """Write what has changed: the state now and then, the best weights after an epoch."""
        folder, state = self._owner.folder, training.state
        if not self._owner.members.leads:
            return
        if ended and state.history[-1].top1 > state.best:
            state.best = state.history[-1].top1
            with atomic_write(folder / _BEST) as stream:
                stream.write(self._owner.safetensors(training.result, state.best))
        if time.monotonic() - self._last < self._owner.job.save_every:
            return
        training.require_finite()
        write_state(folder / _STATE, state, training.parts(), self._owner.identity)
        if ended:
            write_history(state.history, folder)
        self._last = time.monotonic()


def begin_with(network: nn.Module, path: Path, *, name: str, say: Say) -> None:
    """Fill a network with weights from a file; a head of another length keeps its initial values.

    Raises CheckpointError for weights of another network.
    """
    own = network.state_dict()
    state = dict(aligned(read_state_dict(path), own))
    classes = head_classes(shapes(own), state)
    if classes is not None:
        for key, value in own.items():
            if state[key].shape != value.shape:
                state[key] = value
        say(f"{path} has {classes} classes: its head is left out")
    load_strict(network, state, name=name, source=str(path))


def is_trained(job: TrainingJob, identity: Mapping[str, str] | None = None) -> bool:
    """Whether the file of the job's one network is there, whole, and made by this very job.

    With an ``identity`` also of these very images and starting weights.
    """
    arch, = job.models
    path = job.out / _file_name(job, arch)
    listed = trained_list.read(_list_of(job)).get(arch)
    return (path.exists() and isinstance(listed, dict)
            and listed.get("command") == command(job, arch)
            and (identity is None or listed.get("made_from") == digest_of(identity))
            and listed.get("sha256") == sha256_file(path))


def command(job: TrainingJob, arch: str) -> str:
    """Return the command that trains one network as ``job`` does."""
    parts = ["sanrobust", "train", "--model", arch, "--data", job.data]
    for option, given in (("--held-out", job.held_out), ("--val-fraction", job.val_fraction),
                          ("--val-per-class", job.val_per_class), ("--tag", job.tag),
                          ("--finetune", job.finetune)):
        parts += [] if given is None else [option, str(given)]
    if job.named != "small":
        parts += ["--recipe", job.named]
    return shlex.join(parts + job.recipe.options(job.named))


def _tag(job: TrainingJob) -> str:
    folder = os.path.basename(os.path.realpath(job.data))
    return job.tag or (job.data if job.data in DATASETS else folder)


def _file_name(job: TrainingJob, arch: str) -> str:
    return f"{arch}.{_tag(job)}.safetensors"


def _list_of(job: TrainingJob) -> Path:
    return job.out / f"{_tag(job)}.json"


def _require_plain(tag: str) -> None:
    if Path(tag).name != tag or not tag.strip("."):
        raise UsageError("a tag must be a plain file name", seen=f"it is {shown_value(tag)}",
                         hint="name the folder with --out and leave the tag without slashes")
