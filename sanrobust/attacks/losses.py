"""What an attack descends: one value per image, low where the attack wins.

Each loss has two forms: toward a target, or away from the label where there is none. Importing
this module loads no torch, so that a command can list the losses in its help.
Letters: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Optional

from sanrobust.errors import UsageError
from sanrobust.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    # (logits (B, K), targets (B,) or None, labels (B,)) -> loss (B,), to be made small.
    Loss = Callable[[Tensor, Optional[Tensor], Tensor], Tensor]

_TARGETED_CLASSES = 4
_UNTARGETED_CLASSES = 3


def cross_entropy(logits: Tensor, targets: Tensor | None, labels: Tensor) -> Tensor:
    """Return the cross entropy toward the target, (B,) in nats; without targets, minus the label's.
    """
    import torch.nn.functional as F

    if targets is None:
        return -F.cross_entropy(logits, labels, reduction="none")
    return F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Tensor, targets: Tensor | None, labels: Tensor) -> Tensor:
    """Return the highest other logit minus the target's, (B,); below 0 the attack has won.

    Without targets it is the label's logit minus the highest other. Source: the objective f6 of
    Carlini & Wagner (2017) without its floor.
    """
    aim = labels if targets is None else targets
    index = aim.unsqueeze(1)
    others = logits.scatter(1, index, float("-inf")).amax(1)
    own = logits.gather(1, index).squeeze(1)
    return own - others if targets is None else others - own


def dlr(logits: Tensor, targets: Tensor | None, labels: Tensor) -> Tensor:
    """Return the negated difference-of-logits ratio, (B,).

    With the logits z sorted downwards as z1 >= z2 >= ..., label y and target t, it is
    ``(z_y - z_t) / (z1 - (z3 + z4) / 2)``, and without a target
    ``(z_y - max of the others) / (z1 - z3)``; neither a shift nor a positive scale of the logits
    changes them. Source: Croce & Hein (2020), equations 7 and 6, with the sign of a descent.

    Raises UsageError when K is below 4, or 3 without targets.
    """
    import torch

    needed = _UNTARGETED_CLASSES if targets is None else _TARGETED_CLASSES
    if logits.shape[1] < needed:
        raise UsageError(f"the dlr loss must have at least {needed} classes",
                         seen=f"the model has {logits.shape[1]}", hint="use --loss ce or margin")
    top = logits.detach().topk(needed, dim=1).indices
    if targets is None:
        first, _, third = logits.gather(1, top).unbind(1)
        return margin(logits, None, labels) / (first - third + 1e-12)
    # All of them at once, which is also one step of the way back.
    places = torch.cat([labels.unsqueeze(1), targets.unsqueeze(1), top], 1)
    own, aim, first, _, third, fourth = logits.gather(1, places).unbind(1)
    return (own - aim) / (first - (third + fourth) / 2 + 1e-12)


def pair(logits: Tensor, targets: Tensor | None, labels: Tensor) -> Tensor:
    """Return the label's logit minus the target's, (B,): the numerator of the targeted dlr."""
    import torch

    if targets is None:
        return margin(logits, None, labels)
    own, aim = logits.gather(1, torch.stack([labels, targets], 1)).unbind(1)
    return own - aim


def dlr_or_margin(num_classes: int, *, targeted: bool) -> Loss:
    """Return `dlr`, or its numerator where there are too few classes for its scale."""
    enough = num_classes >= (_TARGETED_CLASSES if targeted else _UNTARGETED_CLASSES)
    return dlr if enough else pair


LOSSES: Registry[Loss] = Registry("loss", listing="sanrobust pgd --help")
LOSSES.add("ce", cross_entropy)
LOSSES.add("margin", margin)
LOSSES.add("dlr", dlr)
