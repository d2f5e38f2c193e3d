"""An attack in words, from the settings in a run's records alone; loads no torch.

``settings`` is what `AttackSettings.as_dict` wrote. Runs of earlier versions lack some keys; what
is not known is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from sanrobust.attacks.budget import LEVELS
from sanrobust.attacks.catalog import ADAPTED, ATTACKS, PGD
from sanrobust.attacks.versions import STANDARD
from sanrobust.attacks.words import seed_words, target_words


def attack_name(settings: Mapping[str, object]) -> str:
    """Return what a column calls the attack: ``PGD`` or ``MIFGSM (torchattacks)``."""
    attack = str(settings.get("attack", PGD))
    if attack.startswith(ADAPTED):
        return f"{attack.removeprefix(ADAPTED)} (torchattacks)"
    title = ATTACKS.get(attack).title if attack in ATTACKS else ""
    title = title or attack.upper()
    if attack == PGD and settings.get("targets", "random") == "none":
        title += " untargeted"
    if attack == "autoattack" and settings.get("version", STANDARD) != STANDARD:
        title += f" ({settings['version']})"
    return title if settings.get("norm", "linf") == "linf" else f"{title} {settings['norm']}"


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
    if attack.startswith(ADAPTED):
        words = _adapted(settings)
    elif attack in ATTACKS:
        words = [*ATTACKS.get(attack).words(settings)]
    else:  # of a package that is not here any more
        words = [f"the attack {attack}", f"targeted at {target_words(settings)}"]
    return f"{'; '.join(words)}."


def _adapted(settings: Mapping[str, object]) -> list[str]:
    name = str(settings["attack"]).removeprefix(ADAPTED)
    version, options = settings.get("version"), settings.get("options")
    words = [f"{name} of torchattacks{f' {version}' if version else ''}"]
    if settings.get("targeted"):
        words.append(f"targeted at {target_words(settings)}")
    elif "targeted" in settings:
        words.append("untargeted")
    strength = attack_strength(settings)
    words += [strength.replace("no ε", "without an ε")] if strength else []
    if isinstance(options, Mapping) and options:
        words.append("options " + ", ".join(f"{key} = {value}" for key, value in options.items()))
    return [*words, "run image by image", *seed_words(settings)]
