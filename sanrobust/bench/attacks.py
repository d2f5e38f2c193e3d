"""Attacks as contenders: ours and those of torchattacks on one network and the same digits.

torchattacks is called as its users call it, on the whole batch, not by way of our adapter. Both are
given one network, folded where it can be, with frozen weights. Ours go through passes of one size
where that is what keeps images independent, as in every command; what fills them up is counted.
torchattacks is an extra: it is imported where its attacks are made. Letters: B images, K classes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sanrobust.attacks.budget import LEVELS, Budget
from sanrobust.attacks.build import build_attack
from sanrobust.attacks.guards import TOLERANCE
from sanrobust.attacks.randomness import seeded
from sanrobust.attacks.settings import AttackSettings
from sanrobust.bench.contender import Contender
from sanrobust.bench.machine import seconds_of
from sanrobust.bench.passes import Effort, effort_of
from sanrobust.bench.settings import (APGD_CE, APGD_T, AUTOATTACK, FAB_T, OURS, PGD, SQUARE,
                                      TORCHATTACKS, Settings, Threat)
from sanrobust.data.datasets import open_dataset
from sanrobust.data.loader import Batch, batches
from sanrobust.errors import UsageError
from sanrobust.steady import FixedSizeBatches
from sanrobust.zoo import catalog
from sanrobust.zoo.accelerate import accelerate
from sanrobust.zoo.external import is_external, require_found
from sanrobust.zoo.resolve import create_model

_DIGITS, _CLASSES = "digits", 10
PGD_STEP = 2.0
"""Step of PGD in 1/255."""


def check(settings: Settings) -> None:
    """Refuse what cannot be attacked before anything is computed.

    Raises UnknownNameError for a mistyped network and UsageError for one of other classes, more
    images than there are, another dtype than float32, or torchattacks that is not there.
    """
    if settings.shape.dtype != "float32":
        raise UsageError("--dtype must be float32 where networks are attacked",
                         seen=f"it is {settings.shape.dtype}", hint="leave it out")
    if TORCHATTACKS in settings.contenders and find_spec(TORCHATTACKS) is None:
        raise UsageError("attacks must find the package torchattacks to be compared with it",
                         seen="it is not installed",
                         hint=f"type pip install 'sanrobust[torchattacks]', or add -c {OURS}")
    there = len(open_dataset(_DIGITS, root=None).refs)
    if settings.threat.images > there:
        raise UsageError(f"--images must be at most the {there} digits that are there",
                         seen=f"it is {settings.threat.images}", hint=f"type --images {there}")
    for name in settings.threat.models:
        if is_external(name):
            require_found(name)
        else:
            _require_digits(name, catalog.find(name, tag=_DIGITS).architecture.num_classes)


def _require_digits(name: str, num_classes: int) -> None:
    if num_classes != _CLASSES:
        raise UsageError("a network to be attacked must have the digits' 10 classes",
                         seen=f"{name} has {num_classes}",
                         hint="type for example -m resnet26.digits")


@dataclass(frozen=True)
class Arena:
    """A network and the images of an attack.

    Attributes:
        name: of the network.
        network: pixels to logits (B, K), in eval mode and frozen; what both sides are given.
        size: images of a pass of ours, see `sanrobust.steady.pass_size`.
        computed_by: what computes it, in words.
        batch: the images.
        threat: how they are attacked.
        device: where.
    """

    name: str
    network: nn.Module
    size: int | None
    computed_by: str
    batch: Batch
    threat: Threat
    device: torch.device

    def small(self) -> Arena:
        """Return the first two images, to be attacked as weakly as can be."""
        batch = self.batch.part(range(min(2, len(self.batch.ids))))
        return replace(self, batch=batch, threat=replace(self.threat, images=len(batch.ids),
                                                         iters=1, queries=1))

    def robust(self, made: Tensor) -> float:
        """Return the accuracy on adversarial images (B, 3, H, W) in percent.

        An image that is not legal has not been broken.
        """
        images, labels = self.batch.pixels, self.batch.labels
        with torch.no_grad():
            logits = FixedSizeBatches(self.network, self.size)(made)
        radius = self.threat.eps / LEVELS + TOLERANCE
        legal = ((made - images).abs() <= radius) & (made >= 0) & (made <= 1)
        broken = legal.flatten(1).all(1) & (logits.argmax(1) != labels)
        return 100 * float((~broken).float().mean())


def arena(name: str, settings: Settings) -> Arena:
    """Load a network and its images.

    Raises what `sanrobust.zoo.resolve.create_model` raises, and UsageError for other classes.
    """
    device, threat = torch.device(settings.shape.device), settings.threat
    classifier = create_model(name, tag=_DIGITS).to(device)
    _require_digits(name, classifier.num_classes)
    made = accelerate(classifier, device)
    network = made.classifier.eval().requires_grad_(False)
    images = open_dataset(_DIGITS, root=None, num_samples=threat.images)
    plan = [list(range(threat.images))]
    batch = next(iter(batches(images, classifier.preprocessing, plan=plan, workers=0)))
    size = made.pass_size(batch.pixels.shape[-1], device)
    return Arena(name, network, size, made.words, batch.to(device), threat, device)


@dataclass(frozen=True)
class Attacker(Contender):
    """One implementation of the attacks.

    Attributes:
        arena: what is attacked.
        attack: from that, the name of an attack and the network to adversarial images.
    """

    arena: Arena | None = None
    attack: Callable[[Arena, str, nn.Module], Tensor] | None = None

    def effort(self, step: str) -> Effort:
        """Attack once, counting; so a timed attack is never the first.

        A weak attack of two images goes before: what is imported on the way is not counted.
        """
        place, attack = self.arena, self.attack
        assert place is not None and attack is not None
        attack(place.small(), step, place.network)
        return effort_of(partial(attack, place, step), place.network, place.device, place.robust)

    def timer(self, step: str, device: torch.device) -> Callable[[], float]:
        """Return a function that returns the seconds of one attack."""
        return lambda: seconds_of(self.calls[step], device)


def attackers(place: Arena, names: tuple[str, ...]) -> Iterator[Attacker]:
    """Yield those of ``names`` that have attacks."""
    for name in names:
        if name in _MAKERS:
            attack = _MAKERS[name]
            yield Attacker(name=name, computed_by=place.computed_by + _passes(name, place),
                           calls={step: partial(attack, place, step, place.network)
                                  for step in place.threat.attacks}, arena=place, attack=attack)


def _passes(name: str, place: Arena) -> str:
    return f", in passes of {place.size}" if name == OURS and place.size else ""


def _ours(place: Arena, name: str, network: nn.Module) -> Tensor:
    """Attack as a command does."""
    threat, batch = place.threat, place.batch
    budget = Budget(threat.eps, PGD_STEP if name == PGD else None,
                    None if name == SQUARE else threat.iters)
    settings = AttackSettings(attack=name, budgets=(budget,), targets="none")
    if name in (SQUARE, AUTOATTACK):
        settings = replace(settings, queries=threat.queries)
    attack = build_attack(settings, settings.rule())
    (result,) = attack(FixedSizeBatches(network, place.size), batch.pixels, batch.labels,
                       batch.ids)
    return result.adversarial


def _theirs(place: Arena, name: str, network: nn.Module) -> Tensor:
    """Attack the whole batch with a class of torchattacks."""
    images, labels = place.batch.pixels, place.batch.labels
    with seeded(0, place.device), contextlib.redirect_stdout(io.StringIO()):
        attack = their_attack(name, network, place.threat)
        attack.set_device(place.device)
        made: Tensor = attack(images, labels)
    return made.detach()


def their_attack(name: str, network: nn.Module, threat: Threat) -> Any:
    """Return an attack of torchattacks, of the strength of ours."""
    import torchattacks
    eps = threat.eps / LEVELS
    steps: dict[str, Any] = {"eps": eps, "steps": threat.iters}
    seed: dict[str, Any] = {"norm": "Linf", "seed": 0}
    makers: dict[str, Callable[[], Any]] = {
        AUTOATTACK: lambda: torchattacks.AutoAttack(
            network, norm="Linf", eps=eps, version="standard", n_classes=_CLASSES, seed=0),
        APGD_CE: lambda: torchattacks.APGD(network, loss="ce", **steps, **seed),
        APGD_T: lambda: torchattacks.APGDT(network, n_classes=_CLASSES, **steps, **seed),
        FAB_T: lambda: torchattacks.FAB(network, multi_targeted=True, n_classes=_CLASSES, **steps,
                                        **seed),
        SQUARE: lambda: torchattacks.Square(network, eps=eps, n_queries=threat.queries, **seed),
        PGD: lambda: torchattacks.PGD(network, alpha=PGD_STEP / LEVELS, random_start=False,
                                      **steps),
    }
    attack = makers[name]()
    if name == AUTOATTACK:
        # Its constructor takes no strength: 10 steps and 5000 queries.
        for member in attack._autoattack.attacks:
            strength = "n_queries" if hasattr(member, "n_queries") else "steps"
            setattr(member, strength, threat.queries if strength == "n_queries" else threat.iters)
    return attack


_MAKERS: dict[str, Callable[[Arena, str, nn.Module], Tensor]] = {OURS: _ours,
                                                                 TORCHATTACKS: _theirs}
NAMES = tuple(_MAKERS)
