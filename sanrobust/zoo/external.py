"""Models from elsewhere: torchvision, timm, and any callable that returns a network.

Each brings its own weights and its own preprocessing. Whatever it reads through ``torch.load``
while it is built is held to tensors.
"""

from __future__ import annotations

import copy
import errno
import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sanrobust.errors import (
    CheckpointError, DownloadError, ModelError, SanrobustError, UsageError, first_line,
)
from sanrobust.files import printable
from sanrobust.preprocessing import Preprocessing
from sanrobust.registry import closest
from sanrobust.zoo import factory
from sanrobust.zoo.checkpoint import read_weights
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.code import code_digest
from sanrobust.zoo.config import USUAL_SHAPE, Shape, Wanted, description, input_shape, wanted_by
from sanrobust.zoo.libraries import External, filling, timm_models, torchvision_models
from sanrobust.zoo.switches import kept

PREFIXES = ("torchvision", "timm")
FORCE_SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"

Say = Callable[[str], None]

_NETWORK_MODULES = ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub", "http", "urllib",
                    "socket", "ssl")
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_REAL_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def is_external(name: str) -> bool:
    """Return whether ``name`` is written like a model from elsewhere (``a/b`` or ``a:b``)."""
    bare = name.partition("(")[0]  # options in parentheses are the zoo's
    return "/" in bare or ":" in bare


def create_external(name: str, *, checkpoint: Path | None = None, use_ema: bool = False,
                    overrides: Mapping[str, Any] | None = None, num_classes: int | None = None,
                    say: Say = lambda _: None) -> Classifier:
    """Build the model ``torchvision/NAME``, ``timm/NAME`` or ``module:callable``.

    Args:
        name: a torchvision or timm name may end in ``.TAG``, the name of its weights.
        checkpoint: a file to load instead of the published weights; nothing is downloaded then,
            and the classifier is called ``name.STEM`` after it.
        use_ema: take the averaged weights of a checkpoint that holds both.
        overrides: preprocessing fields that replace the model's own.
        num_classes: length of the logits; by default the checkpoint's or the model's own.
        say: told in a sentence which of several weights were taken, and what was converted.

    Raises UnknownNameError for a name that does not exist, DownloadError when weights cannot be
    fetched, CheckpointError when they do not fit, and ModelError when the model is no classifier.
    """
    with _building(name):
        with kept():  # before anything is computed
            found = _find(name, checkpoint, say)
            if checkpoint is None:
                external, source = found[0], found[0].source
                network = _built(external, lambda: external.build(num_classes, True))
            else:
                external, network, source = _filled(found, checkpoint, use_ema, num_classes, say)
        network, source = _measurable(network, name, source, say)
        classes = None
        if isinstance(network, Classifier):  # one that `sanrobust.create_model` made
            wanted, classes, network = (Wanted(network.preprocessing), network.classes,
                                        network.network)
        else:
            wanted = external.wanted(network)
        code = code_digest(network, *external.made_by) if external.made_by else None
        preprocessing = replace(wanted.preprocessing, **(overrides or {}))
        shown = name if checkpoint is None else f"{name}.{printable(checkpoint.stem)}"
        return Classifier(network, name=shown, preprocessing=preprocessing, source=source,
                          classes=classes, code=code, assumed=wanted.sentence(overrides or {}))


def require_found(name: str) -> None:
    """Refuse a name that is none, without building a model; raises as `create_external`."""
    with _building(name):
        _find(name, None, lambda _: None)


