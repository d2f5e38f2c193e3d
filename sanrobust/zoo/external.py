"""Models from elsewhere: torchvision, timm, and any callable that returns a network.

Each brings its own weights and its own preprocessing. Whatever it reads through ``torch.load``
while it is built is held to tensors.
"""

from __future__ import annotations

import importlib
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanrobust.errors import (
    CheckpointError, DownloadError, ModelError, SanrobustError, UsageError,
)
from sanrobust.preprocessing import INTERPOLATIONS, Preprocessing
from sanrobust.registry import closest, unknown_name
from sanrobust.zoo.checkpoint import head_classes, load_strict, read_state_dict
from sanrobust.zoo.classifier import Classifier

PREFIXES = ("torchvision", "timm")
FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

_NETWORK_MODULES = ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub")

# Called with the number of classes (None: the model's own); gives initial or published weights.
Build = Callable[[int | None, bool], nn.Module]


@dataclass(frozen=True)
class External:
    """A model from elsewhere, not built yet.

    Attributes:
        name: as the user typed it.
        build: called with the number of classes (None: the model's own) and with whether to
            load the published weights.
        preprocessing: finds how the built network wants its images.
        source: where its own weights come from, in words.
    """

    name: str
    build: Build
    preprocessing: Callable[[nn.Module], Preprocessing]
    source: str


def is_external(name: str) -> bool:
    """Return whether ``name`` is written like a model from elsewhere (``a/b`` or ``a:b``)."""
    bare = name.partition("(")[0]  # options in parentheses are the zoo's
    return "/" in bare or ":" in bare


def create_external(name: str, *, checkpoint: Path | None = None,
                    overrides: Mapping[str, Any] | None = None,
                    num_classes: int | None = None) -> Classifier:
    """Build the model ``torchvision/NAME``, ``timm/NAME`` or ``module:callable``.

    Args:
        name: a torchvision or timm name may end in ``.TAG``, the name of its weights.
        checkpoint: a file to load instead of the published weights; nothing is downloaded then,
            and the classifier is called ``name.STEM`` after it.
        overrides: preprocessing fields that replace the model's own.
        num_classes: length of the logits; by default the checkpoint's or the model's own.

    Raises UnknownNameError for a name that does not exist, DownloadError when weights cannot be
    fetched, CheckpointError when they do not fit, and ModelError when the model is no classifier.
    """
    with torch.random.fork_rng(devices=[]), _tensors_only():
        # Imported modules draw random numbers too, and the caller's generator must not notice.
        torch.default_generator.manual_seed(0)
        external = _find(name)
        if checkpoint is None:
            network, source = _built(external, num_classes, pretrained=True), external.source
        else:
            network, source = _filled(external, checkpoint, num_classes), str(checkpoint)
    preprocessing = external.preprocessing(network)
    if overrides:
        preprocessing = replace(preprocessing, **overrides)
    shown = name if checkpoint is None else f"{name}.{checkpoint.stem}"
    return Classifier(network, name=shown, preprocessing=preprocessing, source=source)


def build_external(name: str) -> tuple[nn.Module, Preprocessing]:
    """Return the network called ``name`` with initial values, and how it wants its images.

    Nothing is downloaded. Raises UnknownNameError for a name that does not exist and ModelError
    for what is no network.
    """
    with torch.random.fork_rng(devices=[]), _tensors_only():
        external = _find(name)
        network = _built(external, None, pretrained=False)
    return network, external.preprocessing(network)


def _find(name: str) -> External:
    prefix, slash, rest = name.partition("/")
    if slash and prefix in PREFIXES:
        return _torchvision(name, rest) if prefix == "torchvision" else _timm(name, rest)
    if ":" in name and not slash:
        return _factory(name)
    match = closest(prefix, PREFIXES) if slash else None
    raise UsageError("a model from elsewhere must be torchvision/NAME, timm/NAME or "
                     "package.module:callable", seen=f"it is {name!r}",
                     hint=f"type {match}/{rest}" if match else "use one of these forms")


