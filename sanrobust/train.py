"""The paper's training recipe, for small networks on small images.

Upright images only: no flips and no rotations, so that both stay unseen until they are measured.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.data.datasets import open_dataset
from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import batches
from sanrobust.device import choose_device, exact
from sanrobust.errors import DataError, UsageError
from sanrobust.files import sha256_file, write_text
from sanrobust.preprocessing import Preprocessing
from sanrobust.zoo.build import build
from sanrobust.zoo.catalog import PAPER_ORDER, SMALL_PREPROCESSING
from sanrobust.zoo.checkpoint import save_safetensors
from sanrobust.zoo.classifier import Normalize
from sanrobust.zoo.entry import Architecture, Entry, Packaged
from sanrobust.zoo.forms import small_form
from sanrobust.zoo.names import canonical
from sanrobust.zoo.store import locked
from sanrobust.zoo.facts import facts

Say = Callable[[str], None]


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
        top1: held-out accuracy in percent.
        images: number of held-out images.
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

    Raises DataError when the two are the same or a batch is larger than the training split.
    """
    _check_splits(train, test, recipe)
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    network = build(architecture)
    model = nn.Sequential(Normalize(preprocessing.mean, preprocessing.std), network).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=recipe.lr, momentum=recipe.momentum,
                                weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=recipe.epochs)
    loss_of = nn.CrossEntropyLoss(
        label_smoothing=_torch_smoothing(recipe.label_smoothing, architecture.num_classes))
    for epoch in range(recipe.epochs):
        model.train()
        losses = [_step(model, optimizer, loss_of, pixels, labels)
                  for pixels, labels
                  in _epoch(train, preprocessing, recipe, epoch, workers, device)]
        schedule.step()
        say(f"epoch {epoch + 1}/{recipe.epochs}: loss {sum(losses) / len(losses):.4f}")
    seconds = time.monotonic() - started
    model.eval()
    top1 = _accuracy(model, test, preprocessing, workers, device)
    return Trained(network.cpu(), top1=top1, images=len(test.refs), seconds=seconds)


def _torch_smoothing(smoothing: float, classes: int) -> float:
    """Turn the paper's smoothing (mass leaves the true class) into torch's (uniform share)."""
    return smoothing * classes / (classes - 1)


def _check_splits(train: ImageSet, test: ImageSet, recipe: Recipe) -> None:
    if train.digest == test.digest:
        raise DataError("training and held-out images must differ",
                        seen=f"{train.name} is given for both",
                        hint="give --data a set with two splits, or another --held-out folder")
    if recipe.batch_size > len(train.refs):
        raise DataError("a batch must fit into the training split",
                        seen=f"it has {len(train.refs)} images, a batch {recipe.batch_size}",
                        hint="lower --batch-size")


def _epoch(images: ImageSet, preprocessing: Preprocessing, recipe: Recipe, epoch: int,
           workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's shuffled, shifted pixels (B, 3, S, S) and labels (B,)."""
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
    order = torch.randperm(len(images.refs), generator=generator).tolist()
    size = recipe.batch_size
    plan = [order[start:start + size] for start in range(0, len(order) - size + 1, size)]
    for batch in batches(images, preprocessing, plan=plan, workers=workers):
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
          pixels: Tensor, labels: Tensor) -> float:
    loss: Tensor = loss_of(model(pixels), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


@torch.no_grad()
def _accuracy(model: nn.Module, images: ImageSet, preprocessing: Preprocessing, workers: int,
              device: torch.device) -> float:
    plan = [range(start, min(start + 256, len(images.refs)))
            for start in range(0, len(images.refs), 256)]
    hits = 0
    for batch in batches(images, preprocessing, plan=plan, workers=workers):
        logits = model(batch.pixels.to(device))
        hits += int((logits.argmax(dim=1).cpu() == batch.labels).sum())
    return 100.0 * hits / len(images.refs)


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

    Raises UnknownNameError for a name that is no architecture, and UsageError for a tag that is
    no plain file name, before anything is trained.
    """
    _require_plain(_tag(job))
    forms = {canonical(arch): small_form(arch) for arch in job.models or PAPER_ORDER}
    device = choose_device(job.device)
    train, test = _splits(job)
    classes = 1 + max(ref.label for ref in train.refs)
    written = []
    for arch, form in forms.items():
        say(f"{arch}: {len(train.refs)} training and {len(test.refs)} held-out images")
        architecture = replace(form, num_classes=classes)
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
    tag = _tag(job)
    path = job.out / f"{arch}.{tag}.safetensors"
    entry = Entry(arch, tag, architecture, Packaged(path.name, ""), SMALL_PREPROCESSING,
                  data=job.data, top1=trained.top1, reference=command(job, arch))
    save_safetensors(trained.network.state_dict(), path,
                     {"sanrobust": json.dumps(facts(entry), sort_keys=True)})
    _list(job.out / f"{tag}.json", arch, {
        "sha256": sha256_file(path), "top1": trained.top1, "n": trained.images,
        "seconds": round(trained.seconds, 1), "command": command(job, arch)})
    return path


def _tag(job: TrainingJob) -> str:
    return job.tag or Path(job.data).name


def _require_plain(tag: str) -> None:
    if Path(tag).name != tag:
        raise UsageError("a tag must be a plain file name", seen=f"it is {tag!r}",
                         hint="name the folder with --out and leave the tag without slashes")


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
    """Enter one file's facts into the list beside the files: the paper's nine, then variants."""
    with locked(path.with_name(path.name + ".lock")):  # others may train into the same folder
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        known[arch] = facts_of_file
        others = sorted(set(known) - set(PAPER_ORDER))
        ordered = {name: known[name] for name in (*PAPER_ORDER, *others) if name in known}
        write_text(path, json.dumps(ordered, indent=2) + "\n")
