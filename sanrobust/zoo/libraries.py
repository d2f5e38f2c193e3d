"""Models of torchvision and timm, by name and tag.

For a file of weights a network is built as the library builds it for its published weights, which
decide more than values: torchvision's GoogLeNet changes its input by itself, its vision
transformers have another image size.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sanrobust.errors import CheckpointError, ModelError
from sanrobust.files import sha256_file
from sanrobust.registry import unknown_name
from sanrobust.zoo.config import FIELDS, Shape, Wanted, from_config, from_transforms, input_shape
from sanrobust.zoo.fit import fits, head_classes, load_strict, shapes
from sanrobust.zoo.wrapping import aligned

_PATCHED = threading.RLock()
_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")

# Called with the number of classes (None: the model's own); gives initial or published weights.
Build = Callable[[int | None, bool], nn.Module]
# Called with a file's tensors, the number of classes (None: the file's) and the file's name.
Fill = Callable[[Mapping[str, Any], int | None, str], nn.Module]


@dataclass(frozen=True)
class External:
    """A model from elsewhere, not built yet.

    Attributes:
        name: as the user typed it.
        source: where its own weights come from, in words.
        build: called with the number of classes (None: the model's own) and with whether to
            load the published weights.
        fill: builds it and loads the weights of a file.
        wanted: finds how the built network wants its images.
        shape: channels, height and width of the built network's images.
        made_by: the user's own module and factory; empty for a library's.
        sized: builds it with initial values for images of another side, where the library can.
    """

    name: str
    source: str
    build: Build
    fill: Fill
    wanted: Callable[[nn.Module], Wanted]
    shape: Callable[[nn.Module], Shape]
    made_by: tuple[object, ...] = ()
    sized: Callable[[int], nn.Module] | None = None


def filling(name: str, build: Build) -> Fill:
    """Return the `Fill` of a model whose builder takes the number of classes."""
    def fill(state: Mapping[str, Any], num_classes: int | None, source: str) -> nn.Module:
        network = build(num_classes, False)
        own = network.state_dict()
        classes = head_classes(shapes(own), aligned(state, own)) if num_classes is None else None
        if classes is not None:
            network = build(classes, False)
        load_strict(network, state, name=name, source=source)
        return network
    return fill


def torchvision_models(name: str, rest: str, checkpoint: Path | None) -> list[External]:
    """Return what ``torchvision/ARCH`` or ``torchvision/ARCH.TAG`` can mean, likeliest first.

    Without a tag a checkpoint decides which published weights its network is built like: by its
    hash or its name, else it may fit any, the default ones first. Raises UnknownNameError for a
    name that does not exist.
    """
    import torchvision

    arch, _, tag = rest.partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        raise unknown_name("torchvision model", arch, known,
                           listing="torchvision.models.list_models()")
    choices = torchvision.models.get_model_weights(arch)
    tags = list(choices.__members__)
    if tag and tag not in tags:
        raise unknown_name(f"weights tag of torchvision/{arch}", tag, tags,
                           listing=f"the tags {', '.join(tags)}")
    if checkpoint is not None and not tag:
        found = published_tag(checkpoint, {each.name: each.url for each in choices})
        if found is None:
            ordered = dict.fromkeys((choices["DEFAULT"], *choices))
            return [_torchvision(name, arch, each, silent=checkpoint.name) for each in ordered]
        tag = found
    return [_torchvision(name, arch, choices[tag or "DEFAULT"], silent="")]


def _torchvision(name: str, arch: str, weights: Any, *, silent: str) -> External:
    from torchvision.models import get_model

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        if num_classes is None and not pretrained:
            return _as_published(arch, weights)
        chosen = {} if num_classes is None else {"num_classes": num_classes}
        return _plain_call(name, lambda: get_model(
            arch, weights=weights if pretrained else None, **chosen))

    def fill(state: Mapping[str, Any], num_classes: int | None, source: str) -> nn.Module:
        network = _filled_as_published(arch, weights, state, num_classes, source)
        return network or filling(name, build)(state, num_classes, source)

    def wanted(network: nn.Module) -> Wanted:
        preprocessing = from_config(name, config)
        if not silent:
            return Wanted(preprocessing)
        return Wanted(preprocessing, FIELDS, silent, like=f"torchvision's {weights}",
                      note=_peculiar(arch, network, weights))

    def sized(side: int) -> nn.Module:
        network: nn.Module = get_model(arch, weights=None, image_size=side)
        return network

    config = from_transforms(weights.transforms())
    return External(name, f"torchvision weights {weights}", build, fill, wanted,
                    lambda _: input_shape(name, config), sized=sized)


def _plain_call(name: str, call: Callable[[], Any]) -> nn.Module:
    """Call a library's builder, whose ValueError here means settings that exclude each other."""
    try:
        network: nn.Module = call()
    except ValueError as error:
        raise ModelError(f"{name} must accept the settings", seen=f"it said: {error}",
                         hint="leave the number of classes out, or give --checkpoint FILE"
                         ) from error
    return network


def _as_published(arch: str, weights: Any, state: Mapping[str, Any] | None = None,
                  load: Callable[[nn.Module, Mapping[str, Any]], None] = lambda *_: None
                  ) -> nn.Module:
    """Build a network as torchvision does for published weights, without fetching them.

    At the moment when torchvision would load them, ``load`` is called with the network and with
    ``state``, whose names torchvision may have changed as it does for its own files.
    """
    from torchvision.models import get_model
    with _download_replaced(state or {}, load):
        network: nn.Module = get_model(arch, weights=weights)
    return network


class _FileState(dict[str, Any]):
    """Weights that stand in the place of downloaded ones."""


@contextmanager
def _download_replaced(state: Mapping[str, Any],
                       load: Callable[[nn.Module, Mapping[str, Any]], None]) -> Iterator[None]:
    """Give torchvision ``state`` for what it would download; other threads notice nothing."""
    from torchvision.models._api import WeightsEnum
    owner = threading.get_ident()
    with _PATCHED:
        download, load_state_dict = WeightsEnum.get_state_dict, nn.Module.load_state_dict

        def local(self: Any, *args: Any, **settings: Any) -> Any:
            if threading.get_ident() != owner:
                return download(self, *args, **settings)
            return _FileState(state)

        def loading(self: nn.Module, state_dict: Any, *args: Any, **settings: Any) -> Any:
            if not isinstance(state_dict, _FileState):
                return load_state_dict(self, state_dict, *args, **settings)
            return load(self, state_dict)

        WeightsEnum.get_state_dict = local
        nn.Module.load_state_dict = loading  # type: ignore[method-assign]
        try:
            yield
        finally:
            WeightsEnum.get_state_dict = download
            nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _filled_as_published(arch: str, weights: Any, state: Mapping[str, Any],
                         num_classes: int | None, source: str) -> nn.Module | None:
    """Return the network of published weights with those of a file; None where they do not fit.

    The file may hold what torchvision loads or what its finished network has, which are two
    things where training heads are dropped, with heads of any number of classes.
    """
    done: list[nn.Module] = []

    def load(network: nn.Module, renamed: Mapping[str, Any]) -> None:
        own = network.state_dict()
        named = aligned(renamed, own)
        classes = head_classes(shapes(own), named)
        published = len(weights.meta["categories"])
        if num_classes not in (None, classes or published):
            return
        if classes is not None and not _resized(network, shapes(own), named):
            return
        if fits(shapes(network.state_dict()), named) and not done:
            load_strict(network, named, name=f"torchvision/{arch}", source=source)
            done.append(network)

    network = _as_published(arch, weights, state, load)
    if not done:
        load(network, state)
    return network if done else None


def _resized(network: nn.Module, before: Mapping[str, tuple[int, ...]],
             state: Mapping[str, Any]) -> bool:
    """Give heads the length that ``state`` has; say whether they are linear or convolutions."""
    for name in (name for name, shape in before.items() if shape != tuple(state[name].shape)):
        path, _, leaf = name.rpartition(".")
        head = network.get_submodule(path)
        if not isinstance(head, (nn.Linear, nn.Conv2d)):
            return False
        setattr(head, leaf, nn.Parameter(getattr(head, leaf).new_empty(state[name].shape)))
        length = "out_features" if isinstance(head, nn.Linear) else "out_channels"
        setattr(head, length, len(state[name]))
    return True


def _peculiar(arch: str, network: nn.Module, weights: Any) -> str:
    """Say what of a network follows from published weights that a file of others may not share."""
    from torchvision.models import get_model
    with torch.device("meta"):
        plain = vars(get_model(arch, weights=None))
    differing = [f"{name}={value}" for name, value in vars(network).items()
                 if isinstance(value, (bool, int, float, str)) and not name.startswith("_")
                 and name not in ("training", "num_classes") and plain.get(name) != value]
    if not differing:
        return ""
    return (f"the network is built like that of {weights}, with {', '.join(differing)}; "
            "name one built otherwise as package.module:callable")


def published_tag(checkpoint: Path, addresses: Mapping[str, str]) -> str | None:
    """Return the tag whose published file a checkpoint is, by its hash or else by its name.

    Args:
        checkpoint: a file.
        addresses: of the published files by tag; a name may end in the start of its SHA-256.
    """
    published = {tag: url.rpartition("/")[2] for tag, url in addresses.items() if url}
    hashes = {tag: found[1] for tag, name in published.items() if (found := _HASH.search(name))}
    if hashes and checkpoint.is_file():
        own = sha256_file(checkpoint)
        for tag, start in hashes.items():
            if own.startswith(start):
                return tag
    for tag, name in published.items():
        if checkpoint.name == name or (tag in hashes and f"-{hashes[tag]}" in checkpoint.name):
            return tag
    return None


def timm_models(name: str, rest: str, checkpoint: Path | None) -> list[External]:
    """Return the model ``timm/ARCH`` or ``timm/ARCH.TAG``.

    Without a tag a checkpoint that is a published file has the preprocessing of its tag. Raises
    UnknownNameError for a name that does not exist.
    """
    import timm
    from timm.data import config
    from timm.models import get_pretrained_cfg

    resolve: Callable[[nn.Module], dict[str, Any]] = config.resolve_model_data_config
    arch, _, tag = rest.partition(".")
    if not timm.is_model(arch):
        raise unknown_name("timm model", arch, timm.list_models(),
                           listing="timm.list_models()")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{arch}.*", pretrained=True)]
    if tag and tag not in tags:
        raise unknown_name(f"weights tag of timm/{arch}", tag, tags,
                           listing=f"the tags {', '.join(tags) or '(none)'}")
    silent = ""
    if checkpoint is not None and not tag:
        found = published_tag(checkpoint, {each: _address(get_pretrained_cfg(f"{arch}.{each}"))
                                           for each in tags})
        rest, silent = (f"{arch}.{found}", "") if found else (rest, checkpoint.name)

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        if pretrained and not tags:
            raise CheckpointError(f"{name} must have published weights", seen="timm has none",
                                  hint="choose another name or give --checkpoint FILE")
        settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        network: nn.Module = timm.create_model(rest, pretrained=pretrained, **settings)
        return network

    def wanted(network: nn.Module) -> Wanted:
        preprocessing = from_config(name, resolve(network))
        if not silent:
            return Wanted(preprocessing)
        used = getattr(network, "pretrained_cfg", None) or {}
        tagged = f"{arch}.{used.get('tag')}" if used.get("tag") else arch
        return Wanted(preprocessing, FIELDS, silent, like=f"timm's {tagged}")

    def sized(side: int) -> nn.Module:
        network: nn.Module = timm.create_model(rest, pretrained=False, img_size=side)
        return network

    return [External(name, f"timm weights {rest}", build, filling(name, build), wanted,
                     lambda network: input_shape(name, resolve(network)), sized=sized)]


def _address(config: Any) -> str:
    return str(getattr(config, "url", "") or "")
