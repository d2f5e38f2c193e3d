"""Options of torchattacks' attacks as users type them, and what they say about strength."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from sanrobust.errors import UsageError, shown_value
from sanrobust.registry import closest

Option = bool | int | float | str | tuple[float, ...]

# Norms of the ball of attacks whose constructor has no `norm` to say it.
_NORMS = {**dict.fromkeys((
    "FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "TPGD", "MIFGSM", "UPGD", "DIFGSM", "TIFGSM",
    "Jitter", "NIFGSM", "PGDRS", "SINIFGSM", "VMIFGSM", "VNIFGSM", "SPSA", "PIFGSM", "PIFGSMPP",
), "linf"), "PGDL2": "l2", "PGDRSL2": "l2"}
_RADII = ("eps", "max_epsilon")
_NUMBER = re.compile(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)(?:/([0-9.]+))?", re.IGNORECASE)


def norm_of(name: str, settings: Mapping[str, object]) -> str | None:
    """Return the norm of an attack's ball, ``linf`` or ``l2``; None where it has none."""
    return str(settings["norm"]).lower() if "norm" in settings else _NORMS.get(name)


def radius_of(settings: Mapping[str, object]) -> float | None:
    """Return the radius of an attack's ball in the pixel range [0, 1]; None where it has none."""
    radius = next((settings[key] for key in _RADII if key in settings), None)
    return float(radius) if isinstance(radius, (int, float)) else None


def read_option(name: str, key: str, text: str, parameters: Mapping[str, object]) -> Option:
    """Read the text of one option as the kind of its default.

    Args:
        name: the attack.
        key: the option.
        text: its value as typed.
        parameters: every option that the attack takes, with its default.

    Raises UsageError for an option that the attack does not take, a value of another kind and a
    negative count.
    """
    if key not in parameters:
        match = closest(key, parameters)
        legal = ", ".join(parameters) or "no options"
        raise UsageError(f"an option of {name} must be one that it takes",
                         seen=f"it has no option {shown_value(key)}",
                         hint=f"{f'did you mean {match}? ' if match else ''}it takes {legal}")
    value = _value(text.strip(), parameters[key])
    if value is None:
        raise UsageError(f"{key} of {name} must be of the kind of its default "
                         f"{parameters[key]!r}", seen=f"{shown_value(text)} was seen",
                         hint="give a number such as 10, 0.5 or 8/255, true or false, or a name "
                         "where the default is one")
    default = parameters[key]
    # torchattacks takes a negative number of steps, and then does nothing.
    if isinstance(default, int) and default > 0 and isinstance(value, (int, float)) and value < 0:
        raise UsageError(f"{key} of {name} must not be negative", seen=f"it is {text.strip()}",
                         hint=f"give 0 or more, such as its default {default}")
    return value


def check_radii(name: str, settings: Mapping[str, object]) -> None:
    """Refuse an L-inf radius or step outside [0, 1], which is 1/255 taken for the unit.

    Raises UsageError.
    """
    for key in (*_RADII, "alpha") if norm_of(name, settings) == "linf" else ():
        value = settings.get(key, 0)
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UsageError(f"{key} of torchattacks:{name} must be in [0, 1], the pixel range",
                             seen=f"it is {value}",
                             hint=f"type -A {key}={value}/255 if you mean units of 1/255")


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
