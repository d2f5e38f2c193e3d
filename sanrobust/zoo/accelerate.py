"""Which form of a network computes: folded as a whole, its norms folded, or as it is written."""

from __future__ import annotations

from typing import NamedTuple

import torch

from sanrobust.choices import FLOAT32, TF32
from sanrobust.steady import pass_size
from sanrobust.zoo import convolutions, folded
from sanrobust.zoo.classifier import Classifier
from sanrobust.zoo.folded import FoldedSan, UnchangingSan
from sanrobust.zoo.precision import Autocast, autocast_type
from sanrobust.zoo.san import San

SWITCHED_OFF = "it was switched off"
_IN_FLOAT32 = "networks are folded in float32 alone"


class Accelerated(NamedTuple):
    """A classifier in the form that computes.

    Attributes:
        classifier: with the name and weights of the one given, and logits that differ from its by
            rounding alone.
        computed_by: what computes it, in words.
        reason: why it is not folded, as a clause; None where it is.
        steady: whether its bits depend on no batch size by themselves.
    """

    classifier: Classifier
    computed_by: str
    reason: str | None
    steady: bool = False

    @property
    def words(self) -> str:
        """What computes it, with the reason."""
        return self.computed_by if self.reason is None else f"{self.computed_by}: {self.reason}"

    def pass_size(self, img_size: int, device: torch.device) -> int | None:
        """Return how many images each of its passes must have, see `sanrobust.steady.pass_size`."""
        return None if self.steady else pass_size(img_size, device)


def accelerate(classifier: Classifier, device: torch.device, *, precision: str = FLOAT32,
               fold: bool = True) -> Accelerated:
    """Return ``classifier`` in the fastest form for weights that stay.

    A SAN is folded as a whole on a CPU; elsewhere the mappings of its attention are folded once and
    not at every call. The batch norms of a convolution network go into its convolutions. In 16 bits
    another order of roundings would be other numbers: there nothing is folded.

    Args:
        classifier: in eval mode, on ``device``.
        device: where it computes.
        precision: one of `sanrobust.choices.PRECISIONS`.
        fold: False leaves the network as it is written.
    """
    made = _folded(classifier, device, precision) if fold else _plain(classifier, SWITCHED_OFF)
    dtype = autocast_type(precision)
    if dtype is None:
        return made
    network = Autocast(made.classifier.network, dtype)
    return made._replace(classifier=made.classifier.computed_by(network),
                         computed_by=f"{made.computed_by}, in {precision}")


def _folded(classifier: Classifier, device: torch.device, precision: str) -> Accelerated:
    network = classifier.network
    if not isinstance(network, San):
        return _convolutions(classifier, device, precision)
    reason = folded.refusal(network, device)
    if reason is None and autocast_type(precision) is not None:
        reason = _IN_FLOAT32
    if reason is None:
        return Accelerated(classifier.computed_by(FoldedSan(network)), "folded network", None,
                           steady=True)
    if device.type != "cpu" and not network.training:
        return Accelerated(classifier.computed_by(UnchangingSan(network)),
                           "network with its mappings folded once", reason)
    return _plain(classifier, reason)


def _convolutions(classifier: Classifier, device: torch.device, precision: str) -> Accelerated:
    # Seen with ResNet50 on an H200: in 16 bits, whose products have units of their own, channels
    # last is 1.6 times as fast as planes, and in float32 it takes 1.15 times as long.
    fold = autocast_type(precision) is None
    made = convolutions.rewrite(classifier.network, classifier.preprocessing.img_size, device,
                                fold=fold, channels_last=device.type == "cpu"
                                or precision not in (FLOAT32, TF32))
    if made.reason is not None:
        return _plain(classifier, made.reason)
    return Accelerated(classifier.computed_by(made.network), made.computed_by,
                       None if fold else _IN_FLOAT32)


def _plain(classifier: Classifier, reason: str) -> Accelerated:
    return Accelerated(classifier, "plain network", reason)
