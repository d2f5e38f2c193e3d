"""Parts of the sentence that says what an attack did, from the settings in its specification.

Runs of earlier versions lack some keys; what is not known is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sanrobust.attacks.norms import NORMS
from sanrobust.attacks.versions import STANDARD, Version, version_of

_LOSSES = {"ce": "the cross entropy toward the target",
           "margin": "the highest other logit minus the target's",
           "dlr": "the difference-of-logits ratio toward the target"}
_TARGETS = {"random": "a random wrong class of each image",
            "least-likely": "the wrong class with the lowest clean logit",
            "second": "the wrong class with the highest clean logit"}
_DIGEST = re.compile(r"file:sha256:([0-9a-f]{12})[0-9a-f]*")
_AWAY = {"ce": "ascends the cross entropy of the label",
         "margin": "descends the label's logit minus the highest other",
         "dlr": "descends the difference-of-logits ratio away from the label"}
_MEMBER_WORDS = {
    "apgd-ce": "Auto-PGD on the cross entropy",
    "apgd-dlr": "Auto-PGD on the difference-of-logits ratio",
    "apgd-t": "Auto-PGD on the targeted ratio toward the nine likeliest wrong classes in turn",
    "fab": "FAB toward the nearest boundary",
    "fab-t": "FAB toward the nine likeliest wrong classes in turn",
    "square": "Square, which takes no gradient",
}


def pgd_words(settings: Mapping[str, object]) -> list[str]:
    """Return what our PGD did."""
    restarts, loss = settings.get("restarts", 1), str(settings.get("loss", "ce"))
    start = "the clean image"
    if settings.get("random_start"):
        start = ("a uniformly random point of the ball" if restarts == 1 else
                 f"{restarts} uniformly random points of the ball, of which the best counts")
    ball = NORMS.get(str(settings.get("norm", "linf"))).words
    name = {"fgsm": "FGSM", "bim": "BIM", "mifgsm": "MI-FGSM"}.get(
        str(settings.get("attack")), "PGD")
    aim, path = "untargeted", _AWAY.get(loss, f"the loss {loss}")
    if settings.get("targets", "random") != "none":
        aim = f"targeted at {target_words(settings)}"
        path = f"descends {_LOSSES.get(loss, f'the loss {loss}')}"
    momentum = settings.get("momentum")
    return [f"White-box {name} in {ball}, {aim}", f"{path} from {start}",
            *([f"momentum {momentum:g}"] if momentum else []),
            "scored on the last iterate", *seed_words(settings)]


def suite_words(settings: Mapping[str, object]) -> list[str]:
    """Return what AutoAttack, or one of its members, did."""
    name, ball = str(settings.get("attack")), NORMS.get(str(settings.get("norm", "linf"))).words
    members: tuple[str, ...] = (name,)
    words = [f"{_MEMBER_WORDS.get(name, name)}, in {ball}, untargeted"]
    restarts, queries = settings.get("restarts", 1), settings.get("queries")
    if name == "autoattack":
        version = version_of(str(settings.get("version", STANDARD)))
        members = version.members
        words = [f"AutoAttack, version {settings.get('version')}, in {ball}, untargeted: "
                 + ", then ".join(_with_starts(member, version) for member in members)
                 + ", each on the images that are still right"]
        if version.looks > 1:
            words.append(f"loss and gradient are means of {version.looks} passes")
    elif restarts != 1:
        words.append(f"from {restarts} starts")
    if "square" in members and queries is not None:
        words.append(f"{queries} queries of Square")
    return [*words, "an image is done as soon as it is misclassified, and scored there",
            *seed_words(settings)]


def _with_starts(member: str, version: Version) -> str:
    starts = version.restarts.get(member, 1)
    return _MEMBER_WORDS[member] + (f" from {starts} starts" if starts > 1 else "")


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