def as_classifier(model: nn.Module, *, name: str | None = None,
                  preprocessing: Preprocessing | None = None,
                  say: Say = lambda _: None) -> Classifier:
    """Return a network made in Python as a classifier on the CPU; a `Classifier` as it is.

    Args:
        model: maps normalised images (B, 3, H, W) to logits (B, K). It is copied: its mode, its
            gradients and its device stay as they are.
        name: what tables call it; by default the name of its class.
        preprocessing: how it wants its images; by default what its ``default_cfg`` says, and
            where it says nothing ImageNet's usual values, which the classifier's ``assumed`` tells.
        say: told in a sentence what was converted.

    Raises ModelError when it cannot be copied or is no classifier of images, and UsageError when
    it is no network.
    """
    if isinstance(model, Classifier):
        return model
    if not isinstance(model, nn.Module):
        raise UsageError("a model must be a name, a Classifier or a torch.nn.Module",
                         seen=f"it is a {type(model).__name__}",
                         hint="give the network itself, or a name such as san10-pair.digits")
    inner = _unwrapped(model)
    shown = name or (inner.original_name if isinstance(inner, torch.jit.ScriptModule)
                     else type(inner).__name__)
    with _building(shown):
        _require_values(shown, inner)
        wanted = wanted_by(shown, inner) if preprocessing is None else Wanted(preprocessing)
        code = code_digest(inner)
        try:
            # A copy of compiled parameters that is computed with gradients is no longer a leaf.
            with torch.no_grad():
                network = copy.deepcopy(inner).cpu()
        # Deep copies are made by the parts' own code.
        except Exception as error:
            raise ModelError(f"{shown} must be a network that can be copied",
                             seen=f"copy.deepcopy stopped with: {first_line(error)}",
                             hint="give a function that makes it, as package.module:callable"
                             ) from error
        network, source = _measurable(network, shown, f"the weights of {shown} in Python", say)
        return Classifier(network, name=shown, preprocessing=wanted.preprocessing, source=source,
                          code=code, assumed=wanted.sentence(()))


def build_external(name: str, *, meta: bool = False,
                   side: int | None = None) -> tuple[nn.Module, Shape]:
    """Return the network called ``name`` with initial values, and the shape of its images.

    The shape is channels, height and width. Nothing is downloaded.

    Args:
        name: as the user typed it.
        meta: build a library's network without values where it can be built so.
        side: of the images in pixels that a library's network is built for; None for its own.

    Raises UnknownNameError for a name that does not exist and ModelError for what is no network,
    or cannot be built for another side.
    """
    with _building(name):
        external = _find(name, None, lambda _: None)[0]
        build = partial(external.build, None, False) if side is None else _sized(external, side)
        network = _shapes_alone(build) if meta and not external.made_by else None
        network = network or _built(external, build)
    return network, external.shape(network)


def _sized(external: External, side: int) -> Callable[[], nn.Module]:
    sized = external.sized
    if sized is None:
        raise ModelError(f"{external.name} must be built anew for another side",
                         seen="it is your own", hint="leave out --img-size")
    return partial(sized, side)


def _shapes_alone(build: Callable[[], nn.Module]) -> nn.Module | None:
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None  # its builder computes with values


@contextmanager
def _building(name: str) -> Iterator[None]:
    """Give other people's code seeded generators, and leave everything else as it was.

    Imported modules draw random numbers too, and the caller must not notice. An exception of
    theirs that is none of ours, `sys.exit` included, becomes a ModelError.
    """
    with kept(), _tensors_only(), factory.here_on_path():
        _seed()
        try:
            yield
        except (SanrobustError, KeyboardInterrupt):
            raise
        except BaseException as error:
            if not _is_own(name):
                raise
            raise factory.failed(name, "building it", error) from error


def _is_own(name: str) -> bool:
    return name.partition("/")[0] not in PREFIXES


def _seed() -> None:
    torch.default_generator.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _find(name: str, checkpoint: Path | None, say: Say) -> list[External]:
    """Return what a name can mean, likeliest first."""
    prefix, slash, rest = name.partition("/")
    if slash and prefix in PREFIXES:
        return (torchvision_models if prefix == "torchvision" else timm_models)(
            name, rest, checkpoint)
    if ":" in name and not slash:
        return [_factory(name, say)]
    match = closest(prefix, PREFIXES) if slash else None
    raise UsageError("a model from elsewhere must be torchvision/NAME, timm/NAME or "
                     "package.module:callable", seen=f"it is {name!r}",
                     hint=f"type {match}/{rest}" if match else "use one of these forms")


