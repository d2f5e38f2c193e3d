"""The paper's training recipe, for small networks on small images.

Upright images only: no flips and no rotations, so that both stay unseen until they are measured.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.choices import LARGEST_RATE
from sanrobust.data.catalog import DATASETS, resolve
from sanrobust.data.dataset import Dataset
from sanrobust.data.classes import fit_classes
from sanrobust.data.datasets import open_dataset
from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import batches
from sanrobust.data.lost import all_broken, first, note_lost, undecodable
from sanrobust.device import choose_device, exact
from sanrobust.errors import DataError, NonFiniteError, UsageError, shown_value
from sanrobust.files import previous_name, require_writable, sha256_file, write_keeping
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo import trained_list
from sanrobust.zoo.build import build
from sanrobust.zoo.catalog import PAPER_ORDER, SMALL_PREPROCESSING
from sanrobust.zoo.checkpoint import METADATA_KEY, safetensors_bytes
from sanrobust.zoo.classifier import Normalize
from sanrobust.zoo.entry import Entry, Packaged
from sanrobust.zoo.facts import facts
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.forms import small_config
from sanrobust.zoo.names import canonical

Say = Callable[[str], None]
_MOST_SEEDS = 1 << 32


@dataclass(frozen=True)
class Recipe:
    """SGD with cosine decay and label smoothing (Zhao et al. 2020, section 5.1).

    Attributes:
        epochs: passes over the training split.
        batch_size: images per step; a smaller rest of an epoch is left out.
        lr: initial learning rate; it falls to zero on a cosine, stepped per epoch.
        momentum: of SGD.
        weight_decay: on all parameters.
        label_smoothing: mass taken from the true class and shared by the others.
        shift: largest random translation in pixels, the border repeated.
        seed: of initial weights, order and translations.
    """

    epochs: int = 30
    batch_size: int = 64
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    shift: int = 3
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """A trained network and its accuracy on images that training never saw.

    Attributes:
        network: in eval mode, on the CPU.
        top1: held-out accuracy in percent of ``images``; without finite logits none is right.
        images: number of held-out images that could be decoded.
        seconds: wall time of training.
    """

    network: nn.Module
    top1: float
    images: int
    seconds: float


def train_network(architecture: Architecture, train: ImageSet, test: ImageSet, *, recipe: Recipe,
                  preprocessing: Preprocessing, device: torch.device, workers: int = 0,
                  say: Say) -> Trained:
    """Train a network on ``train`` and measure it on ``test``.

    ``say`` is told each epoch's loss, and how many images could not be decoded or have no finite
    logits. Raises DataError when the two sets are the same, none of their images can be decoded
    or a batch is larger than the training split, and NonFiniteError when the loss, a weight or all
    logits are no numbers.
    """
    _check_splits(train, test, recipe)
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    network = build(architecture)
    model = nn.Sequential(Normalize(preprocessing.mean, preprocessing.std), network).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    smoothing = _torch_smoothing(recipe.label_smoothing, architecture.num_classes)
    loss_of = nn.CrossEntropyLoss(label_smoothing=smoothing)
    lost: dict[str, str] = {}
    for epoch in range(recipe.epochs):
        model.train()
        known = len(lost)
        losses = [_step(model, optimizer, loss_of, pixels, labels, epoch)
                  for pixels, labels
                  in _epoch(train, preprocessing, recipe, epoch, workers, device, lost)]
        schedule.step()
        if len(lost) > known:
            say(undecodable(lost, len(train.refs), "training"))
        if not losses:
            raise DataError("training images must be decodable", seen=first(lost),
                            hint="mend the images of --data")
        say(f"epoch {epoch + 1}/{recipe.epochs}: loss {sum(losses) / len(losses):.4f}")
        _require_finite(network, epoch)
    seconds = time.monotonic() - started
    model.eval()
    top1, images = _accuracy(model, test, preprocessing, workers, device, say)
    return Trained(network.cpu(), top1=top1, images=images, seconds=seconds)


def _torch_smoothing(smoothing: float, classes: int) -> float:
    """Turn the paper's smoothing (mass leaves the true class) into torch's (uniform share)."""
    return smoothing * classes / (classes - 1)


def _check_splits(train: ImageSet, test: ImageSet, recipe: Recipe) -> None:
    if train.refs == test.refs and train.digest == test.digest:
        raise DataError("training and held-out images must differ",
                        seen=f"{train.name} is given for both",
                        hint="give --data a set with two splits, or another --held-out folder")
    if recipe.batch_size > len(train.refs):
        raise DataError("a batch must fit into the training split",
                        seen=f"it has {len(train.refs)} images, a batch {recipe.batch_size}",
                        hint="lower --batch-size")
    for images, option in ((train, "--data"), (test, "--held-out")):
        reason = all_broken(images)
        if reason is not None:
            raise DataError(f"{images.name} must hold images that can be decoded", seen=reason,
                            hint=f"mend the images or name others with {option}")


def _epoch(images: ImageSet, preprocessing: Preprocessing, recipe: Recipe, epoch: int,
           workers: int, device: torch.device, lost: dict[str, str]
           ) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's shuffled, shifted pixels (B, 3, S, S) and labels (B,).

    Images that cannot be decoded enter ``lost`` with the reason.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(images.refs), generator=generator).tolist()
    size = recipe.batch_size
    plan = [order[start:start + size] for start in range(0, len(order) - size + 1, size)]
    for batch in batches(images, preprocessing, plan=plan, workers=workers):
        note_lost(batch, lost)
        if len(batch.ids) < 2:  # batch normalisation has no variance of one image
            continue
        pixels = random_shift(batch.pixels, limit=recipe.shift, generator=generator)
        yield pixels.to(device), batch.labels.to(device)


def random_shift(pixels: Tensor, *, limit: int, generator: torch.Generator) -> Tensor:
    """Translate each image of (B, 3, S, S) by up to ``limit`` pixels, repeating its border."""
    if limit == 0:
        return pixels
    side = pixels.shape[-1]
    padded = F.pad(pixels, (limit,) * 4, mode="replicate")
    corners: Sequence[Sequence[int]] = torch.randint(
        0, 2 * limit + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack([image[:, top:top + side, left:left + side]
                        for image, (top, left) in zip(padded, corners, strict=True)])


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: nn.Module,
          pixels: Tensor, labels: Tensor, epoch: int) -> float:
    loss: Tensor = loss_of(model(pixels), labels)
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError("the training loss must be a finite number",
                             seen=f"it is {value} in epoch {epoch + 1}",
                             hint="lower --lr; nothing was written")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value


def _require_finite(network: nn.Module, epoch: int) -> None:
    broken = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise NonFiniteError("trained weights must be finite numbers",
                             seen=f"{broken[0]} is not after epoch {epoch + 1}",
                             hint="lower --lr; nothing was written")


@torch.no_grad()
def _accuracy(model: nn.Module, images: ImageSet, preprocessing: Preprocessing, workers: int,
              device: torch.device, say: Say) -> tuple[float, int]:
    """Return top-1 in percent and the number of images, those that could be decoded."""
    plan = [range(start, min(start + 256, len(images.refs)))
            for start in range(0, len(images.refs), 256)]
    hits = finite = 0
    lost: dict[str, str] = {}
    for batch in batches(images, preprocessing, plan=plan, workers=workers):
        note_lost(batch, lost)
        if not batch.ids:
            continue
        logits = model(batch.pixels.to(device)).cpu()
        good = logits.isfinite().all(dim=1)
        hits += int(((logits.argmax(dim=1) == batch.labels) & good).sum())
        finite += int(good.sum())
    measured = len(images.refs) - len(lost)
    if lost:
        say(undecodable(lost, len(images.refs), "held-out"))
    if not finite:
        raise NonFiniteError("a trained network must give finite logits",
                             seen=f"none of {measured} held-out images has them",
                             hint="lower --lr; nothing was written")
    if finite < measured:
        say(f"the logits of {measured - finite} of {measured} held-out images are not finite; "
            "these images count as wrong")
    return 100.0 * hits / measured, measured


@dataclass(frozen=True)
class TrainingJob:
    """Which networks to train on what, and where to put them.

    Attributes:
        models: architectures in any spelling (`sanrobust.zoo.names`); empty for the paper's nine.
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


