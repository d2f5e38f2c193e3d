"""How much a check looks at: one frozen value, checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from sanrobust.attacks.budget import LEVELS, parse_level, whole_number
from sanrobust.errors import UsageError, shown_value
from sanrobust.options import Whole, option, setting

ATTACKS = ("apgd-ce", "apgd-dlr", "pgd")
"""Attacks that walk along a gradient, of which a check can judge the gradient."""
DESCENDS_CROSS_ENTROPY = ("apgd-ce", "pgd")
IMAGES, WIDER, PROBED, SLOPED = 64, 512, 8, 16
"""Images that are attacked where no number is given; whose accuracy is counted; that passes are
compared on; that slopes are taken of."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """What decides the numbers of a check, besides the model and the images.

    Raises UsageError for a name or number that cannot be meant.
    """

    attack: str = setting("apgd-ce", option(
        "--attack", show_default=True, metavar="|".join(ATTACKS),
        help="Attack whose validity is judged, in L-inf, away from the model's own prediction."))
    eps: float | str = setting(8.0, option(
        "--eps", show_default="8", metavar="LEVEL",
        help="Radius at which attacks are compared, in 1/255: 8 or 8/255; a quarter, half and "
             "twice of it are tried too, and 128."))
    iters: int = setting(40, option(
        "--iters", type=Whole(2, example=40), show_default=True, metavar="N",
        help="Steps of the attack; twice as many are tried once."))
    queries: int = setting(300, option(
        "--queries", type=Whole(1, example=300), show_default=True, metavar="N",
        help="Queries of Square, the attack without gradients."))
    seed: int = setting(0, option(
        "--seed", type=Whole(0, 2**63 - 1), show_default=True,
        help="Seed of all that is drawn; each draw belongs to (seed, image)."))

    def __post_init__(self) -> None:
        if self.attack not in ATTACKS:
            from sanrobust.registry import unknown_name
            raise unknown_name("attack", str(self.attack), ATTACKS,
                               listing="sanrobust check --help")
        object.__setattr__(self, "eps", _radius(self.eps))
        for name, least, example in (("iters", 2, "--iters 40"), ("queries", 1, "--queries 300"),
                                     ("seed", 0, "--seed 0")):
            object.__setattr__(self, name, whole_number(getattr(self, name), name, least=least,
                                                        example=example))

    @property
    def radius(self) -> float:
        """The radius in units of 1/255."""
        return float(self.eps)

    def loss(self, num_classes: int) -> str:
        """Return the name of the loss that the attack descends, of so many classes."""
        if self.attack in DESCENDS_CROSS_ENTROPY:
            return "ce"
        return "dlr" if num_classes > 2 else "margin"

    def as_dict(self) -> dict[str, object]:
        """Return them as plain values."""
        return dict(vars(self))


def _radius(value: object) -> float:
    radius = parse_level(str(value), "--eps") if isinstance(value, str) else value
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) \
            or not 1 <= radius <= LEVELS / 4:
        raise UsageError(f"--eps must be a number of 1/255 from 1 to {LEVELS / 4:g}",
                         seen=f"it is {shown_value(value)}",
                         hint="type for example --eps 8 or 8/255")
    return float(radius)
