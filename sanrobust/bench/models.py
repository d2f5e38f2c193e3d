"""Whole models as contenders: a forward pass, an attack's step and a training step of one batch.

In the first two weights are frozen and normalisation is in eval mode, as the evaluation has them;
in the last all weights get gradients, and normalisation is by the batch. Letters: B
images, S their side in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sanrobust.bench.contender import Contender
from sanrobust.bench.settings import (ATTACK, CHECKPOINTED, COMPILED, FORWARD, OURS, OWN, PLAIN,
                                      RESNET, RESNET_LAST, RESNET_OURS, RESNET_SMALL,
                                      TORCHATTACKS, TRAINING, UNFOLD, Shape)
from sanrobust.bench.unfold import (Formulation, attention_by, compute_by, is_released,
                                    unfold_attention)
from sanrobust.errors import UsageError
from sanrobust.kernels import reference
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.local import LocalAttention
from sanrobust.kernels.modules import (PairwiseAttention, PatchwiseAttention, VectorAttention,
                                       position_grid)
from sanrobust.zoo import catalog
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.blocks import BlockNetwork
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.external import is_external, require_found
from sanrobust.zoo.factory import find_callable
from sanrobust.zoo.forms import smallest_input
from sanrobust.zoo.resolve import create_model

UNTRAINED = "untrained"
# Logits of two formulations differ by rounding: relative to their norm, by less than this times
# the root of a rounding.
_ALIKE = 4
_RIVALS = (RESNET, RESNET_LAST, RESNET_OURS)


def contends(name: str, network: nn.Module) -> bool:
    """Return whether contender ``name`` differs from `ours` for ``network``.

    A network without attention has no other formulation of it, but is plain where `ours` has its
    batch norms folded; one of a design that was not released has only that of another backend.
    """
    if name == OURS or name in _RIVALS:
        return True
    if name in (TORCHATTACKS, RESNET_SMALL, CHECKPOINTED):
        return False
    has_another = _is_rewritten if name == PLAIN else is_released
    return any(map(has_another, network.modules()))


def check(names: tuple[str, ...], shape: Shape) -> None:
    """Refuse a mistyped name or images too small for a network before anything is computed.

    Raises UnknownNameError or UsageError.
    """
    for name in names:
        if is_external(name):
            require_found(name)
            continue
        least = smallest_input(catalog.find(name, tag=UNTRAINED).architecture)
        if shape.img_size < least:
            raise UsageError(f"{name} needs images of at least {least}x{least} pixels",
                             seen=f"--img-size is {shape.img_size}",
                             hint=f"use --img-size {least} or larger")


def load(name: str, shape: Shape) -> Classifier:
    """Return the classifier called ``name`` as ``shape`` wants it, for the contenders to share.

    Raises what `sanrobust.zoo.resolve.create_model` raises.
    """
    classifier = create_model(name, tag=UNTRAINED, overrides={"img_size": shape.img_size})
    return classifier.to(shape.device, getattr(torch, shape.dtype))


def contender(name: str, classifier: Classifier, shape: Shape) -> Contender:
    """Return one contender of a model, ready to be called.

    Args:
        name: one of `sanrobust.bench.settings.CONTENDERS`, or ``module:function``.
        classifier: the model, made by `load`; the rivals bring their own.
        shape: the batch.

    Raises what `find_formulation` raises, and UsageError for one that computes other logits.
    """
    maker = partial(_own, name) if OWN in name else _MAKERS[name]
    model, computed_by = maker(classifier, shape)
    pixels = _pixels(shape)
    if name == RESNET_LAST:
        pixels = pixels.to(memory_format=torch.channels_last)
    return Contender(name=name, computed_by=computed_by,
                     model=None if name == COMPILED else model,
                     calls={FORWARD: partial(forward, model, pixels),
                            ATTACK: partial(attack, model, pixels)})


def contenders(names: Iterable[str], classifier: Classifier, shape: Shape, *,
               training: bool) -> Iterator[Contender]:
    """Yield those of ``names`` that take part in evaluating a model, or in ``training`` it.

    Raises what `contender` raises.
    """
    for name in names:
        if training and name in _TRAINEES and _can_train(name, classifier.network):
            yield _trainee(name, classifier, shape)
        elif not training and contends(name, classifier.network):
            yield contender(name, classifier, shape)


def _can_train(name: str, network: nn.Module) -> bool:
    return name != CHECKPOINTED or isinstance(network, BlockNetwork)


def _trainee(name: str, classifier: Classifier, shape: Shape) -> Contender:
    own = load(RESNET_SMALL, shape) if name == RESNET_SMALL else deepcopy(classifier)
    own.network.train().requires_grad_(True)  # the classifier itself stays in eval mode
    if name == CHECKPOINTED:
        assert isinstance(own.network, BlockNetwork)  # `_can_train`
        own.network.set_grad_checkpointing()
    model = _plain(own, shape)[0] if name == PLAIN else own
    return Contender(name=name, computed_by=_TRAINEES[name],
                     calls={TRAINING: partial(train, model, _pixels(shape))})


def train(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the loss of ``pixels`` (B, 3, S, S) as class 0; all weights have gradients then."""
    model.zero_grad()
    logits = model(pixels).float()
    targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    loss = F.cross_entropy(logits, targets)
    torch.autograd.backward(loss)
    return loss.detach()


