"""A few passes before a run that show whether its numbers can mean what a table says.

A run's numbers belong to each image by itself, and an attack needs a gradient that leads
somewhere. A network can break that without any error: by dropout that never stops, statistics of
the batch, a rounded input, or probabilities in place of logits.

Letters: B images, H and W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from sanrobust.attacks.guards import check_logits, sealed
from sanrobust.attacks.randomness import seeded
from sanrobust.attacks.result import zero_share
from sanrobust.data.imageset import ImageSet
from sanrobust.data.loader import batches
from sanrobust.errors import NonFiniteError
from sanrobust.preprocessing import Preprocessing
from sanrobust.trouble import out_of_memory

Model = Callable[[Tensor], Tensor]

# Differences count where they exceed these parts of the spread of an image's logits. In float32
# an image alone and in a batch differs by rounding, less than 1e-5 of the spread in the zoo,
# torchvision and timm; one pass made twice differs by nothing on a CPU and by rounding on a GPU.
_AGAIN, _ALONE = 1e-4, 1e-3
# Networks that compute in 16 bits somewhere round 2**13 or 2**16 times as coarsely in each step,
# but add in float32, so that few numbers come out otherwise.
_COARSE = 50
# Logits round in proportion to their size, which an offset may make far larger than their spread.
_ROUNDING = 2.0 ** -16
# A class whose logit is this far below the first has no part in an image's numbers.
_FAR = 50.0
_MOSTLY = 0.99

RANDOM = ("two passes over the same images give different logits: something in the model is random "
          "or changes with every pass, such as dropout that stays on, so its numbers do not repeat")
BATCH = ("an image alone gets other logits than in a batch: the model uses statistics of the batch "
         "or its size, so its numbers depend on the batch size and on the other images")
PROBABILITIES = ("the model returns probabilities, rows in [0, 1] that sum to 1, in place of "
                 "logits: their gradients are small, so that attacks look weaker than they are")


def probe_first(model: Model, images: ImageSet, preprocessing: Preprocessing,
                device: torch.device, *, gradient: bool, most: int) -> tuple[str, ...]:
    """Do as `probe` for the first images of a set: the same ones whatever the batch size.

    Args:
        most: how many, or fewer where memory does not hold them.
    """
    sample = range(min(most, len(images.refs)))
    batch = next(batches(images, preprocessing, plan=[sample], workers=0))
    try:
        return probe(model, batch.pixels.to(device), gradient=gradient)
    except NonFiniteError:
        return ()  # the records will say so, image by image
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or most < 4:
            raise
    return probe_first(model, images, preprocessing, device, gradient=gradient, most=most // 2)


def probe(model: Model, pixels: Tensor, *, gradient: bool) -> tuple[str, ...]:
    """Say why a classifier's numbers may not mean what they should, a sentence each.

    A batch is passed three times, its first and last image alone, and with ``gradient`` once
    backward. No global random state is touched, and the model's flags, buffers and plain numbers
    are afterwards what they were.

    Args:
        model: pixels in [0, 1] to logits (B, K), in eval mode.
        pixels: (B, 3, H, W), a few of the run's own images; those without finite logits are left
            out.
        gradient: whether the run takes gradients with respect to the pixels.

    Returns:
        Sentences without a full stop, none for a sound model.

    Raises ModelError for a model that is no classifier.
    """
    state = _State(model)
    try:
        with (torch.inference_mode(False), torch.no_grad(), sealed(model),
              seeded(0, pixels.device)):
            images = _finite(model, pixels.detach().clone())
            if not len(images):
                return ()
            remarks = _repeatability(model, images)
            return (*remarks, *_attackability(model, images)) if gradient else remarks
    except NonFiniteError:
        # The same images had finite logits a moment ago.
        return (RANDOM,)
    finally:
        state.restore()


def _finite(model: Model, images: Tensor) -> Tensor:
    """Return the images with finite logits; a single one gets a darker one as company."""
    if not _is_finite(model, images):
        sound = [_is_finite(model, images[i:i + 1]) for i in range(len(images))]
        images = images[torch.tensor(sound, device=images.device)]
    if len(images) != 1:
        return images
    pair = torch.cat([images, images.flip(-1) / 2])
    return pair if _is_finite(model, pair) else images


def _is_finite(model: Model, images: Tensor) -> bool:
    try:
        _logits(model, images)
    except NonFiniteError:
        return False
    return True


@dataclass(frozen=True)
class Repeatability:
    """How far logits of the same images differ from one pass to another.

    Attributes:
        again: between passes over the same batch, in parts of the spread of an image's logits.
        alone: between an image in the batch and by itself, likewise.
        coarse: whether the model computes in 16 bits, whose rounding is allowed for.
        changed: a buffer or number of the model that passes change; None for none.
    """

    again: float
    alone: float
    coarse: bool
    changed: str | None

    @property
    def random(self) -> bool:
        """Whether two passes differ by more than rounding."""
        return self.again > _AGAIN * self._allowance

    @property
    def of_batch(self) -> bool:
        """Whether an image alone differs by more than rounding."""
        return self.alone > _ALONE * self._allowance

    @property
    def _allowance(self) -> int:
        return _COARSE if self.coarse else 1


def repeatability(model: Model, images: Tensor) -> Repeatability:
    """Compare passes over a batch (B, 3, H, W) with each other and with single images.

    The model's buffers and plain numbers are afterwards what they were. Raises ModelError for a
    model that is no classifier, NonFiniteError for logits that are no numbers.
    """
    state = _State(model)
    try:
        with (torch.inference_mode(False), torch.no_grad(), sealed(model),
              seeded(0, images.device)):
            return _compared(model, images)
    finally:
        state.restore()


def _compared(model: Model, images: Tensor) -> Repeatability:
    state = _State(model)
    first, second = _logits(model, images), _logits(model, images)
    single = torch.cat([_logits(model, images[:1]), _logits(model, images[-1:])])
    third, changed = _logits(model, images), state.changed()
    again = max(_apart(first, second), _apart(first, third))
    alone = _apart(first[[0, -1]], single)
    exact = again <= _AGAIN and alone <= _ALONE
    return Repeatability(again, alone, not exact and narrowest_float(model, images) < 4, changed)


def _repeatability(model: Model, images: Tensor) -> tuple[str, ...]:
    """Say what passes over the batch, compared with each other and with single images, show."""
    found = _compared(model, images)
    if found.random:
        return (RANDOM,)
    remarks = [BATCH] if found.of_batch else []
    if found.changed:
        remarks.append(f"the model changes its own {found.changed} with every pass, so its numbers "
                       "may depend on what it computed before")
    return tuple(remarks)


def _attackability(model: Model, images: Tensor) -> Iterator[str]:
    """Look for what makes an attack weaker than it would be on the same decisions."""
    logits = _logits(model, images)
    if are_probabilities(logits):
        yield PROBABILITIES
    if _spread(logits) == 0:
        # An untrained head of zeros has no gradient, and no decision to attack.
        return
    share = _zero_gradient(model, images)
    dead = int((share == 1).sum())
    if dead:
        yield (f"the gradient is exactly zero everywhere for {dead} of {len(share)} images looked "
               "at, as behind a rounded input: an attack that follows it cannot move, and its "
               "failure says nothing about robustness")
    elif share.median() > _MOSTLY:
        yield (f"the gradient is exactly zero for {100 * share.median():.0f} % of the pixels' "
               "values: an attack that follows it moves only the others")


def are_probabilities(logits: Tensor) -> bool:
    """Return whether rows (B, K) lie in [0, 1] and sum to 1."""
    low, high = logits.aminmax()
    return bool(low >= 0 and high <= 1 and (logits.sum(1) - 1).abs().max() < 1e-2)


def _logits(model: Model, images: Tensor) -> Tensor:
    logits = model(images.clone())
    check_logits(logits, len(images))
    # A copy, since a network may write the next pass into the same memory.
    return logits.detach().to(torch.float32, copy=True)


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """Return how far logits (B, K) of the same images differ, in parts of their spread."""
    ours, theirs = (logits.clamp(min=logits.amax(1, keepdim=True) - _FAR)
                    for logits in (ours, theirs))
    difference = (ours - theirs).abs().max() - _ROUNDING * ours.abs().max()
    return float(difference / _spread(ours)) if difference > 0 else 0.0


def _spread(logits: Tensor) -> Tensor:
    return (logits.amax(1) - logits.amin(1)).median()


def _zero_gradient(model: Model, images: Tensor) -> Tensor:
    """Return which part of the gradient of a mixture of all logits is exactly zero, (B,)."""
    with torch.enable_grad():
        leaf = images.clone().requires_grad_()
        logits = model(leaf)
        check_logits(logits, len(images))
        if not logits.requires_grad:
            # Attacks that need a gradient refuse such a model, and others can go without.
            return images.new_zeros(len(images))
        mixture = (logits * torch.randn(logits.shape[1]).to(logits)).sum()
        return zero_share(torch.autograd.grad(mixture, leaf)[0])


class _Precision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices the narrowest floating point among results, those of autocast included."""

    narrowest: int = 8

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor) and each.is_floating_point():
                self.narrowest = min(self.narrowest, each.element_size())
        return result