@exact()
def train_models(job: TrainingJob, *, say: Say) -> list[Path]:
    """Train each network, write it at once and list it in ``TAG.json``; return the files.

    Weights of the same name stay beside the new ones as ``FILE.previous``. Raises before anything
    is trained UnknownNameError for a name that is no architecture, UsageError for a tag or recipe
    that cannot be meant, DataError for held-out images of other classes, and OutputError for
    files that cannot be written.
    """
    _require_plain(_tag(job))
    forms = {canonical(arch): small_config(arch) for arch in job.models or PAPER_ORDER}
    _check_recipe(job.recipe, SMALL_PREPROCESSING.img_size)
    device = choose_device(job.device)
    train, test, classes = _splits(job)
    files = [_file_name(job, arch) for arch in forms]
    require_writable(job.out, *files, *(previous_name(Path(file)).name for file in files))
    trained_list.read(_list_of(job))
    for images in (train, test):
        for remark in images.left_out:
            say(f"{images.name}: {remark}")
    written = []
    for arch, form in forms.items():
        say(f"{arch}: {len(train.refs)} training and {len(test.refs)} held-out images")
        architecture = replace(form, num_classes=classes)
        trained = train_network(architecture, train, test, recipe=job.recipe,
                                preprocessing=SMALL_PREPROCESSING, device=device,
                                workers=job.workers, say=say)
        say(f"{arch}: held-out top-1 {trained.top1:.2f} % of {trained.images} images, "
            f"{trained.seconds:.0f} s")
        written.append(_write(job, arch, architecture, trained, train, say))
    return written


