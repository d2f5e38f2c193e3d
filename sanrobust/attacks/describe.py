"""An attack in words, from the settings in a run's records alone; loads no torch.

``settings`` is what `AttackSettings.as_dict` wrote. Runs of earlier versions lack some keys; what
is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sanrobust.attacks.budget import LEVELS
from sanrobust.attacks.settings import ADAPTED, PGD

_LOSSES = {"ce": "the cross entropy toward the target",
           "margin": "the highest other logit minus the target's",
           "dlr": "the difference-of-logits ratio toward the target"}
_TARGETS = {"random": "a random wrong class of each image",
            "least-likely": "the wrong class with the lowest clean logit",
            "second": "the wrong class with the highest clean logit"}
_DIGEST = re.compile(r"file:sha256:([0-9a-f]{12})[0-9a-f]*")


def attack_name(settings: Mapping[str, object]) -> str:
    """Return what a column calls the attack: ``PGD`` or ``MIFGSM (torchattacks)``."""
    attack = str(settings.get("attack", PGD))
    if attack.startswith(ADAPTED):
        return f"{attack.removeprefix(ADAPTED)} (torchattacks)"
    return attack.upper()


def attack_strength(settings: Mapping[str, object]) -> str:
    """Return the ball of an attack of torchattacks, for a heading: ``linf ε = 8/255``.

    ``no ε`` stands for an attack without a ball. Empty for our own attack, whose budgets are
    columns, and for a run that did not record it.
    """
    if "radius" not in settings:
        return ""
    norm, radius = settings.get("norm"), settings["radius"]
    if not isinstance(radius, (int, float)):
        return "no ε"
    size = f"{round(radius * LEVELS, 9):g}/{LEVELS}" if norm == "linf" else f"{radius:g}"
    return f"{norm or ''} ε = {size}".strip()


def attack_words(settings: Mapping[str, object]) -> str:
    """Return one sentence that says what was done to the images."""
    attack = str(settings.get("attack", PGD))
    words = _adapted(settings) if attack.startswith(ADAPTED) else _pgd(settings)
    return f"{'; '.join(words)}."


def _pgd(settings: Mapping[str, object]) -> list[str]:
    restarts, loss = settings.get("restarts", 1), str(settings.get("loss", "ce"))
    start = "the clean image"
    if settings.get("random_start"):
        start = ("a uniformly random point of the ball" if restarts == 1 else
                 f"{restarts} uniformly random points of the ball, of which the best counts")
    return [f"White-box PGD in the L-inf ball, targeted at {_targets(settings)}",
            f"descends {_LOSSES.get(loss, f'the loss {loss}')} from {start}",
            "scored on the last iterate", *_seed(settings)]


def _adapted(settings: Mapping[str, object]) -> list[str]:
    name = str(settings["attack"]).removeprefix(ADAPTED)
    version, options = settings.get("version"), settings.get("options")
    words = [f"{name} of torchattacks{f' {version}' if version else ''}"]
    if settings.get("targeted"):
        words.append(f"targeted at {_targets(settings)}")
    elif "targeted" in settings:
        words.append("untargeted")
    strength = attack_strength(settings)
    words += [strength.replace("no ε", "without an ε")] if strength else []
    if isinstance(options, Mapping) and options:
        words.append("options " + ", ".join(f"{key} = {value}" for key, value in options.items()))
    return [*words, "run image by image", *_seed(settings)]


def _targets(settings: Mapping[str, object]) -> str:
    rule = str(settings.get("targets", "random"))
    digest = _DIGEST.fullmatch(rule)
    if digest:
        return f"the classes of a file (SHA-256 {digest[1]})"
    kind, _, label = rule.partition(":")
    return f"class {label}" if kind == "fixed" else _TARGETS.get(rule, f"the classes of {rule}")


def _seed(settings: Mapping[str, object]) -> list[str]:
    return [f"seed {settings['seed']}"] if "seed" in settings else []
