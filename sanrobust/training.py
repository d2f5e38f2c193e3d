"""From a choice of networks and data to files of trained weights."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sanrobust.data.datasets import open_dataset
from sanrobust.data.imageset import ImageSet
from sanrobust.device import choose_device, make_exact
from sanrobust.errors import UsageError
from sanrobust.files import sha256_file, write_text
from sanrobust.train import Recipe, Say, Trained, train_network
from sanrobust.zoo.catalog import PAPER_ORDER, SMALL_PREPROCESSING
from sanrobust.zoo.checkpoint import save_safetensors
from sanrobust.zoo.forms import small_form
from sanrobust.zoo.entry import Architecture, Entry, Packaged
from sanrobust.zoo.store import facts


@dataclass(frozen=True)
class TrainingJob:
    """Which networks to train on what, and where to put them.

    Attributes:
        models: architectures of `PAPER_ORDER`; empty for all nine.
        data: registered dataset with a training split, or an ImageFolder.
        held_out: ImageFolder of unseen images when ``data`` is a folder.
        data_root: where registered datasets lie.
        out: folder of the files.
        tag: tag of the weights; None takes the name of the data.
        recipe: how to train.
        workers: processes that decode images.
        device: where to train.
    """

    models: tuple[str, ...] = ()
    data: str = "digits"
    held_out: Path | None = None
    data_root: Path | None = None
    out: Path = Path("weights")
    tag: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    workers: int = 0
    device: str = "auto"


def train_models(job: TrainingJob, *, say: Say) -> list[Path]:
    """Train each network, write it at once and list it in ``TAG.json``; return the files."""
    make_exact()
    device = choose_device(job.device)
    train, test = _splits(job)
    classes = 1 + max(ref.label for ref in train.refs)
    written = []
    for arch in job.models or PAPER_ORDER:
        say(f"{arch}: {len(train.refs)} training and {len(test.refs)} held-out images")
        architecture = small_form(arch, classes)
        trained = train_network(architecture, train, test, recipe=job.recipe,
                                preprocessing=SMALL_PREPROCESSING, device=device,
                                workers=job.workers, say=say)
        say(f"{arch}: held-out top-1 {trained.top1:.2f} %, {trained.seconds:.0f} s")
        written.append(_write(job, arch, architecture, trained))
    return written


def _splits(job: TrainingJob) -> tuple[ImageSet, ImageSet]:
    """Open the training images and the images that training must never see."""
    train = open_dataset(job.data, root=job.data_root, split="train")
    if job.held_out is not None:
        return train, open_dataset(str(job.held_out), root=None)
    if Path(job.data).is_dir():
        raise UsageError("a folder to train on must come with a held-out one",
                         seen="--held-out is not given", hint="type --held-out FOLDER")
    return train, open_dataset(job.data, root=job.data_root)


def _write(job: TrainingJob, arch: str, architecture: Architecture, trained: Trained) -> Path:
    tag = job.tag or Path(job.data).name
    path = job.out / f"{arch}.{tag}.safetensors"
    entry = Entry(arch, tag, architecture, Packaged(path.name, ""), SMALL_PREPROCESSING,
                  data=job.data, top1=trained.top1, reference=command(job, arch))
    save_safetensors(trained.network.state_dict(), path,
                     {"sanrobust": json.dumps(facts(entry), sort_keys=True)})
    _list(job.out / f"{tag}.json", arch, {
        "sha256": sha256_file(path), "top1": trained.top1, "n": trained.images,
        "seconds": round(trained.seconds, 1), "command": command(job, arch)})
    return path


def command(job: TrainingJob, arch: str) -> str:
    """Return the command that trains one network as ``job`` does."""
    parts = ["sanrobust", "train", "--model", arch, "--data", job.data]
    if job.held_out is not None:
        parts += ["--held-out", str(job.held_out)]
    if job.tag is not None:
        parts += ["--tag", job.tag]
    for name, value in asdict(job.recipe).items():
        if value != getattr(Recipe(), name):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)


def _list(path: Path, arch: str, facts_of_file: dict[str, object]) -> None:
    """Enter one file's facts into the list beside the files, in the paper's order."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[arch] = facts_of_file
    ordered = {name: known[name] for name in PAPER_ORDER if name in known}
    write_text(path, json.dumps(ordered, indent=2) + "\n")