def _built(external: External, num_classes: int | None, *, pretrained: bool) -> nn.Module:
    torch.default_generator.manual_seed(0)
    try:
        network: object = external.build(num_classes, pretrained)
    except SanrobustError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"the weights of {external.name} must hold nothing but tensors",
                              seen="they want to run code when they are read, which was "
                                   "not done",
                              hint="use other weights of this model") from error
    except Exception as error:
        if pretrained and _is_network_failure(error):
            raise _no_weights(external, error) from error
        raise
    if not isinstance(network, nn.Module):
        raise ModelError(f"{external.name} must return a torch.nn.Module",
                         seen=f"it returned a {type(network).__name__}",
                         hint="name a function or class that returns the network itself")
    return network


def _filled(external: External, checkpoint: Path, num_classes: int | None) -> nn.Module:
    state = read_state_dict(checkpoint)
    network = _built(external, num_classes, pretrained=False)
    if num_classes is None:
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        classes = head_classes(shapes, state)
        if classes is not None:
            network = _built(external, classes, pretrained=False)
    load_strict(network, state, name=external.name, source=str(checkpoint))
    return network


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make every ``torch.load`` underneath refuse code: other libraries call it their own way."""
    before = os.environ.get(FORCE_SAFE)
    os.environ[FORCE_SAFE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE_SAFE]
        else:
            os.environ[FORCE_SAFE] = before


def _is_network_failure(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.startswith(_NETWORK_MODULES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_weights(external: External, error: BaseException) -> DownloadError:
    lines = str(error).splitlines() or [type(error).__name__]
    return DownloadError(f"the weights of {external.name} must be fetched once",
                         seen=f"that failed ({lines[0]})",
                         hint="check the network and run again, or fetch the file yourself and "
                              "give it with --checkpoint FILE")


def _torchvision(name: str, rest: str) -> External:
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
    weights = choices[tag or "DEFAULT"]

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        return _plain_call(name, lambda: torchvision.models.get_model(
            arch, weights=weights if pretrained else None, **settings))

    return External(name, build, lambda _: _from_torchvision(weights.transforms()),
                    f"torchvision weights {weights}")


def _plain_call(name: str, call: Callable[[], Any]) -> nn.Module:
    """Call a library's builder, whose ValueError here means settings that exclude each other."""
    try:
        network: nn.Module = call()
    except ValueError as error:
        raise ModelError(f"{name} must accept the settings", seen=f"it said: {error}",
                         hint="leave --num-classes out, or give --checkpoint FILE") from error
    return network


def _from_torchvision(transforms: Any) -> Preprocessing:
    size, resized = transforms.crop_size[0], transforms.resize_size[0]
    return Preprocessing(img_size=size, crop_pct=size / resized,
                         interpolation=transforms.interpolation.value,
                         mean=_triple(transforms.mean), std=_triple(transforms.std))


def _timm(name: str, rest: str) -> External:
    import timm
    from timm.data.config import resolve_model_data_config

    resolve: Callable[[nn.Module], dict[str, Any]] = resolve_model_data_config
    arch, _, tag = rest.partition(".")
    if not timm.is_model(arch):
        raise unknown_name("timm model", arch, timm.list_models(),
                           listing="timm.list_models()")
    tags = [full.partition(".")[2] for full in timm.list_models(f"{arch}.*", pretrained=True)]
    if tag and tag not in tags:
        raise unknown_name(f"weights tag of timm/{arch}", tag, tags,
                           listing=f"the tags {', '.join(tags) or '(none)'}")

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        if pretrained and not tags:
            raise CheckpointError(f"{name} must have published weights", seen="timm has none",
                                  hint="choose another name or give --checkpoint FILE")
        settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        network: nn.Module = timm.create_model(rest, pretrained=pretrained, **settings)
        return network

    def preprocessing(network: nn.Module) -> Preprocessing:
        return from_config(name, resolve(network))

    return External(name, build, preprocessing, f"timm weights {rest}")