def _factory(name: str, say: Say) -> External:
    made = factory.find_callable(name, "name a function or class that returns the network", say)

    module = sys.modules[name.partition(":")[0]]

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        if isinstance(made, nn.Module):  # a finished network, which stays the module's own
            return copy.deepcopy(_unwrapped(made))
        _seed()
        network = made(**factory.settings(name, made, num_classes, pretrained))
        if not isinstance(network, nn.Module):
            raise ModelError(f"{name} must return a torch.nn.Module",
                             seen=f"it returned a {type(network).__name__}",
                             hint="name a function or class that returns the network itself")
        network = _unwrapped(network)
        _require_values(name, network)
        factory.remember(module)  # a factory imports too
        return network

    return External(name, f"the weights that {name} returns", build, filling(name, build),
                    lambda network: wanted_by(name, network), lambda network: input_shape(
                        name, description(network) or {"input_size": USUAL_SHAPE}), (module, made))


def _unwrapped(network: nn.Module) -> nn.Module:
    """Return the network within wrappers that compute the same."""
    while isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)) \
            or hasattr(network, "_orig_mod"):
        inner = network._modules.get("_orig_mod") or network._modules.get("module")
        if not isinstance(inner, nn.Module):
            break
        network = inner
    return network


def _built(external: External, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        network = build()
    except SanrobustError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"the weights of {external.name} must hold nothing but tensors",
                              seen="they want to run code when they are read, which was "
                                   "not done",
                              hint="use other weights of this model") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit too
        if _is_network_failure(error):
            raise _no_weights(external, error) from error
        if not external.made_by:
            raise
        raise factory.failed(external.name, "calling it", error) from error
    return network


def _require_values(name: str, network: nn.Module) -> None:
    values = [*network.named_parameters(), *network.named_buffers()]
    empty = next((key for key, value in values if is_lazy(value) or value.is_meta), None)
    if empty is not None:
        raise ModelError(f"every weight of {name} must have its values",
                         seen=f"{empty} has none yet (a lazy layer, or one on the meta device)",
                         hint="run the network on an image, or load its weights, before it is "
                              "handed over")


def _filled(found: list[External], checkpoint: Path, use_ema: bool, num_classes: int | None,
            say: Say) -> tuple[External, nn.Module, str]:
    """Load a file into the first of the networks found that it fits."""
    weights = read_weights(checkpoint, use_ema=use_ema)
    remark = weights.remark(str(checkpoint))
    if remark is not None:
        say(remark)
    source = f"{checkpoint} ({weights.key})" if weights.others else str(checkpoint)
    refusals = []
    for external in found:
        try:
            network = _built(external, lambda: external.fill(
                weights.state, num_classes, str(checkpoint)))
            return external, network, source
        except CheckpointError as error:
            refusals.append(error)
    raise refusals[0]


def _measurable(network: nn.Module, name: str, source: str, say: Say) -> tuple[nn.Module, str]:
    """Return a network that computes in float32, as every run does, and where it is from."""
    values = [*network.parameters(), *network.buffers()]
    others = {str(value.dtype).removeprefix("torch.") for value in values
              if value.dtype in _REAL_TYPES and value.dtype != torch.float32}
    if not others:
        return network, source
    try:
        network = network.float()
    # A library's networks of few bits refuse it in words of their own.
    except Exception as error:
        raise ModelError(f"{name} must be a network in float32", seen=f"it is in "
                         f"{', '.join(sorted(others))} and float() stopped with: "
                         f"{first_line(error)}",
                         hint="return it in float32") from error
    converted = f"in float32 instead of {', '.join(sorted(others))}"
    say(f"{name}: its weights are taken {converted}; --precision says what is computed in")
    return network, f"{source}, {converted}"


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
    """Tell a failed download from a file that is missing on this machine."""
    while error is not None:
        if type(error).__module__.startswith(_NETWORK_MODULES) or isinstance(
                error, (ConnectionError, TimeoutError)) or getattr(
                    error, "errno", None) in _UNREACHABLE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _no_weights(external: External, error: BaseException) -> DownloadError:
    return DownloadError(f"the weights of {external.name} must be fetched once",
                         seen=f"that failed ({first_line(error)})",
                         hint="check the network and run again, or fetch the file yourself and "
                              "give it with --checkpoint FILE")
