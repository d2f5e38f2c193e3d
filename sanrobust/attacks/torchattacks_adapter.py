"""The attacks of the torchattacks package, run so that its known faults cannot reach the numbers.

The classifier normalises by itself, so torchattacks' normalisation flag is never set; the model's
flags and every global random state are given back also after a failure; images are attacked one
by one, each with draws of its own, so that no split into batches changes a result.

Letters: B images, H rows, W columns, K classes.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sanrobust.attacks import guards
from sanrobust.attacks.budget import LEVELS
from sanrobust.attacks.randomness import hashed
from sanrobust.attacks.result import BudgetResult, distance
from sanrobust.attacks.targets import TargetRule
from sanrobust.errors import ProtocolError, SanrobustError, UsageError
from sanrobust.registry import closest, unknown_name

Option = bool | int | float | str | tuple[float, ...]
# Attacks whose eps is an L-inf radius although their constructor has no `norm` to say so.
_LINF = frozenset((
    "FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "DIFGSM", "TIFGSM",
    "Jitter", "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP",
))
# Attacks that accept a target and then ignore it: FAB takes every image that is not yet classified
# as its target for one that is already fooled, and returns it unchanged.
_DEAF = frozenset(("FAB",))
_RADII = ("eps", "max_epsilon")
_NUMBER = re.compile(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)(?:/([0-9.]+))?", re.IGNORECASE)


class _Foreign(Protocol):
    """The part of a torchattacks attack that is used here."""

    supported_mode: list[str]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor: ...

    def set_device(self, device: torch.device) -> None: ...

    def set_mode_targeted_by_label(self, quiet: bool = False) -> None: ...


@dataclass(frozen=True)
class TorchattacksAttack:
    """One attack of torchattacks with its options; made by `adapt`, then called batch by batch.

    Attributes:
        name: class name in torchattacks.
        options: the options that were given, as values in torchattacks' own units.
        parameters: every option the constructor takes, with its default.
        factory: the class.
        targeted: whether the attack can be given a target; if not it runs untargeted, against
            the label, and its results have neither targets nor hits.
    """

    name: str
    options: Mapping[str, Option]
    parameters: Mapping[str, object]
    factory: Callable[..., _Foreign]
    targeted: bool

    @property
    def eps(self) -> float | None:
        """L-inf radius in units of 1/255; None when the attack has none."""
        settings = {**self.parameters, **self.options}
        radius = next((settings[key] for key in _RADII if key in settings), None)
        if not _linf(self.name, settings) or not isinstance(radius, (int, float)):
            return None
        return round(radius * LEVELS, 9)

    def __call__(self, model: guards.Classifier, images: Tensor, labels: Tensor,
                 ids: Sequence[str], *, targets: TargetRule | Tensor,
                 seed: int = 0) -> BudgetResult:
        """Attack a batch image by image.

        Args:
            model: pixels in [0, 1] to logits (B, K), in eval mode; its state is given back.
            images: (B, 3, H, W) float32 in [0, 1].
            labels: (B,) int64, the true classes.
            ids: B image ids; with ``seed`` they decide every draw of the attack.
            targets: a rule, or (B,) int64 wrong classes; not read when the attack is untargeted.
            seed: seed of random targets and of the attack's own draws.

        Raises ProtocolError when the attack fails or breaks a rule, ModelError for a model that
        is no classifier, UsageError or DataError for targets that cannot be used.
        """
        guards.check_batch(images, labels, ids)
        guards.check_eval(model)
        with torch.inference_mode(False), torch.enable_grad(), guards.sealed(model):
            images, labels = images.detach().clone(), labels.detach().to(images.device)
            clean = _logits(model, images)
            guards.check_labels(labels, clean.shape[1])
            chosen = self._targets(targets, ids, labels, clean, seed)
            aims = labels if chosen is None else chosen
            adversarial = torch.cat([
                self._attack_one(model, images[i:i + 1], aims[i:i + 1], clean.shape[1],
                                 hashed(seed, "torchattacks", image_id))
                for i, image_id in enumerate(ids)
            ])
            guards.check_adversarial(adversarial, images, self.eps)
            attacked = _logits(model, adversarial, clean.shape[1])
        return BudgetResult(
            budget=None, eps=self.eps, adversarial=adversarial, clean_logits=clean,
            adv_logits=attacked, targets=chosen,
            hit=None if chosen is None else attacked.argmax(1) == chosen, hit_any=None,
            linf=distance(adversarial, images), target_loss=None, zero_gradient=None,
        )

    def _targets(self, targets: TargetRule | Tensor, ids: Sequence[str], labels: Tensor,
                 clean: Tensor, seed: int) -> Tensor | None:
        if not self.targeted:
            return None
        chosen = (targets.choose(ids, labels, clean, seed=seed)
                  if isinstance(targets, TargetRule) else targets.detach().to(labels.device))
        guards.check_targets(chosen, labels, clean.shape[1])
        return chosen

    def _attack_one(self, model: guards.Classifier, image: Tensor, aim: Tensor,
                    num_classes: int, draw: int) -> Tensor:
        # Sealed once more, so that what one image's attack disturbs is mended before the next.
        with (guards.sealed(model), _own_randomness(draw, image.device), _no_chatter(),
              self._failures()):
            attack = self.factory(_Shell(model), **self._arguments(num_classes, draw))
            attack.set_device(image.device)
            if self.targeted:
                attack.set_mode_targeted_by_label(quiet=True)
            adversarial = attack(image.clone(), aim.clone()).detach().to(image)
            adversarial = _clipped(adversarial)
        guards.check_adversarial(adversarial, image, None)
        return adversarial

    def _arguments(self, num_classes: int, draw: int) -> dict[str, object]:
        """Complete the options by what the run knows better than torchattacks' defaults."""
        known: dict[str, object] = {}
        if "seed" in self.parameters:
            known["seed"] = draw % 2**31
        default = self.parameters.get("n_classes")
        if isinstance(default, int):
            # It only bounds how many wrong classes are tried, and must not exceed the model's.
            known["n_classes"] = min(default, num_classes)
        return {**known, **self.options}

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (SanrobustError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise _failed(self.name, error) from error


class _Shell(nn.Module):
    """The classifier as torchattacks wants it, deaf to requests for another mode.

    An attack that reaches past it and runs the classifier in train mode ends the run.
    """

    def __init__(self, model: guards.Classifier) -> None:
        super().__init__()
        self.training = False
        self.inner = model

    def forward(self, images: Tensor) -> Tensor:
        guards.check_eval(self.inner)
        logits = self.inner(images)
        guards.check_logits(logits, len(images))
        return logits.float()

    def train(self, mode: bool = True) -> _Shell:
        return self


def adapt(name: str, options: Sequence[tuple[str, str]] = ()) -> TorchattacksAttack:
    """Find an attack of torchattacks and read its options.

    Args:
        name: class name such as ``MIFGSM``.
        options: (key, text) pairs; values are torchattacks' own, so a radius is ``8/255`` or
            ``0.03137`` here.

    Raises UnknownNameError with the closest match for another name, UsageError for an option that
    the constructor does not take or a value that is not of the default's kind.
    """
    import torchattacks

    factories = _factories(torchattacks)
    if name not in factories:
        raise unknown_name("torchattacks attack", name, factories,
                           listing=f"the legal ones: {', '.join(factories)}")
    parameters = _parameters(factories[name])
    values = {key: _option(name, key, text, parameters) for key, text in options}
    _check_radii(name, {**parameters, **values})
    with _no_chatter():
        try:
            probe = factories[name](_Shell(nn.Identity()), **values)
        except Exception as error:
            raise _failed(name, error) from error
    return TorchattacksAttack(name, values, parameters, factories[name],
                              targeted="targeted" in probe.supported_mode and name not in _DEAF)


def attack_names() -> tuple[str, ...]:
    """Return the torchattacks attacks that need nothing but a model and options, sorted."""
    import torchattacks

    return tuple(_factories(torchattacks))


def _factories(package: ModuleType) -> dict[str, Callable[..., _Foreign]]:
    """Return the exported attacks; a wrapper, which needs other attacks or data, is not one."""
    found = {name: getattr(package, name) for name in sorted(package.__all__)}
    return {name: factory for name, factory in found.items() if _needs_model_alone(factory)}


def _needs_model_alone(factory: Callable[..., object]) -> bool:
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.default is p.empty] == ["model"]


