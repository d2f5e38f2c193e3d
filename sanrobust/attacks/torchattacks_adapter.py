"""The attacks of the torchattacks package, run so that its known faults cannot reach the numbers.

The classifier normalises by itself, so torchattacks' normalisation flag is never set. The model's
flags and every global random state are given back, also after a failure. Images are attacked one
by one, each with draws of its own, so that no split into batches changes a result. What an attack
sees of the classifier is in `torchattacks_shell`. torchattacks is an extra: it is imported when an
attack is looked up, not with this module.

Letters: B images, H rows, W columns, K classes.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from sanrobust.attacks import guards
from sanrobust.attacks.budget import LEVELS
from sanrobust.attacks.problem import finite_logits, prepared
from sanrobust.attacks.randomness import hashed, seeded
from sanrobust.attacks.result import BudgetResult, distance
from sanrobust.attacks.targets import TargetRule
from sanrobust.attacks.torchattacks_options import (Option, check_radii, norm_of, radius_of,
                                                    read_option)
from sanrobust.attacks.torchattacks_shell import Shell
from sanrobust.errors import NonFiniteError, ProtocolError, SanrobustError, UsageError
from sanrobust.registry import unknown_name

PACKAGE = "torchattacks"
# Attacks that accept a target and then ignore it: FAB takes every image that is not yet classified
# as its target for one that is already fooled, and returns it unchanged.
_IGNORES_TARGET = frozenset(("FAB",))


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
    def norm(self) -> str | None:
        """Norm of the ball: ``linf`` or ``l2``; None when the attack has no ball."""
        return norm_of(self.name, self._settings)

    @property
    def radius(self) -> float | None:
        """Radius of the ball in the pixel range [0, 1]; None when the attack has none."""
        return radius_of(self._settings)

    @property
    def eps(self) -> float | None:
        """L-inf radius in units of 1/255; None when the attack has none."""
        radius = self.radius if self.norm == "linf" else None
        return None if radius is None else round(radius * LEVELS, 9)

    def facts(self) -> dict[str, object]:
        """Return what a run's specification says of the attack besides its name and options."""
        return {"norm": self.norm, "radius": self.radius, "targeted": self.targeted,
                "version": str(getattr(_package(), "__version__", "unknown"))}

    @property
    def _settings(self) -> dict[str, object]:
        return {**self.parameters, **self.options}

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

        Raises ProtocolError when the attack fails or breaks a rule, NonFiniteError when it makes
        an image that is not finite, ModelError for a model that is no classifier, UsageError or
        DataError for targets that cannot be used.
        """
        with prepared(model, images, labels, ids) as (images, labels):
            clean = finite_logits(model, images)
            guards.check_labels(labels, clean.shape[1])
            chosen = self._targets(targets, ids, labels, clean, seed)
            aims = labels if chosen is None else chosen
            products = [
                self._attack_one(model, images[i:i + 1], aims[i:i + 1], clean.shape[1],
                                 hashed(seed, "torchattacks", image_id))
                for i, image_id in enumerate(ids)
            ]
            adversarial = torch.cat([product for product, _ in products])
            guards.check_adversarial(adversarial, images, self.eps)
            if self.norm == "l2" and self.radius is not None:
                guards.check_l2(adversarial, images, self.radius)
            attacked = finite_logits(model, adversarial, clean.shape[1])
        return BudgetResult(
            budget=None, eps=self.eps, adversarial=adversarial, clean_logits=clean,
            adv_logits=attacked, targets=chosen,
            hit=None if chosen is None else attacked.argmax(1) == chosen, hit_any=None,
            linf=distance(adversarial, images), target_loss=None,
            zero_gradient=images.new_tensor([[share] for _, share in products]),
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
                    num_classes: int, draw: int) -> tuple[Tensor, float]:
        """Return an image's adversarial (1, 3, H, W) and how much of its gradients was zero."""
        shell = Shell(model, self.name)
        # Sealed once more, so that what one image's attack disturbs is mended before the next.
        with guards.sealed(model), seeded(draw, image.device), _no_chatter(), self._failures():
            attack = self.factory(shell, **self._arguments(num_classes, draw))
            attack.set_device(image.device)
            if self.targeted:
                attack.set_mode_targeted_by_label(quiet=True)
            adversarial = attack(image.clone(), aim.clone()).detach().to(image)
            adversarial = _clipped(adversarial)
        if not torch.isfinite(adversarial).all():
            raise NonFiniteError("the adversarial image must be finite",
                                 seen=f"torchattacks:{self.name} put NaN or infinity into it",
                                 hint="give it other options or use another attack")
        guards.check_adversarial(adversarial, image, None)
        return adversarial, shell.zero_gradient()

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


def adapt(name: str, options: Sequence[tuple[str, str]] = ()) -> TorchattacksAttack:
    """Find an attack of torchattacks and read its options.

    Args:
        name: class name such as ``MIFGSM``.
        options: (key, text) pairs; values are torchattacks' own, so a radius is ``8/255`` or
            ``0.03137`` here.

    Raises UnknownNameError with the closest match for another name, UsageError for an option that
    the constructor does not take, a value that is not of the default's kind, or when torchattacks
    is not installed.
    """
    factories = _factories()
    if name not in factories:
        raise unknown_name("torchattacks attack", name, factories,
                           listing=f"the legal ones: {', '.join(factories)}")
    parameters = _parameters(factories[name])
    values = {key: read_option(name, key, text, parameters) for key, text in options}
    check_radii(name, {**parameters, **values})
    with _no_chatter():
        try:
            probe = factories[name](Shell(nn.Identity(), name), **values)
        except Exception as error:
            raise _failed(name, error) from error
    return TorchattacksAttack(name, values, parameters, factories[name],
                              targeted="targeted" in probe.supported_mode
                              and name not in _IGNORES_TARGET)


def attack_names() -> tuple[str, ...]:
    """Return the torchattacks attacks that need nothing but a model and options, sorted.

    Raises UsageError when torchattacks is not installed.
    """
    return tuple(_factories())


def _package() -> ModuleType:
    """Return torchattacks, an extra that nothing else needs; raises UsageError without it."""
    try:
        import torchattacks
    except ModuleNotFoundError as error:
        raise UsageError("--attack torchattacks:NAME must find the package torchattacks",
                         seen=f"{error.name} is not installed",
                         hint=f"type pip install 'sanrobust[{PACKAGE}]'") from error
    return torchattacks  # type: ignore[no-any-return]


def _factories() -> dict[str, Callable[..., _Foreign]]:
    """Return the exported attacks; a wrapper, which needs other attacks or data, is not one."""
    package = _package()
    found = {name: getattr(package, name) for name in sorted(package.__all__)}
    return {name: factory for name, factory in found.items() if _needs_model_alone(factory)}


def _needs_model_alone(factory: Callable[..., object]) -> bool:
    parameters = inspect.signature(factory).parameters.values()
    return [p.name for p in parameters if p.default is p.empty] == ["model"]


def _parameters(factory: Callable[..., object]) -> dict[str, object]:
    parameters = inspect.signature(factory).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


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


def _no_chatter() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())
