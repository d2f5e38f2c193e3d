"""The rotations and the flip as exact maps of square tensors: pixels move, none is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sanrobust.registry import unknown_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class View:
    """A view of an image.

    Attributes:
        title: how it is printed.
        of: the view of a batch (B, 3, S, S).
    """

    title: str
    of: Callable[[Tensor], Tensor]


VIEWS: Mapping[str, View] = {
    "none": View("no rotation", lambda images: images),
    "cw90": View("clockwise 90°", lambda images: images.rot90(-1, (-2, -1))),
    "cw180": View("clockwise 180°", lambda images: images.rot90(2, (-2, -1))),
    "cw270": View("clockwise 270°", lambda images: images.rot90(1, (-2, -1))),
    "updown": View("upside-down", lambda images: images.flip(-2)),
}
"""The views of Table 9 in its order."""


def view(name: str, images: Tensor) -> Tensor:
    """Return the named view of a batch (Zhao et al. 2020, Table 9).

    ``images`` is (B, 3, S, S) of any dtype, and so is the result. ``cw`` turns clockwise by that
    many degrees; ``updown`` reverses the rows, which is not the turn by 180 degrees. ``none``
    returns the tensor itself. Raises UnknownNameError for a name that is not in VIEWS.
    """
    if name not in VIEWS:
        raise unknown_name("view", name, VIEWS, listing="the views of Table 9")
    return VIEWS[name].of(images)