def _check_recipe(recipe: Recipe, side: int) -> None:
    if not 0 < recipe.lr <= LARGEST_RATE:
        raise UsageError(f"--lr must be a number above 0 and at most {LARGEST_RATE:g}",
                         seen=f"it is {recipe.lr}", hint="type for example --lr 0.05")
    if recipe.shift >= side:
        raise UsageError(f"--shift must be smaller than the {side} pixels of an image",
                         seen=f"it is {recipe.shift}", hint="type for example --shift 3")
    if not abs(recipe.seed) < _MOST_SEEDS:
        raise UsageError(f"--seed must be smaller than {_MOST_SEEDS}", seen=f"it is {recipe.seed}",
                         hint="type for example --seed 1")


def _splits(job: TrainingJob) -> tuple[ImageSet, ImageSet, int]:
    """Open the training images and, labelled alike, the held-out ones; count the classes."""
    if job.held_out is None and not isinstance(resolve(job.data), Dataset):
        raise UsageError("a folder to train on must come with a held-out one",
                         seen="--held-out is not given", hint="type --held-out FOLDER")
    train = open_dataset(job.data, root=job.data_root, split="train")
    classes = train.num_classes
    if classes is None:
        raise DataError("training must have images of every class",
                        seen=f"{train.name} has folders named by numbers and lacks some between "
                             "0 and the largest", hint="rename the folders, from 0 on or in words")
    if classes < 2:
        raise DataError("training must have two classes or more",
                        seen=f"{train.name} has {classes}",
                        hint="give --data a folder with one subfolder per class")
    test = (open_dataset(job.data, root=job.data_root) if job.held_out is None
            else open_dataset(str(job.held_out), root=None))
    test = fit_classes(test, names=train.classes, num_classes=classes,
                       model=f"the training set {train.name}",
                       advice="name the folders as in training, or give others to --held-out")
    return train, test, classes


def _write(job: TrainingJob, arch: str, architecture: Architecture, trained: Trained,
           train: ImageSet, say: Say) -> Path:
    path = job.out / _file_name(job, arch)
    entry = Entry(arch, _tag(job), architecture, Packaged(path.name, ""), SMALL_PREPROCESSING,
                  data=train.name, classes=train.classes, top1=trained.top1,
                  reference=command(job, arch))
    metadata = {METADATA_KEY: json.dumps(facts(entry), sort_keys=True)}
    previous = write_keeping(path, safetensors_bytes(trained.network.state_dict(), metadata))
    if previous is not None:
        say(f"{arch}: the earlier weights in {path} are kept as {previous}")
    trained_list.enter(_list_of(job), arch, {
        "sha256": sha256_file(path), "top1": trained.top1, "n": trained.images,
        "seconds": round(trained.seconds, 1), "command": command(job, arch)})
    return path


def _tag(job: TrainingJob) -> str:
    folder = os.path.basename(os.path.realpath(job.data))
    return job.tag or (job.data if job.data in DATASETS else folder)


def _file_name(job: TrainingJob, arch: str) -> str:
    return f"{arch}.{_tag(job)}.safetensors"


def _list_of(job: TrainingJob) -> Path:
    return job.out / f"{_tag(job)}.json"


def is_trained(job: TrainingJob) -> bool:
    """Whether the file of the job's one network is there, whole, and made by this very job."""
    arch, = job.models
    path = job.out / _file_name(job, arch)
    listed = trained_list.read(_list_of(job)).get(arch)
    return (path.exists() and isinstance(listed, dict)
            and listed.get("command") == command(job, arch)
            and listed.get("sha256") == sha256_file(path))


def _require_plain(tag: str) -> None:
    if Path(tag).name != tag or not tag.strip("."):
        raise UsageError("a tag must be a plain file name", seen=f"it is {shown_value(tag)}",
                         hint="name the folder with --out and leave the tag without slashes")


def command(job: TrainingJob, arch: str) -> str:
    """Return the command that trains one network as ``job`` does."""
    parts = ["sanrobust", "train", "--model", arch, "--data", job.data]
    for option, given in (("--held-out", job.held_out), ("--tag", job.tag)):
        parts += [] if given is None else [option, str(given)]
    for name, value in asdict(job.recipe).items():
        if value != getattr(Recipe(), name):
            parts += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(parts)