def _parameters(factory: Callable[..., object]) -> dict[str, object]:
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _option(name: str, key: str, text: str, parameters: Mapping[str, object]) -> Option:
    if key not in parameters:
        match = closest(key, parameters)
        legal = ", ".join(parameters) or "no options"
        raise UsageError(f"an option of {name} must be one that it takes",
                         seen=f"it has no option {key!r}",
                         hint=f"{f'did you mean {match}? ' if match else ''}it takes {legal}")
    value = _value(text.strip(), parameters[key])
    if value is None:
        raise UsageError(f"{key} of {name} must be of the kind of its default "
                         f"{parameters[key]!r}", seen=f"{text!r} was seen",
                         hint="give a number such as 10, 0.5 or 8/255, true or false, or a name "
                         "where the default is one")
    return value


def _value(text: str, default: object) -> Option | None:
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.casefold())
    if isinstance(default, str):
        return text or None
    if isinstance(default, tuple):
        numbers = [_number(part.strip()) for part in text.split(",")]
        known = tuple(number for number in numbers if number is not None)
        return known if len(known) == len(numbers) else None
    number = _number(text)
    return (text or None) if number is None and default is None else number


def _number(text: str) -> int | float | None:
    """Read ``10``, ``0.5``, ``1e-3`` or ``8/255``; None for anything else."""
    if re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        return int(text)
    parts = _NUMBER.fullmatch(text)
    if parts is None:
        return None
    try:
        value = float(parts[1]) / float(parts[2] or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def _linf(name: str, settings: Mapping[str, object]) -> bool:
    """Return whether the attack's radius is one of L-inf."""
    return settings["norm"] == "Linf" if "norm" in settings else name in _LINF


def _check_radii(name: str, settings: Mapping[str, object]) -> None:
    for key in (*_RADII, "alpha") if _linf(name, settings) else ():
        value = settings.get(key, 0)
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UsageError(f"{key} of torchattacks:{name} must be in [0, 1], the pixel range",
                             seen=f"it is {value}",
                             hint=f"type {key}={value}/255 if you mean units of 1/255")


def _failed(name: str, error: Exception) -> ProtocolError:
    text = str(error).strip().splitlines()
    return ProtocolError(f"torchattacks:{name} must come to an end",
                         seen=f"it raised {type(error).__name__}"
                         f"{f' ({text[0]})' if text else ''}",
                         hint="give it other options or use another attack")


def _clipped(adversarial: Tensor) -> Tensor:
    """Clip what leaves [0, 1] by at most one 8-bit level, and only that.

    EADEN and EADL1 shrink past the ends of the range, others miss them by rounding. The clipped
    image is the one that is scored, so the numbers are true of a legal image; anything further
    out is a wrong unit or a defect and is left for the guards to refuse.
    """
    clipped = adversarial.clamp(0, 1)
    near = clipped.isclose(adversarial, rtol=0, atol=1 / LEVELS).all()
    return clipped if near else adversarial


def _logits(model: guards.Classifier, images: Tensor, num_classes: int | None = None) -> Tensor:
    with torch.no_grad():
        logits = model(images.clone())
    guards.check_logits(logits, len(images), num_classes)
    return logits.float()


@contextlib.contextmanager
def _own_randomness(draw: int, device: torch.device) -> Iterator[None]:
    """Seed every global generator for one image and give all of them back afterwards."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            torch.manual_seed(draw % 2**63)
            np.random.seed(draw % 2**32)
            random.seed(draw)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def _no_chatter() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())