def forward(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the logits (B, K) of ``pixels`` (B, 3, S, S)."""
    with torch.no_grad():
        return model(pixels)  # type: ignore[no-any-return]


def attack(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the gradient (B, 3, S, S) of the cross entropy toward class 0: a step of PGD."""
    leaf = pixels.detach().requires_grad_()
    logits = model(leaf).float()
    targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return torch.autograd.grad(F.cross_entropy(logits, targets, reduction="sum"), leaf)[0]


def _pixels(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(shape.batch_size, 3, shape.img_size, shape.img_size, generator=generator)
    return pixels.to(shape.device, getattr(torch, shape.dtype))


class _Within(nn.Module):
    """A classifier that computes inside a context, entered anew for each batch."""

    def __init__(self, classifier: Classifier,
                 context: Callable[[], AbstractContextManager[object]]) -> None:
        super().__init__()
        self.classifier = classifier
        self.context = context

    def forward(self, pixels: Tensor) -> Tensor:
        with self.context():
            return self.classifier(pixels)  # type: ignore[no-any-return]


def _ours(classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    made = accelerate(classifier, torch.device(shape.device))
    return made.classifier, made.words


def _plain(classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    words = ("reference backend" if any(map(_is_attention, classifier.network.modules()))
             else "as written")
    return _Within(classifier, partial(use_backend, "reference")), words


def _unfold(classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    by_unfold = partial(attention_by, unfold_attention, classifier.network)
    return _Within(classifier, by_unfold), "unfold"


def find_formulation(name: str) -> Formulation:
    """Return the function ``module:function`` of an attention layer and its input (B, C, H, W).

    Raises what `sanrobust.zoo.factory.find_callable` raises.
    """
    return find_callable(name, "name a function that takes an attention layer and its features")


def _own(name: str, classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    by_own = partial(attention_by, find_formulation(name), classifier.network)
    model = _Within(classifier, by_own)
    pixels = _pixels(replace(shape, batch_size=1))
    expected, found = (forward(each, pixels).float() for each in (classifier, model))
    error = float((found - expected).norm() / expected.norm())
    tolerance = _ALIKE * torch.finfo(pixels.dtype).eps ** 0.5
    if not error <= tolerance:
        raise UsageError(f"{name} must compute the attention of {classifier.name}",
                         seen=f"its logits differ by {error:.1e}, and rounding by {tolerance:.1e}",
                         hint="compare it with sanrobust.kernels.functional layer by layer")
    return model, name


def _compiled(classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    network = deepcopy(classifier.network)
    compute_by(_reference_attention, network)
    compiled = torch.compile(network)
    assert isinstance(compiled, nn.Module)
    return classifier.computed_by(compiled), "torch.compile of the reference"


def _resnet(classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    return load(RESNET, shape), "torch"


def _resnet_last(classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    return load(RESNET, shape).to(memory_format=torch.channels_last), "torch, channels last"


def _resnet_ours(classifier: Classifier, shape: Shape) -> tuple[nn.Module, str]:
    return _ours(load(RESNET, shape), shape)


_MAKERS: dict[str, Callable[[Classifier, Shape], tuple[nn.Module, str]]] = {
    OURS: _ours, PLAIN: _plain, UNFOLD: _unfold, COMPILED: _compiled, RESNET: _resnet,
    RESNET_LAST: _resnet_last, RESNET_OURS: _resnet_ours,
}
_TRAINEES = {OURS: "sanrobust", CHECKPOINTED: "sanrobust, blocks computed again",
             PLAIN: "reference backend", RESNET_SMALL: "torch"}
NAMES, TRAINEES = tuple(_MAKERS), tuple(_TRAINEES)


def _is_attention(module: nn.Module) -> bool:
    return isinstance(module, (VectorAttention, LocalAttention))


def _is_rewritten(module: nn.Module) -> bool:
    return _is_attention(module) or isinstance(module, nn.BatchNorm2d)


def _reference_attention(layer: nn.Module, features: Tensor) -> Tensor:
    """The reference without the choice of a backend, which a compiler cannot see through."""
    assert isinstance(layer, (PairwiseAttention, PatchwiseAttention))
    query, key, value = layer.conv1(features), layer.conv2(features), layer.conv3(features)
    if isinstance(layer, PatchwiseAttention):
        return reference.patchwise_attention(query, key, value, layer.conv_w, layer.window)
    grid = position_grid(*features.shape[-2:], dtype=features.dtype, device=features.device)
    return reference.pairwise_attention(query, key, value, layer.conv_p(grid), layer.conv_w,
                                        layer.window)
