"""What a targeted attack descends: one value per image, low where the target wins.

Importing this module loads no torch, so that a command can list the losses in its help.
Letters: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sanrobust.errors import UsageError
from sanrobust.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    # (logits (B, K), targets (B,), labels (B,)) -> loss (B,), to be made small.
    Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

_DLR_CLASSES = 4


def cross_entropy(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy toward the target, (B,) in nats, at least 0."""
    import torch.nn.functional as F

    del labels
    return F.cross_entropy(logits, targets, reduction="none")


def margin(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Return the highest other logit minus the target's, (B,); below 0 the attack has won.

    Source: the objective f6 of Carlini & Wagner (2017) without its floor.
    """
    del labels
    column = targets.unsqueeze(1)
    others = logits.scatter(1, column, float("-inf")).amax(1)
    return others - logits.gather(1, column).squeeze(1)


def dlr(logits: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Return the negated targeted difference-of-logits ratio, (B,).

    With the logits z sorted downwards as z1 >= z2 >= ..., label y and target t, it is
    ``(z_y - z_t) / (z1 - (z3 + z4) / 2)``, which neither a shift nor a positive scale of the
    logits changes. Source: Croce & Hein (2020), equation 7, with the sign of a descent.

    Raises UsageError when K < 4.
    """
    if logits.shape[1] < _DLR_CLASSES:
        raise UsageError(f"the dlr loss must have at least {_DLR_CLASSES} classes",
                         seen=f"the model has {logits.shape[1]}", hint="use --loss ce or margin")
    top = logits.topk(_DLR_CLASSES, dim=1).values
    scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2
    difference = (logits.gather(1, labels.unsqueeze(1))
                  - logits.gather(1, targets.unsqueeze(1))).squeeze(1)
    return difference / (scale + 1e-12)


LOSSES: Registry[Loss] = Registry("loss", listing="sanrobust pgd --help")
LOSSES.add("ce", cross_entropy)
LOSSES.add("margin", margin)
LOSSES.add("dlr", dlr)