def from_config(name: str, config: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that a timm-style table describes.

    Keys that are absent take ImageNet's usual values. Raises ModelError for one that differs from
    resizing the short side and cropping a square from the centre of an RGB image.
    """
    channels, height, width = config.get("input_size") or (3, 224, 224)
    interpolation = config.get("interpolation") or "bilinear"
    mode = config.get("crop_mode") or "center"
    refusal = None
    if channels != 3:
        refusal = f"it takes {channels} channels"
    elif height != width:
        refusal = f"it takes images of {height} x {width} pixels"
    elif mode != "center":
        refusal = f"its crop mode is {mode!r}"
    elif interpolation not in INTERPOLATIONS:
        refusal = f"its interpolation is {interpolation!r}"
    if refusal:
        raise ModelError(f"{name} must take the central square of RGB images", seen=refusal,
                         hint="choose other weights of this model, or another model")
    usual = Preprocessing()
    return Preprocessing(img_size=height, crop_pct=config.get("crop_pct") or usual.crop_pct,
                         interpolation=interpolation,
                         mean=_triple(config.get("mean") or usual.mean),
                         std=_triple(config.get("std") or usual.std))


def _triple(values: Any) -> tuple[float, float, float]:
    if isinstance(values, Tensor):
        values = values.tolist()
    first, second, third = (float(value) for value in values)
    return first, second, third


def find_callable(name: str, hint: str) -> Callable[..., Any]:
    """Return what ``module:attribute`` names, in the working folder or on the path.

    Args:
        name: as the user typed it.
        hint: what to name, for when it cannot be called.

    Raises UsageError, ModelError or UnknownNameError, whichever part of the name is wrong.
    """
    module_name, _, attribute = name.partition(":")
    module = _imported(name, module_name)
    try:
        made = getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise unknown_name(f"callable of {module_name}", attribute, public,
                           listing=str(getattr(module, "__file__", module_name))) from None
    if not callable(made):
        raise ModelError(f"{name} must be something to call",
                         seen=f"it is a {type(made).__name__}", hint=hint)
    found: Callable[..., Any] = made
    return found


def _factory(name: str) -> External:
    made = find_callable(name, "name a function or class that returns the network")

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        if isinstance(made, nn.Module):
            return made
        network: nn.Module = made(**_settings(name, made, num_classes, pretrained))
        return network

    def preprocessing(network: nn.Module) -> Preprocessing:
        config = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
        return from_config(name, config) if isinstance(config, Mapping) else Preprocessing()

    return External(name, build, preprocessing, f"the weights that {name} returns")


def _imported(name: str, module_name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise ModelError(f"the module of {name} must import what it needs",
                             seen=f"it lacks {missing}",
                             hint=f"install {missing}") from error
        raise ModelError(f"the module of {name} must exist",
                         seen=f"there is no {missing} in {here} or on PYTHONPATH",
                         hint="go to the folder that holds it, or set PYTHONPATH to it") from error
    except (ValueError, TypeError) as error:
        raise UsageError("what to call must be written package.module:callable",
                         seen=f"it is {name!r}", hint="write it like mymodels:make") from error


def _settings(name: str, made: Callable[..., Any], num_classes: int | None,
              pretrained: bool) -> dict[str, object]:
    """Return the arguments for a factory: only those that its signature names."""
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):  # some callables written in C have none
        signature = inspect.Signature()
    named = signature.parameters
    settings: dict[str, object] = {"pretrained": pretrained} if "pretrained" in named else {}
    if num_classes is not None:
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in named.values())
        if "num_classes" not in named and not takes_any:
            raise ModelError(f"{name} must take num_classes to have {num_classes} classes",
                             seen="it has no such argument",
                             hint="add the argument, or use weights with its own classes")
        settings["num_classes"] = num_classes
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise ModelError(f"{name} must be callable without arguments", seen=str(error),
                         hint="name a function that returns the finished network") from error
    return settings


def as_classifier(model: nn.Module, *, checkpoint: Path | None = None,
                  overrides: Mapping[str, Any] | None = None) -> Classifier:
    """TEMPORARY."""
    raise NotImplementedError