def narrowest_float(model: Model, images: Tensor) -> int:
    """Return of how many bytes the narrowest floating-point result in a pass is, at most 8."""
    with _Precision() as precision:  # type: ignore[no-untyped-call]
        model(images.clone())
    return int(precision.narrowest)


class _State:
    """The buffers and plain numbers that a model's modules hold now."""

    def __init__(self, model: Model) -> None:
        modules = list(model.named_modules()) if isinstance(model, nn.Module) else []
        self._numbers = {(name, key): (module, value) for name, module in modules
                         for key, value in vars(module).items() if _is_number(value)}
        self._buffers = {(name, key): (module, value, value.clone()) for name, module in modules
                         for key, value in module._buffers.items() if value is not None}

    def changed(self) -> str | None:
        """Return the name of one that is no longer what it was, or None."""
        for (name, key), (module, value) in self._numbers.items():
            # Compared as text, in which nan equals itself.
            if repr(vars(module).get(key)) != repr(value):
                return f"{name}.{key}".lstrip(".")
        for (name, key), (module, _, value) in self._buffers.items():
            now = dict(module._buffers.items()).get(key)
            if now is None or not _same(now, value):
                return f"{name}.{key}".lstrip(".")
        return None

    def restore(self) -> None:
        """Give every one its value again."""
        for (_, key), (module, value) in self._numbers.items():
            vars(module)[key] = value
        with torch.no_grad():
            for (_, key), (module, tensor, value) in self._buffers.items():
                if not _same(tensor, value):
                    tensor.copy_(value)
                module._buffers[key] = tensor


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.is_floating_point() and theirs.is_floating_point():
        ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
    return torch.equal(ours, theirs)
