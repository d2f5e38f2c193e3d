"""Parts of the sentence that says what an attack did, from the settings in its specification.

Runs of earlier versions lack some keys; what is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_LOSSES = {"ce": "the cross entropy toward the target",
           "margin": "the highest other logit minus the target's",
           "dlr": "the difference-of-logits ratio toward the target"}
_TARGETS = {"random": "a random wrong class of each image",
            "least-likely": "the wrong class with the lowest clean logit",
            "second": "the wrong class with the highest clean logit"}
_DIGEST = re.compile(r"file:sha256:([0-9a-f]{12})[0-9a-f]*")


def pgd_words(settings: Mapping[str, object]) -> list[str]:
    """Return what our PGD did."""
    restarts, loss = settings.get("restarts", 1), str(settings.get("loss", "ce"))
    start = "the clean image"
    if settings.get("random_start"):
        start = ("a uniformly random point of the ball" if restarts == 1 else
                 f"{restarts} uniformly random points of the ball, of which the best counts")
    return [f"White-box PGD in the L-inf ball, targeted at {target_words(settings)}",
            f"descends {_LOSSES.get(loss, f'the loss {loss}')} from {start}",
            "scored on the last iterate", *seed_words(settings)]


def target_words(settings: Mapping[str, object]) -> str:
    """Return which classes the attack was aimed at."""
    rule = str(settings.get("targets", "random"))
    digest = _DIGEST.fullmatch(rule)
    if digest:
        return f"the classes of a file (SHA-256 {digest[1]})"
    kind, _, label = rule.partition(":")
    return f"class {label}" if kind == "fixed" else _TARGETS.get(rule, f"the classes of {rule}")


def seed_words(settings: Mapping[str, object]) -> list[str]:
    """Return the seed of what was drawn."""
    return [f"seed {settings['seed']}"] if "seed" in settings else []
