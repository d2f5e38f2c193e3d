"""The classifier as an attack of torchattacks is given it.

Three things are added to it. It stays in eval mode whatever the attack asks for. It counts how
much of each gradient is exactly zero. And its logits are put in one form where an attack depends
on more than their differences: one number added to all logits of an image changes neither the
prediction nor the softmax, so it must not change an attack's success either.

- ``CW``, ``EADL1``, ``EADEN`` and ``UPGD`` with the margin loss take the highest *other* logit as
  the maximum of logits that are multiplied by 0 for the class left out. That 0 wins wherever the
  other logits are negative. They get logits that are all at least 1, for which the maximum is the
  one that Carlini and Wagner (2017) define.
- ``JSMA`` sums gradients of single logits and ``Jitter`` divides by the largest absolute logit.
  They get logits whose mean is 0, as those of most networks nearly are.

All other attacks use the softmax or differences of logits and get the logits as they are.

Letters: B images, H rows, W columns, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sanrobust.attacks import guards
from sanrobust.attacks.result import zero_share

MASKING = frozenset(("CW", "EADL1", "EADEN", "UPGD"))
READING = frozenset(("JSMA", "Jitter"))
# A class this far below the first has probability 0. Networks that switch classes off by a huge
# negative logit would otherwise leave no digits for the others.
_FAR = 1e6


class Shell(nn.Module):
    """One classifier and what an attack sees of it.

    Args:
        model: pixels (B, 3, H, W) in [0, 1] to logits (B, K), in eval mode.
        attack: name of the attack, which decides the form of the logits.
    """

    def __init__(self, model: guards.Classifier, attack: str) -> None:
        super().__init__()
        self.training = False
        self.inner = model
        self._attack = attack
        self._shares: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K); raises ProtocolError when the attack put the model in train mode.

        Raises ModelError for anything but logits and NonFiniteError where they are not finite.
        """
        guards.check_eval(self.inner)
        if images.requires_grad and torch.is_grad_enabled():
            # A new tensor for each pass: a hook on a leaf that an attack keeps would pile up.
            images = images.view_as(images)
            images.register_hook(self._observe)  # type: ignore[no-untyped-call]
        logits = self.inner(images)
        guards.check_logits(logits, len(images))
        return self._in_one_form(logits)

    def train(self, mode: bool = True) -> Shell:
        """Stay in eval mode."""
        return self

    def zero_gradient(self) -> float:
        """Return the least part of a gradient that was exactly zero so far; nan without any.

        The least, because some attacks stop their loss, and so its gradient, once they succeed.
        """
        return float(torch.stack(self._shares).min()) if self._shares else float("nan")

    def _observe(self, gradient: Tensor) -> None:
        self._shares.append(zero_share(gradient).mean())

    def _in_one_form(self, logits: Tensor) -> Tensor:
        if self._attack in MASKING:
            return _positive(logits.double())
        logits = logits.float()
        return _centred(logits.double()).float() if self._attack in READING else logits


def _centred(logits: Tensor) -> Tensor:
    """Return logits (B, K) whose mean over the classes is 0, and with it that of gradients."""
    top = logits.detach().amax(1, keepdim=True)
    logits = logits.clamp(min=top - _FAR)
    return logits - logits.mean(1, keepdim=True)


def _positive(logits: Tensor) -> Tensor:
    """Return logits (B, K) with the gradients of `_centred`, of which the lowest is 1."""
    centred = _centred(logits)
    return centred + (1 - centred.detach().amin(1, keepdim=True))
